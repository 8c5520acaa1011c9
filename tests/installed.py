"""A package outside the project as if it were installed: its metadata, and where processes look for it."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(package: Path, place: Path, *points: str) -> dict[str, str]:
    """Of a process that has the package of a folder installed, and others with these further entry points of its first
    group (`name = value`), whose metadata lie in `place`."""
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {
        group: [f"{name} = {value}" for name, value in own.items()] for group, own in project["entry-points"].items()
    }
    _write(place, project["name"], project["version"], groups, project.get("description", ""))
    for number, further in enumerate(points):
        _write(place, f"further-{number}", "1.0", {next(iter(groups)): [further]})
    paths = [str(place), str(package), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _write(place: Path, name: str, version: str, groups: dict[str, list[str]], summary: str = "") -> None:
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + f"Summary: {summary}\n" * bool(summary)
    (folder / "METADATA").write_text(told, "utf-8")
    points = "\n".join("\n".join([f"[{group}]", *points, ""]) for group, points in groups.items())
    (folder / "entry_points.txt").write_text(points, "utf-8")
