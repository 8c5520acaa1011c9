"""Which files of tests are nearest to a mutant, told by their imports alone: nothing has to run before.

0: the file's own tests, by name; 1: those that import its module; 2: those of its folder, and those that import a
module which imports it. What a command starts, a worker of Ray, a plug-in is not seen so: a mutant that survives its
nearest tests may still be noticed by others.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

from tests.campaigns.mutation.mutants import PACKAGES


def seconds_of(junit: Path) -> dict[str, dict[str, float]]:
    """Files of tests to the seconds that each of their tests took in a run of the default tests (`--junitxml`)."""
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    for case in ElementTree.parse(junit).iter("testcase"):  # noqa: S314 - pytest wrote it
        parts = (case.get("classname") or "").split(".")
        classes: list[str] = []
        while parts and not parts[-1].startswith("test_"):
            classes.insert(0, parts.pop())
        file = f"{'/'.join(parts)}.py"
        seconds[file]["::".join([file, *classes, case.get("name") or ""])] = float(case.get("time") or 0)
    return dict(seconds)


def imported(path: Path, tree: Path) -> set[str]:
    """The files of `tree` that a module imports, anywhere in it; `from package import module` names the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            stem = name.replace(".", "/")
            found |= {file for file in (f"{stem}.py", f"{stem}/__init__.py") if (tree / file).is_file()}
    return found


def nearest(tree: Path, files: Collection[str]) -> dict[str, dict[str, int]]:
    """Each file of the packages to those of these files of tests that are near it, with their distance."""
    of_packages = {path.relative_to(tree).as_posix(): path for name in PACKAGES for path in (tree / name).rglob("*.py")}
    of_tests = {file: tree / file for file in files if (tree / file).is_file()}
    uses = {file: imported(path, tree) for file, path in (of_packages | of_tests).items()}
    for file in of_tests:  # helpers beside the tests
        helpers = [name for name in uses[file] if name.startswith("tests/")]
        uses[file] = uses[file].union(*(imported(tree / name, tree) for name in helpers))
    importers: dict[str, set[str]] = defaultdict(set)
    for file in of_packages:
        for name in uses[file]:
            importers[name].add(file)
    found: dict[str, dict[str, int]] = {}
    for file in of_packages:
        own = Path("tests", file).with_name(f"test_{Path(file).stem}.py").as_posix()
        found[file] = {}
        for test in of_tests:
            if test == own:
                found[file][test] = 0
            elif file in uses[test]:
                found[file][test] = 1
            elif Path(test).parent == Path("tests", file).parent or uses[test] & importers[file]:
                found[file][test] = 2
    return found
