"""What the README prints can be typed: its ten lines run, its commands parse or run, its folders exist."""

import inspect
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import conclugen
from conclugen import Embedder
from conclugen.common import commands as front
from conclugen.common.options.command import _leaves
from shards import Manifest, View

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# Paragraphs indented by four columns are commands.
PRINTED = "\n".join(line[4:] for line in README.splitlines() if line.startswith("    ")).replace("\\\n", " ")

PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """Arguments of every `conclugen NAME` that is printed."""
    lines = [line.partition(f"conclugen {name} ")[2] for line in PRINTED.splitlines() if f"conclugen {name} " in line]
    return [shlex.split(re.sub(r"\$\(.*?\)", "x", line), comments=True) for line in lines]


@pytest.mark.parametrize("target", ["demo", "test", "install", "reproduce"])
def test_make_installs_extras_that_there_are(target: str) -> None:
    """As `make` would type it: a comma in the arguments of its `call` cut the list of extras off."""
    shown = ["make", "--dry-run", "--always-make", target, "DATA=features"]
    typed = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line for line in typed.stdout.splitlines() if "pip install" in line]
    words = shlex.split(line)
    wanted = re.fullmatch(r"\.\[([a-z0-9,]+)\]", words[words.index("-e") + 1])
    assert wanted is not None, line
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(wanted[1].split(",")) <= set(known)


def test_the_first_screen_has_a_picture_and_python_of_methods_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    first = README.partition("\n## ")[0]
    assert "No weights are shipped" in " ".join(first.split()) and len(first.splitlines()) <= 45
    pictures = re.findall(r"!\[.+\]\((.+)\)", first)
    assert len(pictures) == 1 and (ROOT / pictures[0]).is_file()
    links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", README)
    assert len(links) > 8 and all(link.startswith("https://") or (ROOT / link).is_file() for link in links)
    given: list[object] = []

    def encode(*arguments: Any) -> Any:
        inspect.signature(Embedder.encode).bind(None, *arguments)
        given.extend(arguments)
        return np.zeros((2, 3))

    def load(path: str) -> Any:
        given.append(path)
        return SimpleNamespace(encode=encode)

    monkeypatch.setattr(conclugen, "load", load)
    names: dict[str, Any] = {}
    exec(PYTHON[0], names)  # noqa: S102  the project's own README
    assert given == ["outputs/videos/model", ["a.mp4", "b.mp4"]] and names["vectors"].shape == (2, 3)


def test_the_ten_lines_run() -> None:
    names: dict[str, object] = {}
    exec(PYTHON[1], names)  # noqa: S102  the project's own README
    vectors, losses = names["vectors"], names["losses"]
    assert isinstance(vectors, dict) and {m: x.shape[0] for m, x in vectors.items()} == {"video": 512, "audio": 512}
    assert isinstance(losses, dict) and np.isfinite(float(losses["loss"]))


def test_commands_of_jobs_have_options_that_exist_by_their_names_of_today(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pretrain", "evaluate", "ablate", "sweep", "build", "features", "embed", "controlled"):
        assert commands(name), name
        for arguments in commands(name):
            front.load(name).parse(arguments)
    assert capsys.readouterr().err == ""


def test_own_data_is_packed_split_and_verified_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(60, 4)).astype(np.float32) for name in ("visual", "mfcc", "egemaps")}
    arrays["visual"][7] = np.nan
    names = {"ids": np.array([f"c{i}" for i in range(60)]), "speaker": np.arange(60) // 5, "emotion": np.arange(60) % 3}
    np.savez("features.npz", **arrays, **names)  # type: ignore[arg-type]
    for name in ("check", "pack", "split", "verify"):
        (arguments,) = commands(name)
        assert front.load(name).main(arguments) == 0, arguments
    manifest = Manifest.open("data/mine")
    assert manifest.modalities == {"video": ("visual",), "audio": ("mfcc", "egemaps")}
    assert sum(View.open(manifest, name).rows for name in ("train", "valid", "test")) == 60


def test_folders_modules_and_pages_are_there_and_it_stays_short() -> None:
    for module in re.findall(r"python -m ([\w.]+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    folders = "docs|ray_jobs|shards|tuning|conclugen|tests|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w./]*|\w+\.(?:md|yaml))`", README):
        assert (ROOT / name).exists() or name in ("table.md",), name
    assert len(README.splitlines()) <= 110, "two screens; more belongs into docs/"


PAGES = [ROOT / "README.md", ROOT / "docs/tutorial.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_printed_have_options_that_exist(page: Path) -> None:
    """Of blocks and of code within the text; where something is left out (`...`) the options before it."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = [line[4:] for line in text.splitlines() if line.startswith("    conclugen ")]
    lines = [*blocks, *re.findall(r"`(conclugen [a-z][^`]*)`", text)]
    assert len(lines) >= 4
    for line in lines:
        name, *arguments = shlex.split(line.partition(" ...")[0], comments=True)[1:]
        command = front.load(name)
        words = [word for word in arguments if word.startswith("--") and word not in ("--help", "--config", "--parts")]
        known = {command.option(leaf.name) for leaf in _leaves(command)}
        options = {word.partition("=")[0] for word in words}
        entries = {option for option in options if option.rpartition(".")[0] in known}  # of a mapping: `--data.NAME`
        assert options - entries <= known, line


def test_links_of_the_tutorial_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs/tutorial.md").read_text("utf-8"))
    assert links and all((ROOT / "docs" / link).is_file() for link in links)
