"""What `ray job submit` uploads; and, in the slow run, a pretraining run that continues through it, finished or killed:
exit status, one MLflow run.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import ray
import torch
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history
from ray_jobs.training.pretraining import PretrainResult
from tests.campaigns.faults import Bench
from tests.cluster.runs import without_ray_of_the_test
from tests.cluster.servers import free_port
from tests.cluster.trace import Plan

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RAY = Path(sys.executable).parent / "ray"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The job's `python` is the PATH's."""
    return {**without_ray_of_the_test(), "PATH": f"{RAY.parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """A head node of its own; its dashboard's address."""
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="rj", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(RAY), "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}"),
            *(
                "--include-dashboard=true",
                f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={free_port()}",
                f"--temp-dir={folder}",
                "--disable-usage-stats",
            ),
        ]
        log = Path(folder) / "head.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{dashboard}"
            deadline = time.monotonic() + 300  # a dashboard takes minutes to come up on a busy machine
            while not _answers(address):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.25)
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            for candidate in psutil.process_iter(["cmdline"]):  # what the head started, by its folder
                if any(folder in argument for argument in candidate.info["cmdline"] or ()):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        candidate.kill()
            process.wait(timeout=10)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)  # noqa: S310
    except urllib.error.HTTPError:
        return True  # it answers, and wants the token
    except OSError:
        return False
    return True


def submit(
    head: str, environment: dict[str, str], *arguments: str, module: str = "ray_jobs.pretrain"
) -> subprocess.CompletedProcess[str]:
    command = [
        *(str(RAY), "job", "submit", "--address", head, "--working-dir", "."),
        *("--runtime-env", "ray_jobs/runtime_env.yaml", "--", "env", "CONCLUGEN_COMMIT=0123abcd"),
        *("python", "-m", module, *arguments),
    ]
    for _ in range(20):
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
        if "No available agent to submit job" not in done.stderr:
            return done
        time.sleep(1)  # the head answers before its agent has come up
    return done


def flags_of(shards: Path, output: Path, **changed: str) -> list[str]:
    """The job of `small_job`, as options, some of which are changed."""
    small = {
        "pretrain.global_batch": "60",
        "pretrain.epochs": "2",
        "pretrain.precision": "float64",
        "pretrain.model.representation_dim": "16",
        "pretrain.model.projection_dim": "8",
        "pretrain.model.reconstruction_hidden_dim": "16",
        "pretrain.tasks.clustering.clusters": "4",
        "pretrain.tasks.clustering.queue_batches": "2",
        "pretrain.tasks.clustering.start_epoch": "1",
        "data": str(shards),
        "data.read_tasks": "1",
        "run": "killed",
        "output": str(output),
        "run.workers": "2",
        "run.checkpoint_every": "7",
        "run.report_every": "1",
    }
    return [text for name, value in (small | changed).items() for text in (f"--{name}", value)]


def kill_in_mid_epoch(run: RunFolder, shards: Path, ray_of_it: dict[str, str]) -> int:
    """Start the job in a process, and kill it once there are steps that no checkpoint has; returns the last step that
    was journalled. ray_of_it: variables that lead to a Ray, or give one of its own a folder; the processes of that end
    with the one that started them."""
    Plan(pace_s=0.2).give(run.path)
    command = [sys.executable, "-m", "tests.cluster.runs", "--shards", str(shards), "--read-tasks", "1"]
    command += ["--output", str(run.path.parent), "--name", run.name]
    environment = without_ray_of_the_test() | ray_of_it
    log = run.path.parent / "killed.log"
    with log.open("wb") as out:
        first = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and first.poll() is None:
        steps = CheckpointStore(run.path / "checkpoints").steps()
        written = metric_history(run.journal)["loss"][-1][0] if run.journal.exists() and steps else 0
        if steps and written > max(steps) + 2:
            break
        time.sleep(0.02)
    assert first.poll() is None, log.read_text()[-3000:]
    first.kill()
    first.wait()
    return metric_history(run.journal)["loss"][-1][0]


