"""What is changed and what is left alone, in a small source; the draw; which tests count as having met a mutant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.mutation import recording
from tests.campaigns.mutation.mutants import PACKAGES, Mutant, draw, mutants_of, shares
from tests.campaigns.mutation.nearest import nearest, seconds_of
from tests.campaigns.mutation.recording import TestRun

SOURCE = '''"""A module."""
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    LIMIT = 1 + 1

__all__ = ["f"]
SIZE = 4


def f(x: int | None, names: list[str], log=None) -> int:
    """Docs."""
    if not names and x is not None:
        raise ValueError(f"names: {1 + 1}")
    total = 0
    total += x
    log.warning("ö")
    names.append("ä")
    best = max(names, key=len, default="")
    only = x - 1
    return total < only if len(best) >= 2 else sorted(names, reverse=True, strict=True)
'''


def changes() -> set[tuple[int, str, str, str]]:
    return {(m.line, m.kind, m.before, m.after) for m in mutants_of("shards/x.py", SOURCE)}


def test_every_kind_of_change_and_nothing_else() -> None:
    found = changes()
    assert {(m[0], m[1], m[3]) for m in found if m[0] < 14} == {(9, "constant", "5"), (9, "constant", "(3)")}
    assert {m[1:] for m in found if m[0] == 14} == {
        ("condition negated", "not names and x is not None", "(not (not names and x is not None))"),
        ("and, or", "not names and x is not None", "(not names or x is not None)"),
        ("not dropped", "not names", "(names)"),
        ("comparison", "x is not None", "(x is None)"),
    }
    assert {m[1:] for m in found if m[0] == 15} == {
        ("statement dropped", 'raise ValueError(f"names: {1 + 1}")', "pass")
    }
    assert {m[1:] for m in found if m[0] == 17} == {
        ("statement dropped", "total += x", "pass"),
        ("arithmetic", "total += x", "total -= x"),
    }
    assert not [m for m in found if m[0] == 18], "a log"
    assert {m[1] for m in found if m[0] == 19} == {"statement dropped"}
    assert {m[1:] for m in found if m[0] == 20} == {
        ("min, max, any, all", "max", "min"),
        ("keyword dropped", 'max(names, key=len, default="")', "(max(names, default=''))"),
    }
    assert ("statement dropped", "total = 0", "pass") in {m[1:] for m in found}, "it has another assignment"
    assert {m[1] for m in found if m[0] == 21} == {"arithmetic", "constant"}, "the only assignment of a name stays"
    assert {(m[1], m[3]) for m in found if m[0] == 22 and m[1] != "condition negated"} == {
        ("result is None", "return None"),
        ("result is an argument", "return x"),
        ("comparison", "(total >= only)"),
        ("boundary", "(total <= only)"),
        ("comparison", "(len(best) < 2)"),
        ("boundary", "(len(best) > 2)"),
        ("constant", "3"),
        ("constant", "(1)"),
        ("constant", "False"),
        ("keyword dropped", "(sorted(names, strict=True))"),
    }


def test_a_change_is_one_place_in_bytes() -> None:
    """Letters of two bytes lie before it."""
    (mutant,) = (m for m in mutants_of("shards/x.py", SOURCE) if m.after == "min")
    changed = mutant.apply(SOURCE.encode()).decode()
    assert changed == SOURCE.replace("max(names", "min(names")


def test_packages_get_their_share_and_a_seed_its_draw(tmp_path: Path) -> None:
    assert shares({"a": 10, "b": 20, "c": 70}, 10) == {"a": 1, "b": 2, "c": 7}
    assert shares({"a": 1, "b": 1, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}
    for package, copies in zip(PACKAGES, (1, 2, 1, 1), strict=True):
        (tmp_path / package).mkdir()
        for number in range(copies):
            (tmp_path / package / f"m{number}.py").write_text(SOURCE)
    first = draw(tmp_path, 10, seed=1)
    assert [m.package for m in first] == ["conclugen"] * 2 + ["shards"] * 4 + ["ray_jobs"] * 2 + ["tuning"] * 2
    assert first == draw(tmp_path, 10, seed=1) != draw(tmp_path, 10, seed=2)
    assert len({(m.file, m.line) for m in first}) == 10


def test_instrumented_code_notes_what_it_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x.py").write_text(SOURCE)
    mutants = sorted(mutants_of("shards/x.py", SOURCE), key=lambda m: (m.line, m.kind, m.after))
    recording.instrument(tmp_path, mutants, tmp_path / "hits")
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "x"}
    code = (tmp_path / "shards" / "x.py").read_text()
    exec(compile(code, "x.py", "exec"), namespace)  # noqa: S102 - the source above
    with pytest.raises(ValueError, match="names: 2"):
        namespace["f"](1, [])  # type: ignore[operator]
    numbers = {int(line.split()[0]) for line in (tmp_path / "hits").read_text().splitlines()}
    assert {mutants[n].line for n in numbers} == {9, 14, 15}


def test_who_has_met_a_mutant(tmp_path: Path) -> None:
    """Within a test's call: that test. While fixtures are made, or of a module's own lines: all tests of the file."""
    runs = [TestRun("a", True, 0.1, begin=10.0, call=11.0, end=12.0), TestRun("b", True, 0.1, 12.0, 13.0, 14.0)]
    of_function = Mutant("shards/x.py", 1, "constant", 0, 1, "1", "2", 1, at_import=False)
    of_module = Mutant("shards/x.py", 2, "constant", 0, 1, "1", "2", 2, at_import=True)
    mutants = [of_function, of_function, of_function, of_module]
    (tmp_path / "hits").write_text("0 11.5\n1 12.5\n2 9.0\n3 11.5\n")
    assert recording.met(tmp_path / "hits", runs, mutants) == {"a": [0, 1, 2, 3], "b": [1, 2, 3]}
    assert recording.met(tmp_path / "none", runs, mutants) == {"a": [], "b": []}


def test_nearest_are_own_tests_then_those_that_import_it(tmp_path: Path) -> None:
    files = {
        "shards/plan.py": "",
        "shards/reader.py": "def f():\n    from shards import plan",
        "tuning/job.py": "import shards.reader",
        "tests/shards/test_plan.py": "",
        "tests/shards/test_other.py": "",
        "tests/tuning/made.py": "from shards.plan import x",
        "tests/tuning/test_a.py": "from tests.tuning import made",
        "tests/tuning/test_b.py": "from shards.reader import f",
        "tests/tuning/test_c.py": "from tuning.job import x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = [name[:-3].replace("/", ".") for name in files if "/test_" in name]
    cases = "".join(
        f'<testcase classname="{name}" name="test_it" time="1.5"/>' for name in [*names, f"{names[0]}.TestClass"]
    )
    (tmp_path / "junit.xml").write_text(f"<testsuites>{cases}</testsuites>")
    seconds = seconds_of(tmp_path / "junit.xml")
    assert seconds["tests/tuning/test_a.py"] == {"tests/tuning/test_a.py::test_it": 1.5} and len(seconds) == len(names)
    assert seconds["tests/shards/test_plan.py"] == {
        "tests/shards/test_plan.py::test_it": 1.5,
        "tests/shards/test_plan.py::TestClass::test_it": 1.5,
    }
    found = nearest(tmp_path, seconds)
    assert found["shards/plan.py"] == {
        "tests/shards/test_plan.py": 0,
        "tests/shards/test_other.py": 2,
        "tests/tuning/test_a.py": 1,
        "tests/tuning/test_b.py": 2,
    }
    assert (
        found["tuning/job.py"]["tests/tuning/test_c.py"] == 1
        and "tests/shards/test_plan.py" not in found["tuning/job.py"]
    )
