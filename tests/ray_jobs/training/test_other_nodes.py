"""What goes wrong on other nodes comes back as its cause, in one line; a hostname of the loopback interface does no
harm."""

import os
import pickle
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError
from ray.train.torch.config import _TorchBackend

from conclugen import presets
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.run_folder import RunFolder, SupersededError, UnseenFolderError
from ray_jobs.tracking.journal import Journal
from ray_jobs.training import failures, far_folder, ray_internals, trainer
from ray_jobs.training.failures import RunFailedError, cause_of
from ray_jobs.training.far_folder import FarFolder
from shards import CorruptSample

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
    folder.acquire({"a": 1})

    def fit_once(job: PretrainJob, start: Any, train: Any) -> None:
        starts.append(start)
        with pytest.raises(UnseenFolderError) as unseen:
            RunFolder(tmp_path / "other" / "run").check_seen("node b (10.0.0.3), where rank 1 runs,", start.name, 0)
        raise FailedError("what Ray says", {0: RayActorError(), 1: WrappedError(unseen.value)})

    monkeypatch.setattr(trainer, "_fit_once", fit_once)
    monkeypatch.setattr(ray_internals, "cancel_reservation", lambda attempt: None)
    with pytest.raises(RunFailedError) as told:
        trainer.fit(job, folder, 10, {"a": 1})
    assert str(told.value) == (
        "rank 1 of 2, after step 0: UnseenFolderError: node b (10.0.0.3), where rank 1 runs, does not see "
        f"{tmp_path}/other/run: run.output must be a folder that every node reaches under this path; mount it there, "
        "or give run.storage, a location that every node reaches: then no folder need be shared"
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
            monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=7))
            folder.begin_attempt()

    monkeypatch.setattr(time, "sleep", sleep)
    earlier = folder.begin_attempt()  # such as another run on this machine's own disk has left
    folder.check_seen("this node", uuid.UUID(int=7).hex, patience_s=60)
    assert len(waits) == 3
    folder.check_seen("this node", uuid.UUID(int=7).hex, patience_s=0)
    with pytest.raises(UnseenFolderError):
        folder.check_seen("this node", earlier, patience_s=0)


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


class NearHome:
    """The actor beside the job, called at once; what it is given and gives back is copied as on its way."""

    def __init__(self, path: Path) -> None:
        self._home = far_folder._Home(str(path))

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Any:
            return pickle.loads(pickle.dumps(getattr(self._home, name)(*pickle.loads(pickle.dumps(arguments)))))  # noqa: S301 - our own

        return SimpleNamespace(remote=remote)


def test_without_the_folder_lines_come_back_and_what_is_needed_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that a worker does there, by both ways: the same files."""
    monkeypatch.setattr(far_folder, "_APPEARS_WITHIN_S", 0.0)
    monkeypatch.setattr(far_folder.ray, "get", lambda found: found)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=9))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    written = []
    for way in ("near", "far"):
        own = RunFolder(tmp_path / way)
        own.acquire({"a": 1})
        attempt = own.begin_attempt()
        own.save_standardization({"video": (np.arange(3.0), np.ones(3))})
        Journal(own.journal, experiment="e", name="n").close()
        place = own.path if way == "near" else tmp_path / "not-here" / "far"
        folder = far_folder.reach(str(place), attempt, NearHome(own.path), "node b,")
        assert isinstance(folder, FarFolder) == (way == "far")
        moments = folder.load_standardization()
        assert moments is not None
        np.testing.assert_array_equal(moments["video"][0], np.arange(3.0))
        quarantine = folder.quarantine(1)
        quarantine.note(CorruptSample("s", "k", 5, "torn"))
        assert folder.quarantined() == quarantine.take() == [CorruptSample("s", "k", 5, "torn")]
        journal = folder.open_journal()
        assert journal.metrics(1, {"loss": torch.tensor(0.5)}, series="train")
        assert not journal.metrics(1, {"loss": 0.25}, series="train"), "a step that is there already"
        folder.sync_journal()
        beat = failures.Heartbeat(folder.failures, attempt, 1, 2, 60, folder.append)
        with pytest.raises(ValueError, match="wide"), beat:
            raise ValueError("too wide")
        folder.check_attempt(attempt)
        own._attempt.write_text('{"attempt": "later"}')
        with pytest.raises(SupersededError):
            folder.check_attempt(attempt)
        names = sorted(p for p in own.path.rglob("*") if p.is_file() and p.name != ".attempt")
        text = {str(p.relative_to(own.path)): p.read_bytes() for p in names}
        text["failures.jsonl"] = text["failures.jsonl"].split(b'"trace"')[0]
        written.append(text)
    assert written[0] == written[1] and {"journal.jsonl", "failures.jsonl", "quarantine/rank-1.jsonl"} <= set(
        written[0]
    )
    assert not (tmp_path / "not-here").exists()
    with pytest.raises(UnseenFolderError, match=r"does not see .*give run\.storage"):
        far_folder.reach(str(tmp_path / "not-here" / "far"), attempt, None, "node b,")


def test_workers_take_their_address_before_their_process_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    backend = ray_internals.OwnAddressConfig(timeout_s=7).backend_cls()
    monkeypatch.setattr(_TorchBackend, "on_start", lambda self, group, config: done.append(config.timeout_s))
    group = SimpleNamespace(execute=done.append)
    backend.on_start(group, ray_internals.OwnAddressConfig(timeout_s=7))  # type: ignore[arg-type]
    assert done == [ray_internals.take_own_address, 7] and isinstance(backend, _TorchBackend)
