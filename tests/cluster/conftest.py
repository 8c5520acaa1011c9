"""What the tests of this folder share: one local Ray of exactly two CPUs, one data set, one run that nothing disturbs,
one MLflow server. Each start of a Ray costs some ten seconds, each start of a run as much.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_jobs.training.pretraining import PretrainResult
from tests.campaigns.faults import Bench
from tests.cluster.servers import Gate, mlflow_server

_HERE = Path(__file__).parent
_TIMEOUT_S = 900  # of a test that asks for no other: on a busy machine processes may take minutes to start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """This folder comes first, for it takes longest; of it, tests that share the Ray come before those that start their
    own."""
    items.sort(key=lambda item: (_HERE not in item.path.parents, "shared_ray" not in _fixtures(item)))
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield  # fixtures of the test may still need it
    if "shared_ray" in _fixtures(item) and (nextitem is None or "shared_ray" not in _fixtures(nextitem)):
        ray.shutdown()


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", []))


@pytest.fixture(scope="session")
def _ray_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rc", ignore_cleanup_errors=True) as folder:  # socket paths must be short
        yield folder


@pytest.fixture
def short_folder() -> Iterator[str]:
    """For the Ray of a process that a test starts and kills."""
    with tempfile.TemporaryDirectory(prefix="rk", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def shared_ray(_ray_folder: str) -> None:  # of a module: `ray.shutdown` above may come between two
    """A Ray whose CPUs two workers use up: what a dead controller still held would show.

    Processes of read tasks are kept for the next start, where Ray would let go of all but two (of any kind, for two
    CPUs); as on a user's local Ray, none waits for a notice that the only node will be taken away; and nodes that join
    it (`test_failures.py`) and refuse five checks of their health are given up after 2.5 s instead of 15.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not ray.is_initialized():
        ray.init(
            "local",  # whatever else runs on this machine
            num_cpus=2,
            include_dashboard=False,
            logging_level="warning",
            _temp_dir=_ray_folder,
            _system_config={
                "num_workers_soft_limit": 16,
                "health_check_period_ms": 500,
            },
        )


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The data set, and where runs on it lie: one folder for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bench"
    base.mkdir(exist_ok=True)
    return Bench(base)


@pytest.fixture(scope="session")
def shards(bench: Bench) -> Path:
    return bench.shards


@pytest.fixture(scope="module")
def reference(shared_ray: None, bench: Bench) -> PretrainResult:
    """Two workers that nothing disturbs, and which trace two steps: what each run that met a fault is compared with.
    Whichever process asks first makes it."""
    return bench.reference()


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """An MLflow server that can be made unreachable."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        gate = Gate(url)
        yield gate
        gate.close()
