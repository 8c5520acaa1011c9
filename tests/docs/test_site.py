"""The site builds without a warning, its reference has every command and every option, and what its pages print can be
typed: commands parse, Python runs, what is packed packs."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conclugen import Pretrainer, export, presets
from conclugen.common import commands
from conclugen.common.options import Command
from conclugen.common.options.command import _leaves
from ray_jobs.tracking.journal import flatten
from shards.__main__ import main as shards_main
from tests import jobs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = sorted(path for path in DOCS.rglob("*.md") if DOCS / "lab" not in path.parents)
NAMES = [path.relative_to(DOCS).as_posix() for path in WRITTEN]
_LEFT_OUT = (
    "...",
    "URL_OF_THE_CPU_BUILDS",
    "FOLDER",
    "SHARDS",
    "NAME",
    "TABLE",
    "CLIP",
    "FEATURES",
    "RUN",
    "DATA",
    "$",
)


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make site` builds it: a warning is an error."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)]
    environment = {"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1", "HOME": str(place), "LANG": "C.UTF-8"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return place


def navigated(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from navigated(value)


def test_the_site_has_every_page_and_fetches_nothing(site: Path) -> None:
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = list(navigated(yaml.safe_load(text)["nav"]))
    assert set(NAMES) | set(hooks().PAGES) == set(listed) and len(listed) == len(set(listed))
    for name in [*listed, *(path.relative_to(DOCS).as_posix() for path in (DOCS / "lab").glob("*.md"))]:
        page = (site / name).with_suffix(".html").read_text("utf-8")
        fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', page)
        assert not [address for address in fetched if "canonical" not in address], (name, fetched)
    assert not (site / "hooks.py").exists() and not list(site.rglob("*.jsonl"))


def test_the_reference_has_every_command_and_every_option(site: Path) -> None:
    found = (site / "reference/commands.html").read_text("utf-8")
    fields = (site / "configuration.html").read_text("utf-8")
    for name in commands.registered().entries:
        assert f'id="{name}"' in found, name
        command = commands.load(name)
        for leaf in _leaves(command):
            if "." not in leaf.name:
                assert f"<code>{command.option(leaf.name)}</code>" in found, (name, leaf.name)
    for name in ("pretrain", "evaluate", "sweep", "ablate"):
        for leaf in _leaves(commands.load(name)):
            if "." in leaf.name:
                assert f"<code>{leaf.name}</code>" in fields, leaf.name
    python = (site / "reference/python.html").read_text("utf-8")
    assert all(f"<code>{name}</code>" in python for name in presets.PRESETS)


def test_the_recipes_differ_in_what_the_page_says_and_in_nothing_else() -> None:
    table = dict.fromkeys(
        re.findall(r"^\| `([\w.]+)` \| `(.+)` \| `(.+)` \|$", (DOCS / "method.md").read_text("utf-8"), re.MULTILINE)
    )
    values = [flatten(presets.build("conclugen", recipe).to_dict()) for recipe in ("paper", "improved")]
    differing = {
        (name, *(str(value[name]) for value in values)) for name in values[0] if values[0][name] != values[1][name]
    }
    assert set(table) == {one for one in differing if one[0] != "recipe"} and len(table) > 20


def test_the_configuration_page_is_that_of_the_code() -> None:
    found = hooks().CONFIGURATION.read_text("utf-8")
    assert found == hooks().configuration_page(), "docs/configuration.md is stale: python -m docs.hooks"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of fenced blocks, and of indented ones, whose language is not told."""
    rest = []
    for number, part in enumerate(re.split(r"^```(.*)$", text, flags=re.MULTILINE)):
        kind = number % 4
        if kind == 0:
            rest.append(part)
        elif kind == 1:
            language = part.strip()
        elif kind == 2:
            yield language, part
    for part in rest:
        code = [line[4:] for line in part.splitlines() if line.startswith("    ")]
        yield "", "\n".join(code)


