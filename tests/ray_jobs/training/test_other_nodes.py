"""What goes wrong on other nodes comes back as its cause, in one line; a hostname of the loopback interface does no
harm."""

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError

from conclugen import presets
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder, UnseenFolderError
from ray_jobs.training import failures, ray_internals, trainer
from ray_jobs.training.failures import RunFailedError, cause_of

GLOO = """Training failed due to controller error:
\x1b[36mray::execute._setup_torch_process_group()\x1b[39m (pid=4711, ip=10.0.0.3, actor_id=0123456789abcdef)
  File "/env/ray/train/torch/config.py", line 160, in _setup_torch_process_group
    dist.init_process_group(
ValueError: an earlier one, of which the next came

During handling of the above exception, another exception occurred:

  File "/env/torch/distributed/distributed_c10d.py", line 1800, in init_process_group
    backend_class = ProcessGroupGloo(
RuntimeError: Gloo connectFullMesh failed with timed out, remote=[127.0.0.1]:4123
  and it said more"""


class FailedError(TrainingFailedError):
    def __init__(self, message: str, worker_failures: dict[int, Exception]) -> None:
        super().__init__(message)
        self.worker_failures = worker_failures


class WrappedError(Exception):
    """As Ray hands over what a worker raised."""

    def __init__(self, own: Exception) -> None:
        super().__init__(f"Traceback (most recent call last):\n  File x\n{type(own).__name__}: {own}")
        self._base_exc = own


def test_the_cause_stands_last_and_is_kept() -> None:
    gloo = "RuntimeError: Gloo connectFullMesh failed with timed out, remote=[127.0.0.1]:4123 and it said more"
    assert cause_of(GLOO) == gloo
    assert failures.describe([], RuntimeError(GLOO), 0) == f"after step 0: RuntimeError: {gloo}"
    assert cause_of("no traceback\nbut OSError: in it") == "no traceback but OSError: in it"
    long = cause_of("x" * 5000 + " the end")
    assert len(long) < 700 and long.startswith("...x") and long.endswith(" the end")
    assert cause_of("") == ""


def test_a_node_that_does_not_see_the_folder_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could write nothing down there; Ray hands its exception over. Restarts would meet it again."""
    job = PretrainJob(
        presets.build("contrast_only"), DataConfig("/nowhere"), RunConfig("run", str(tmp_path), workers=2)
    )
    folder, starts = RunFolder(tmp_path / "run"), []
    folder.claim({"a": 1})

    def fit_once(job: PretrainJob, start: Any, train: Any) -> None:
        starts.append(start)
        with pytest.raises(UnseenFolderError) as unseen:
            RunFolder(tmp_path / "other" / "run").check_seen("node b (10.0.0.3), where rank 1 runs,", patience_s=0)
        raise FailedError("what Ray says", {0: RayActorError(), 1: WrappedError(unseen.value)})

    monkeypatch.setattr(trainer, "_fit_once", fit_once)
    monkeypatch.setattr(ray_internals, "cancel_reservation", lambda attempt: None)
    with pytest.raises(RunFailedError) as told:
        trainer.fit(job, folder, 10, {"a": 1})
    assert str(told.value) == (
        "rank 1 of 2, after step 0: UnseenFolderError: node b (10.0.0.3), where rank 1 runs, does not see "
        f"{tmp_path}/other/run: run.output must be a folder that every node reaches under this path; mount it there, "
        "or give another run.output (checkpoints alone can lie elsewhere: run.storage)"
    )
    assert len(starts) == 1


def test_what_was_written_down_counts_more_than_what_is_handed_over() -> None:
    error = FailedError(
        "x", {0: WrappedError(OSError("no route")), 1: WrappedError(ValueError("width 3")), 2: RayActorError()}
    )
    found = failures.handed_over(error, "a", 3, 7)
    assert [(f.rank, f.error, f.fatal) for f in found] == [(0, "OSError", False), (1, "ValueError", True)]
    assert str(failures.most_telling(found)[0]) == "rank 1 of 3, after step 7: ValueError: width 3"
    assert failures.handed_over(RuntimeError("no ranks"), "a", 3, 7) == []


def test_a_shared_folder_may_take_seconds_to_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, waits = RunFolder(tmp_path), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            folder.begin_attempt()

    monkeypatch.setattr(time, "sleep", sleep)
    folder.check_seen("this node", patience_s=60)
    assert len(waits) == 3
    folder.check_seen("this node", patience_s=0)


def test_gloo_takes_connections_at_the_node_s_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = next(
        name for name, has in psutil.net_if_addrs().items() if any(each.address == "127.0.0.1" for each in has)
    )
    assert ray_internals.interface_of("127.0.0.1") == loopback
    assert ray_internals.interface_of("203.0.113.9") is None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    ray_internals.take_own_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine", "what the user has set holds"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    ray_internals.take_own_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.9")
    ray_internals.take_own_address()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
