"""Fixtures shared by the whole suite, and who runs what where pytest-xdist runs it."""

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clock import Clock
from tests.ray_of_tests import RAY_OF_TESTS

_REPOSITORY = Path(__file__).resolve().parent.parent
for _name, _value in RAY_OF_TESTS.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for `time.sleep`, `perf_counter` and `monotonic`, for code that runs in one thread."""
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, clock.read)
    return clock


def pytest_sessionstart(session: pytest.Session) -> None:
    """Each process of pytest-xdist imports the test files from another place on. All of them import all files; begun at
    the same file, each would compile every one of them itself in a fresh clone, a quarter of a minute of work."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not number or session.config.args != session.config.getini("testpaths"):
        return
    files = sorted((_REPOSITORY / "tests").rglob("test_*.py"))
    first = len(files) * int(number) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in files[first:] + files[:first]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # told when the file is collected
            importlib.import_module(".".join(path.relative_to(_REPOSITORY).with_suffix("").parts))


# Of the files that one process has to itself, the longest: begun first, for one that begins last goes on alone.
_LONGEST = (
    "tests/ray_jobs/embedding/test_embed.py",
    "tests/conclugen/test_compilation.py",
    "tests/tuning/report/test_report.py",
    "tests/ray_jobs/test_plots.py",
    "tests/conclugen/common/test_commands.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order in which processes take files: `tests/cluster`, `tests/distributed`, the longest, the others."""
    first = ("tests/cluster/", "tests/distributed/", *_LONGEST)
    items.sort(key=lambda item: next((n for n, place in enumerate(first) if item.nodeid.startswith(place)), len(first)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes more than there are cores: those that have `tests/cluster` wait for Ray half of the time."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process has `tests/cluster`, one test after the other, for they share a Ray whose CPUs they use up; a second
    one has its longest file, with a Ray of its own, and in the slow run a third and a fourth one have the next longest.
    All begin at once, for they take longest (`tests/cluster/conftest.py` puts them first). Meanwhile the others have
    the remaining files one by one, and `tests/distributed`, whose files share their ranks, in one piece.
    """
    from xdist.scheduler import LoadScopeScheduling

    pieces = [("tests/cluster/test_failures.py",), ("tests/cluster/",), ("tests/distributed/",)]
    if "not slow" not in config.option.markexpr:
        longest = ("object_store", "pretrain_storage", "soak", "sweep")
        pieces.insert(1, tuple(f"tests/cluster/test_{name}.py" for name in longest))
        pieces.insert(2, ("tests/cluster/test_preemption.py",))

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return next((piece[0] for piece in pieces if path.startswith(piece)), path)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[Any]:
    """Pictures are written with nothing on them, for drawing takes long: of tests that look at what stands beside them.
    A test among these that looks at a picture asks for `drawn_pictures`."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        draw = Figure.draw
        patch.setattr(Figure, "draw", lambda *_: None)
        yield draw


@pytest.fixture
def drawn_pictures(blank_pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.draw", blank_pictures)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `ravdess_features.npz`, `mosi_features.npz` and `clips/`; skips where it is missing."""
    folder = Path(os.environ.get("CONCLUGEN_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not (folder / "ravdess_features.npz").is_file():
        pytest.skip(f"real feature sets not found in {folder}; set CONCLUGEN_DATA to the folder that holds them")
    return folder
