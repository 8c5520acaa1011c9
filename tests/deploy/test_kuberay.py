"""deploy/kuberay/: what KubeRay takes, field by field, and commands that the project takes, option by option."""

from __future__ import annotations

import copy
import gzip
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from conclugen.common import commands

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy/kuberay"
JOBS = ("pretrain", "extract", "sweep")
FILES = ("raycluster", *JOBS)


def strict(node: Any) -> Any:
    """A schema that refuses fields it does not list, as the API server's `fieldValidation: Strict` does."""
    if isinstance(node, list):
        return [strict(child) for child in node]
    if not isinstance(node, dict):
        return node
    made = {name: strict(child) for name, child in node.items()}
    lists_fields = node.get("type") == "object" and isinstance(node.get("properties"), dict)
    if lists_fields and not node.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if node.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.Draft7Validator]:
    """By kind; metadata, which the published schema leaves open, has the fields that these files use."""
    found = {}
    for kind in ("RayJob", "RayCluster"):
        packed = (ROOT / f"tests/deploy/schemas/{kind.lower()}.v1.json.gz").read_bytes()
        schema = strict(json.loads(gzip.decompress(packed))["schema"])
        text = {"type": "object", "additionalProperties": {"type": "string"}}
        schema["properties"] |= {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {"name": {"type": "string"}, "labels": text, "annotations": text},
            },
        }
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        found[kind] = jsonschema.Draft7Validator(schema)
    return found


def read(name: str) -> dict[str, Any]:
    [document] = yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def faults(validators: dict[str, jsonschema.Draft7Validator], document: dict[str, Any]) -> list[str]:
    found = validators[document["kind"]].iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    found = spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec
    assert isinstance(found, dict)
    return found


def pods(document: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(group, most pods, pod) of a manifest."""
    cluster = cluster_of(document)
    yield "head", 1, cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["maxReplicas"], group["template"]["spec"]


def quantity(text: str | int) -> float:
    units = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    unit = next((unit for unit in units if str(text).endswith(unit)), "")
    return float(str(text).removesuffix(unit)) * units.get(unit, 1)


@pytest.mark.parametrize("name", FILES)
def test_kuberay_takes_every_field(name: str, validators: dict[str, jsonschema.Draft7Validator]) -> None:
    assert faults(validators, read(name)) == []


def test_every_manifest_of_the_folder_is_looked_at() -> None:
    assert {path.stem for path in MANIFESTS.glob("*.yaml")} == {*FILES, "kueue"}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("spec", "shutdownAfterJobFinish"), True, "'shutdownAfterJobFinish' was unexpected"),
        (("spec", "ttlSecondsAfterFinished"), "ten", "is not of type 'integer'"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replica"), 1, "'replica' was unexpected"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "one", "is not of type 'integer'"),
        (
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"),
            [],
            "'volumeMount' was unexpected",
        ),
        (("metadata", "label"), {}, "'label' was unexpected"),
        (("kind",), "RayJobs", None),
    ],
)
def test_a_field_that_kuberay_does_not_know_is_refused(
    place: tuple[str | int, ...], value: Any, said: str | None, validators: dict[str, jsonschema.Draft7Validator]
) -> None:
    document = copy.deepcopy(read("pretrain"))
    *path, last = place
    node: Any = document
    for part in path:
        node = node[part]
    node[last] = value
    if said is None:
        document = document | {"kind": "RayJob", "apiVersion": "ray.io/v1alpha1"}
        said = "'ray.io/v1' was expected"
    found = faults(validators, document)
    assert len(found) == 1 and said in found[0], found


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_command_is_one_that_the_project_takes(name: str) -> None:
    program, command, *options = shlex.split(read(name)["spec"]["entrypoint"])
    assert program == "conclugen"
    commands.load(command).parse(options)


def test_a_run_has_as_many_gpus_as_workers_and_cpus_for_each() -> None:
    document = read("pretrain")
    job = commands.load("pretrain").parse(shlex.split(document["spec"]["entrypoint"])[2:])
    run = job.run
    gpus = cpus = 0.0
    for _, count, pod in pods(document):
        limits = pod["containers"][0]["resources"]["limits"]
        gpus += count * quantity(limits.get("nvidia.com/gpu", 0))
        if "nvidia.com/gpu" in limits:
            cpus += count * quantity(limits["cpu"])
            assert quantity(limits["cpu"]) >= quantity(limits["nvidia.com/gpu"]) * run.cpus_per_worker
    assert run.gpu and gpus == run.workers and cpus >= run.workers * run.cpus_per_worker


@pytest.mark.parametrize("name", FILES)
def test_pods_are_not_root_have_shared_memory_and_the_shared_folder(name: str) -> None:
    for group, _, pod in pods(read(name)):
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, group
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, group
        assert container["resources"]["requests"] == container["resources"]["limits"], group
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        memory = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert memory["medium"] == "Memory", group
        # Ray gives 30 % of the memory to its object store, or less where shared memory has less room.
        assert quantity(memory["sizeLimit"]) >= 0.25 * quantity(container["resources"]["limits"]["memory"]), group
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]], group


@pytest.mark.parametrize("name", FILES)
def test_spot_pools_tolerate_what_spot_nodes_carry(name: str) -> None:
    for group, _, pod in pods(read(name)):
        selected = pod.get("nodeSelector", {})
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", ())}
        assert ("spot" in group) == ("cloud.google.com/gke-spot" in selected)
        assert "cloud.google.com/gke-spot" not in selected or "cloud.google.com/gke-spot" in tolerated
        if "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]:
            assert "nvidia.com/gpu" in tolerated and selected


@pytest.mark.parametrize("name", FILES)
def test_ray_and_the_environment_are_those_of_the_project(name: str) -> None:
    document = read(name)
    [pin] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    assert cluster_of(document)["rayVersion"] == pin.partition("==")[2]
    assert cluster_of(document)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    if document["kind"] == "RayJob":
        own = yaml.safe_load((ROOT / "ray_jobs/runtime_env.yaml").read_text())["env_vars"]
        assert yaml.safe_load(document["spec"]["runtimeEnvYAML"]) == {"env_vars": own}


def test_jobs_wait_in_a_queue_that_can_hold_each_of_them() -> None:
    kinds = {one["kind"]: one for one in yaml.safe_load_all((MANIFESTS / "kueue.yaml").read_text())}
    queue, whole = kinds["LocalQueue"], kinds["ClusterQueue"]
    assert queue["spec"]["clusterQueue"] == whole["metadata"]["name"]
    [group] = whole["spec"]["resourceGroups"]
    [flavor] = group["flavors"]
    assert flavor["name"] == kinds["ResourceFlavor"]["metadata"]["name"]
    quota = {one["name"]: quantity(one["nominalQuota"]) for one in flavor["resources"]}
    assert set(quota) == set(group["coveredResources"])
    for name in JOBS:
        document = read(name)
        assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
        assert document["spec"]["shutdownAfterJobFinishes"] is True
        # Kueue counts a job's pods before it starts them: no autoscaler may add some.
        assert not cluster_of(document).get("enableInTreeAutoscaling")
        assert all(group["replicas"] == group["maxReplicas"] for group in cluster_of(document)["workerGroupSpecs"])
        for resource, limit in quota.items():
            limits = [(count, pod["containers"][0]["resources"]["limits"]) for _, count, pod in pods(document)]
            assert sum(count * quantity(one.get(resource, 0)) for count, one in limits) <= limit, (name, resource)
