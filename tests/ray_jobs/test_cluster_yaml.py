"""cluster.yaml and runtime_env.yaml: valid for the pinned Ray, without a cloud account."""

import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def pinned_ray() -> str:
    """The version that is tested: ranges are in pyproject.toml, tested versions in constraints.txt."""
    [pin] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    return pin.partition("==")[2]


def test_ray_accepts_the_cluster(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == 1


def test_ray_refuses_a_field_it_does_not_know(cluster):
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config(cluster | {"idle_timeout": 1}))


def test_every_ray_version_is_the_pinned_one():
    text = (ROOT / "cluster.yaml").read_text()
    named = re.findall(r"rayproject/ray:([\d.]+)|ray\[\w+\]==([\d.]+)|__version__ == '([\d.]+)'", text)
    versions = [version for groups in named for version in groups if version]
    assert len(versions) >= 4 and set(versions) == {pinned_ray()}
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    tags = set(re.findall(r"rayproject/ray:[\d.]+-py(\d)(\d+)", text))
    assert {f">={major}.{minor}" for major, minor in tags} == {python.partition(",")[0]}


def test_gpu_workers_start_from_none_and_the_head_is_a_cpu_machine(cluster):
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head" and types["head"]["node_config"]["InstanceType"].startswith("m")
    workers = {name: node for name, node in types.items() if name != "head"}
    assert len(workers) == 3 and all(node["min_workers"] == 0 for node in workers.values())
    assert all(node["resources"]["GPU"] > 1 for node in workers.values())
    spot = [name for name, node in workers.items() if "InstanceMarketOptions" in node["node_config"]]
    assert spot == ["gpu_spot"]
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["max_workers"] >= sum(node["max_workers"] for node in workers.values()) > 0


def test_machines_of_one_run_are_placed_together_and_joined_by_all_their_network_cards(cluster):
    from ray.autoscaler._private.aws.config import _configure_from_network_interfaces

    node = _configure_from_network_interfaces(cluster)["available_node_types"]["gpu_efa"]
    assert node["node_config"]["Placement"]["GroupName"]
    cards = node["node_config"]["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in cards] == list(range(16))
    assert [card["DeviceIndex"] for card in cards] == [0] + [1] * 15
    assert all(card["InterfaceType"].startswith("efa") for card in cards)
    # What Ray asks of every interface, and takes from it.
    assert len(node["node_config"]["SubnetIds"]) == len(node["node_config"]["SecurityGroupIds"]) == 16
    assert "--device=/dev/infiniband" in node["docker"]["worker_run_options"]


@pytest.mark.slow  # counts four steps
def test_what_one_gpu_a_machine_costs_is_what_the_estimator_says(cluster):
    """The figures of the comment, counted anew."""
    import dataclasses

    from benchmarks.scaling import WIDTHS
    from conclugen import presets
    from conclugen.training import step_cost

    said = re.findall(r"^  #   .*  ([\d,]+)(?: samples/s|:.*)?$", (ROOT / "cluster.yaml").read_text(), re.MULTILINE)
    sizes = {"representation_dim": 4096, "projection_dim": 512, "reconstruction_hidden_dim": 1024}
    together = step_cost.MACHINES["L4"]
    apart = dataclasses.replace(together, node=1, between=10e9 / 8)
    found = []
    for world, machine, compression in (
        (1, together, "none"),
        (4, together, "none"),
        (4, apart, "none"),
        (4, apart, "bfloat16"),
    ):
        config = presets.build(
            *("conclugen", "improved"),
            **{"global_batch": 4096, "precision": "bfloat16", "model": sizes, "gradient_compression": compression},
        )
        found.append(4096 / step_cost.estimate(step_cost.count(config, WIDTHS, world), machine).step)
    assert [float(number.replace(",", "")) for number in said] == pytest.approx(found, rel=0.1)


def test_the_project_is_installed_where_it_is_mounted(cluster):
    [(target, source)] = cluster["file_mounts"].items()
    assert source == "."
    (install,) = [command for command in cluster["setup_commands"] if f"cd {target} && pip install" in command]
    assert install.endswith('-e ".[all]"'), "the core alone trains nothing on Ray"
    assert (ROOT / "constraints.txt").is_file()


def test_a_submitted_job_takes_the_source_along_and_nothing_heavy(tmp_path):
    from ray._private.runtime_env.packaging import create_package
    from ray.runtime_env import RuntimeEnv

    content = yaml.safe_load((ROOT / "ray_jobs" / "runtime_env.yaml").read_text())
    environment = RuntimeEnv(**content)
    assert environment["env_vars"]["WDS_SECURE"] == "1"
    project = tmp_path / "project"
    kept = ["pyproject.toml", "conclugen/training/model.py", "ray_jobs/pretrain.py", "shards/tests.py", "my_job.yaml"]
    left = [".venv/bin/python", "outputs/run/journal.jsonl", "data/x.tar", "clips/a.mp4", "m/model.safetensors"]
    for name in [*kept, *left, "tests/test_x.py", "conclugen/__pycache__/x.pyc"]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    create_package(
        str(project), tmp_path / "package.zip", include_gitignore=True, excludes=[str(e) for e in content["excludes"]]
    )
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert names == {*kept, ".gitignore"}