def test_the_uploaded_copy_has_all_that_jobs_need(environment: dict[str, str], tmp_path: Path) -> None:
    """Made by Ray's own packer; every command and what workers import is found in it, none of it elsewhere."""
    ours = yaml.safe_load((REPOSITORY / "ray_jobs/runtime_env.yaml").read_text())["excludes"]
    excludes = get_runtime_env_default_excludes() + ours
    archive, copy = tmp_path / "copy.zip", tmp_path / "copy"
    create_package(str(REPOSITORY), archive, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(archive) as file:
        file.extractall(copy)
    assert {path.name for path in copy.iterdir()} >= {"conclugen", "shards", "ray_jobs", "tuning", "pyproject.toml"}
    assert not any((copy / name).is_dir() for name in (".git", ".venv", "tests", "docs", "outputs"))
    assert archive.stat().st_size < 20 << 20, "Ray takes 512 MB"
    code = (
        "import sys, conclugen, ray_jobs.training.worker, ray_jobs.training.trainer\n"
        "from conclugen.common import commands\n"
        "for name in commands.registered().entries: commands.load(name)\n"
        "mine = ('conclugen', 'shards', 'ray_jobs', 'tuning')\n"
        "files = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in mine and m.__file__]\n"
        "print(len(files), *{f for f in files if not f.startswith(sys.argv[1])})"
    )
    clean = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code, str(copy)]
    ended = subprocess.run(command, cwd=copy, env=clean, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    count, *elsewhere = ended.stdout.split()
    assert int(count) > 100 and not elsewhere


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_finished_run_goes_on_for_an_epoch_when_it_is_submitted(
    reference: PretrainResult, bench: Bench, head: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """With one worker where there were two, in a copy of this repository that Ray makes, on a cluster of its own; in
    a copy of the store, for the run itself is that of other tests too."""
    folder = RunFolder(tmp_path / reference.folder.name)
    shutil.copytree(reference.folder.path, folder.path)
    copied = shutil.copy(bench.reference_store, tmp_path / "copy.db")
    with contextlib.closing(sqlite3.connect(copied)) as store, store:  # its files are to lie beside it, as the run does
        places = (str(bench.base), str(tmp_path))
        store.execute("update runs set artifact_uri = replace(artifact_uri, ?, ?)", places)
        store.execute("update experiments set artifact_location = replace(artifact_location, ?, ?)", places)
    tracking_uri = f"sqlite:///{copied}"
    before = metric_history(folder.journal)["loss"]
    changed = {"pretrain.epochs": "3", "run": folder.name, "run.workers": "1", "tracking-uri": tracking_uri}
    done = submit(head, environment, *flags_of(bench.shards, tmp_path, **changed))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"resuming after step {reference.step}" in done.stdout and "steps done" in done.stdout
    steps = reference.step // 2 * 3
    history = metric_history(folder.journal)["loss"]
    assert history[: reference.step] == before and [step for step, _ in history] == list(range(1, steps + 1))
    client = mlflow.MlflowClient(tracking_uri)
    assert reference.mlflow_run_id is not None
    run = client.get_run(reference.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.data.tags["commit"] == "0123abcd"
    sent = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
    assert sent == list(range(1, steps + 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with its Ray"])
def test_a_run_killed_in_mid_epoch_and_submitted_is_one_finished_run_with_the_same_weights(
    reference: PretrainResult,
    shards: Path,
    head: str,
    environment: dict[str, str],
    tmp_path: Path,
    short_folder: str,
    alone: bool,
) -> None:
    """Killed alone, or with its whole Ray; compared with the run that nothing disturbed, of as many workers."""
    killed = RunFolder(tmp_path / "killed")
    shared = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"} if alone else {}
    interrupted_at = kill_in_mid_epoch(killed, shards, shared or {"RAY_TMPDIR": short_folder})
    assert interrupted_at < reference.step, "the kill came too late to prove anything"

    flags = flags_of(shards, tmp_path)
    done = submit(head, environment, *flags)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "resuming after step" in done.stdout and "steps done" in done.stdout
    assert metric_history(killed.journal)["loss"] == metric_history(reference.folder.journal)["loss"]
    mine, theirs = (CheckpointStore(f.path / "checkpoints").load(reference.step) for f in (killed, reference.folder))
    assert mine.tensors.keys() == theirs.tensors.keys()
    for name, x in theirs.tensors.items():
        assert torch.equal(mine.tensors[name], x), name
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "killed" and run.info.status == "FINISHED" and run.data.tags["commit"] == "0123abcd"
    sent = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
    assert sent == list(range(1, reference.step + 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_one_command_is_submitted_as_it_is_typed(head: str, environment: dict[str, str], tmp_path: Path) -> None:
    """`conclugen run` of features with a label, through to its report."""
    g = np.random.default_rng(0)
    mood, person = np.arange(240) % 3, np.arange(240) // 20
    features = {name: g.standard_normal((240, width)) + mood[:, None] for name, width in (("face", 6), ("voice", 9))}
    names = np.asarray(["calm", "glad", "sad"])[mood]
    np.savez(tmp_path / "mine.npz", **features, mood=names, person=np.char.add("p", person.astype(str)))
    words = ["run", str(tmp_path / "mine.npz"), "--label", "mood", "--group", "person", "--epochs", "2"]
    done = submit(head, environment, *words, "--output", str(tmp_path / "outputs"), module="conclugen")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    folder = tmp_path / "outputs/mine"
    assert "\nnext  " in done.stdout and (folder / "report.html").is_file()
    with np.load(folder / "embeddings.npz", allow_pickle=False) as archive:
        assert len(archive["vectors"]) == 240 and np.isfinite(archive["vectors"]).all()


@pytest.mark.slow
def test_a_submitted_job_that_is_refused_has_failed(head: str, environment: dict[str, str], tmp_path: Path) -> None:
    refused = submit(head, environment, *flags_of(tmp_path / "nowhere", tmp_path))
    assert refused.returncode == 1
    assert "error: " in refused.stdout and str(tmp_path / "nowhere") in refused.stdout
