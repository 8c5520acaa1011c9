"""The pretraining job through `ray job submit`, as on a cluster: uploaded copy, exit status, one MLflow run."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.feature_corpus import write_corpus

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The job's `python` is the PATH's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "PATH": f"{RAY.parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """A head node of its own; its dashboard's address."""
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="rj", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(RAY), "start", "--head", "--block", "--num-cpus=6", f"--port={free_port()}"),
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
        address = f"http://127.0.0.1:{dashboard}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=1)  # noqa: S310
                break
            except urllib.error.HTTPError:
                break  # it answers, and wants the token
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.25)
        else:
            pytest.fail(f"the head's dashboard did not answer: {log.read_text()}")
        yield address
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        for candidate in psutil.process_iter(["cmdline"]):  # what the head started, by its folder
            if any(folder in argument for argument in candidate.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    candidate.kill()
        process.wait(timeout=10)


def submit(head: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(str(RAY), "job", "submit", "--address", head, "--working-dir", "."),
        *("--runtime-env", "ray_jobs/runtime_env.yaml", "--", "env", "CONCLUGEN_COMMIT=0123abcd"),
        *("python", "-m", "ray_jobs.pretrain", *arguments),
    ]
    for _ in range(20):
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=150)
        if "No available agent to submit job" not in done.stderr:
            return done
        time.sleep(1)  # the head answers before its agent has come up
    return done


@pytest.mark.timeout(400)
def test_a_submitted_job_is_one_finished_run(head: str, environment: dict[str, str], tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards", speakers=6, takes=6)
    small = {
        "pretrain.global_batch": "48",
        "pretrain.epochs": "3",
        "pretrain.model.representation_dim": "16",
        "pretrain.model.projection_dim": "8",
        "pretrain.model.reconstruction_hidden_dim": "16",
        "pretrain.tasks.clustering.clusters": "4",
        "data.folder": str(tmp_path / "shards"),
        "run.name": "submitted",
        "run.output": str(tmp_path / "outputs"),
        "run.workers": "2",
    }
    flags = [text for name, value in small.items() for text in (f"--{name}", value)]
    done = submit(head, environment, *flags)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "steps done" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["commit"] == "0123abcd"

    refused = submit(head, environment, *flags, "--pretrain.seed", "5")
    assert refused.returncode == 1
    assert "seed: 127 then, 5 now" in refused.stdout
