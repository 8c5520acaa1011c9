"""The wheel is whole: built, installed into a fresh environment, and walked from rendered video to a probed model."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("conclugen", "shards", "ray_jobs", "tuning")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of what git knows: setuptools packs whatever an earlier build has left in the clone.
    copy = folder / "copy"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True)
    [path] = folder.glob("conclugen-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert {name.partition(".dist-info/")[2] for name in names} >= {"licenses/LICENSE", "licenses/CITATION.cff"}
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    assert held == set(listed.stdout.split())
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert {"ray_jobs/runtime_env.yaml", "tuning/report/report.css", "tuning/report/report.html"} <= held


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """A new environment holds the wheel; its libraries are those of this one, so that nothing is downloaded."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin/python"
    site = place / f"lib/python{sysconfig.get_python_version()}/site-packages"
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # what pip does with a pure wheel
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    where = subprocess.run(
        [python, "-c", "import conclugen, shards, ray_jobs, tuning as t; print(conclugen.__file__, t.__file__)"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(path.startswith(str(site)) for path in where.stdout.split())
    small = ["--speakers", "6", "--takes", "1", "--epochs", "2", "--global-batch", "12"]
    demo = [python, "-m", "ray_jobs.demo", "--output", str(tmp_path / "demo"), *small]
    done = subprocess.run(demo, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "demo").rglob("model/model.safetensors"))
    assert list((tmp_path / "demo").rglob("scores.json"))
