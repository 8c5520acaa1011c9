"""`import conclugen` costs nothing: its names load what they need when they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import conclugen

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "ray", "mlflow", "pandas", "pyarrow", "sklearn")


def loaded(code: str) -> set[str]:
    """Those of HEAVY that a fresh process has imported after the code."""
    probe = f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_and_its_ground_floor_import_nothing_heavy() -> None:
    assert loaded("import conclugen") == set()
    everything = "from conclugen.common import atomic, locks, names, screen"
    assert loaded(everything) == set()
    assert "torch" in loaded("from conclugen import Pretrainer")  # the probe sees what is imported


def test_shards_needs_no_torch() -> None:
    modules = "shards, shards.planning.view, shards.format.manifest, shards.planning.plan"
    modules += ", shards.reading.reader, shards.format.writer, shards.reading.stream"
    assert loaded(f"import {modules}") <= {"numpy", "pandas", "pyarrow"}


def test_public_names_are_what_their_modules_hold() -> None:
    for name in conclugen.__all__:
        assert getattr(conclugen, name) is not None
    assert set(conclugen.__all__) <= set(dir(conclugen))
    assert conclugen.load.__module__ == "conclugen.export" and conclugen.Pretrainer.__name__ == "Pretrainer"
    assert conclugen.presets.build("conclugen").global_batch == 4096
    with pytest.raises(AttributeError, match="module 'conclugen' has no attribute 'laod'"):
        _ = conclugen.laod  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'laod'"):
        from conclugen import laod  # type: ignore[attr-defined]  # noqa: F401
