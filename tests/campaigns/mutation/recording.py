"""Which tests come by which mutant: an instrumented copy of the packages notes it while the tests run once.

Before each statement that holds a mutant stands a call that writes (mutant, time). It works wherever the code runs: in
the test's process, in one that it started, in a worker of Ray.
"""

from __future__ import annotations

import ast
import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.mutation.mutants import Mutant

PROBE = "mutation_probe"
_PROBE_SOURCE = """
import os
from time import time as now

_seen = set()


def _mutation_hit(*mutants):
    at = now()
    new = [m for m in mutants if (m, os.getpid(), os.environ.get("PYTEST_CURRENT_TEST"), int(at * 4)) not in _seen]
    if new:
        _seen.update((m, os.getpid(), os.environ.get("PYTEST_CURRENT_TEST"), int(at * 4)) for m in new)
        file = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, "".join(f"{{m}} {{at!r}}\\n" for m in new).encode())
        os.close(file)
"""


@dataclass(frozen=True)
class TestRun:
    """One test's run: seconds are of the CPU, with the processes that it started and that ended; begin, call and end
    are of the clock."""

    __test__ = False

    test: str
    passed: bool
    seconds: float
    begin: float
    call: float
    end: float


def instrument(tree: Path, mutants: Sequence[Mutant], hits: Path) -> None:
    """Rewrites the files of the mutants in `tree`; what they meet is appended to `hits`."""
    (tree / f"{PROBE}.py").write_text(_PROBE_SOURCE.format(path=str(hits)), encoding="utf-8")
    lines: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, mutant in enumerate(mutants):
        lines[mutant.file][mutant.statement].append(number)
    for file, numbers in lines.items():
        module = ast.parse((tree / file).read_text(encoding="utf-8"))
        _insert(module, numbers)
        first = 0
        while first < len(module.body) and _is_preamble(module.body[first]):
            first += 1
        module.body.insert(first, ast.parse(f"from {PROBE} import _mutation_hit").body[0])
        (tree / file).write_text(ast.unparse(module), encoding="utf-8")


def _is_preamble(node: ast.stmt) -> bool:
    future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
    return future or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _insert(node: ast.AST, numbers: dict[int, list[int]]) -> None:
    for _, value in ast.iter_fields(node):
        if not isinstance(value, list):
            continue
        for i in range(len(value) - 1, -1, -1):
            child = value[i]
            if not isinstance(child, ast.AST):
                continue
            _insert(child, numbers)
            if isinstance(child, ast.stmt) and child.lineno in numbers:
                call = f"_mutation_hit({', '.join(map(str, numbers.pop(child.lineno)))})"
                value.insert(i, ast.parse(call).body[0])


def met(hits: Path, runs: Sequence[TestRun], mutants: Sequence[Mutant]) -> dict[str, list[int]]:
    """Tests of one file to the mutants that they met. What ran while the file was imported, between tests or in a
    fixture's beginning counts for all tests of the file, and so does what runs when a module is imported."""
    found: dict[str, set[int]] = {run.test: set() for run in runs}
    begins = [run.begin for run in runs]
    for number, at in _lines(hits):
        place = bisect.bisect_right(begins, at) - 1
        if place >= 0 and runs[place].call <= at <= runs[place].end and not mutants[number].at_import:
            found[runs[place].test].add(number)
        else:
            for numbers in found.values():
                numbers.add(number)
    return {test: sorted(numbers) for test, numbers in found.items()}


def _lines(hits: Path) -> Iterable[tuple[int, float]]:
    if hits.exists():
        for line in hits.read_text().splitlines():
            number, at = line.split()
            yield int(number), float(at)