def typed(path: Path) -> Iterator[list[str]]:
    """The command lines of a page, by words."""
    for language, code in blocks(path.read_text("utf-8")):
        if language in ("", "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                if re.match(r"(conclugen|python -m (ray_jobs|tuning|shards)\b)", line.strip()):
                    yield shlex.split(line.partition(" # ")[0], comments=True)


def command_of(words: list[str]) -> tuple[Command, list[str]] | None:
    """The command that a line types, and its arguments."""
    if words[0] == "conclugen":
        return (jobs.load(words[1]), words[2:]) if not words[1].startswith("-") else None
    module, rest = words[2], words[3:]
    if module == "shards":
        return jobs.load(rest[0]), rest[1:]
    [name] = [name for name in jobs.JOBS if jobs.load(name).name == module]
    return jobs.load(name), rest


# tests/docs/test_extending.py has its package installed.
_ALONE = [path for path in WRITTEN if path.name != "extending.md"]


@pytest.mark.parametrize("path", _ALONE, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_commands_of_a_page_can_be_typed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in typed(path):
        found = command_of(words)
        if found is None:
            continue
        command, arguments = found
        # Words in capitals stand for something; what follows `...` is left out.
        whole = not any(mark in word for word in arguments for mark in _LEFT_OUT) and "--help" not in arguments
        if whole and not [word for word in arguments if word.startswith(("--config", "--plugin"))]:
            command.parse(arguments)
        known = {command.option(leaf.name) for leaf in _leaves(command)} | {"--help", "--help-all", "--config"}
        known |= {f"--{short.replace('_', '-')}" for short in command.short}
        known |= {"--print-config"}
        for word in arguments:
            option = word.partition("=")[0]
            if option.startswith("--"):
                assert option in known or any(option.startswith(f"{name}.") for name in known), (path.name, words)
    assert "note:" not in capsys.readouterr().err, "an option by an old name"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a user has it: a finished run, and what `conclugen run` leaves."""
    monkeypatch.chdir(tmp_path)
    widths = {"video": 6, "audio": 5}
    config = presets.build("contrast_only_video_audio", global_batch=8, epochs=1, model={"representation_dim": 8})
    moments = {m: (np.zeros(w), np.ones(w)) for m, w in widths.items()}
    export.save(tmp_path / "outputs/first/model", Pretrainer(config, widths, 1, moments), {})
    rng = np.random.default_rng(0)
    (tmp_path / "outputs/videos").mkdir()
    np.savez(
        tmp_path / "outputs/videos/embeddings.npz",
        **{"label.emotion": np.array(["calm", "angry"])[np.arange(48) % 2], "keys": np.arange(48).astype(str)},  # type: ignore[arg-type]
        vectors=rng.normal(size=(48, 16)).astype(np.float32),
        groups=np.array([f"s{i // 6}" for i in range(48)]),
    )
    return tmp_path


PROGRAMS = [name for name, path in zip(NAMES, WRITTEN, strict=True) if "```python" in path.read_text("utf-8")]
# Their code needs video files and encoders, or is a package: tests/ray_jobs/embedding, tests/docs/test_extending.py.
_ELSEWHERE = ("encoders.md", "extending.md")


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in _ELSEWHERE])
def test_python_of_a_page_runs(name: str, results: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    programs = [code for language, code in blocks((DOCS / name).read_text("utf-8")) if language == "python"]
    assert programs
    for code in programs:
        exec(compile(code, name, "exec"), names)  # noqa: S102  the project's own pages


def test_own_features_are_packed_as_the_page_says(results: Path) -> None:
    page = DOCS / "how-to/own-features.md"
    [program] = [code for language, code in blocks(page.read_text("utf-8")) if language == "python"]
    exec(compile(program, page.name, "exec"), {})  # noqa: S102
    ran = []
    for words in typed(page):
        if words[1] in ("check", "pack", "split", "verify"):
            assert shards_main(words[1:]) == 0, words
            ran.append(words[1])
    assert ran == ["check", "pack", "split", "verify"]


def test_what_pages_name_of_the_repository_is_there() -> None:
    folders = "docs|ray_jobs|shards|tuning|conclugen|tests|benchmarks|deploy"
    for path in [*WRITTEN, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))]:
        for name in re.findall(rf"`((?:{folders})/[\w./*-]*\w)`", path.read_text("utf-8")):
            assert list(ROOT.glob(name)), (path.name, name)
