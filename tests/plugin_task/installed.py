"""The package of this folder as if it were installed: metadata made of its pyproject.toml, and where to look for it."""

import os
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def environment(place: Path, *points: str) -> dict[str, str]:
    """Of a process that has the package installed, and others with these further entry points (`name = value`), whose
    metadata lie in `place`."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [f"{name} = {value}" for name, value in project["entry-points"]["conclugen.tasks"].items()]
    _write(place, project["name"], project["version"], listed)
    for number, further in enumerate(points):
        _write(place, f"further-{number}", "1.0", [further])
    paths = [str(place), str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _write(place: Path, name: str, version: str, points: list[str]) -> None:
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    (folder / "entry_points.txt").write_text("\n".join(["[conclugen.tasks]", *points, ""]), "utf-8")
