"""docs/architecture.md is about this code: each function of its walks exists, and neighbours know each other."""

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
PARTS = [part.partition("\n")[::2] for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]]
STOP = re.compile(r"^\d+\. (?:`([\w/.]+\.py):([\w.]+)`|[^`\n]*\.$)", re.MULTILINE)
# A line without a function is what lies between two processes.
WALKS = {title: STOP.findall(part) for title, part in PARTS}


def defined(path: str) -> set[str]:
    """Functions and classes of a file, members as Class.member."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    visit(ast.parse((ROOT / path).read_text("utf-8")), "")
    return found


def mentions(path: str, name: str) -> bool:
    """Whether the code of a file names a function or, for a constructor or the call of a module, its class."""
    *holder, last = name.split(".")
    wanted = {"__init__": holder, "forward": ["self.tasks", *holder]}.get(last, [last])
    code = (ROOT / path).read_text("utf-8")
    return any(re.search(rf"\b{re.escape(word)}\b", code) for word in wanted)


def test_there_are_three_walks_of_numbered_lines() -> None:
    assert list(WALKS) == ["A batch", "A configuration value", "A metric"]
    for title, part in PARTS:
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", part, re.MULTILINE)]
        assert numbers == list(range(1, len(WALKS[title]) + 1)) and len(numbers) > 9, title


@pytest.mark.parametrize("walk", WALKS)
def test_every_stop_exists_and_neighbours_name_each_other(walk: str) -> None:
    stops = WALKS[walk]
    for path, name in filter(all, stops):
        assert name in defined(path), f"{path} defines no {name}: mend docs/architecture.md"
    for (path, name), (following, next_name) in itertools.pairwise(stops):
        known = not (path and following) or mentions(path, next_name) or mentions(following, name)
        assert known, f"{path}:{name} and {following}:{next_name} do not name each other: mend docs/architecture.md"


def test_files_and_folders_of_the_page_are_there() -> None:
    named = set(re.findall(r"`((?:conclugen|shards|ray_jobs|tuning|tests|benchmarks|deploy)/[\w/]*(?:\.py)?)`", PAGE))
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).exists()]
