"""The light tests on the other Pythons: `python tests/other_pythons.py [--venvs FOLDER] [3.12 3.13]`.

For each version that is installed here: an environment of its own (kept, so that the next run starts at once), the
project built and installed with the libraries of its core and data plane, and the tests without Ray and media.
A version that is not installed is named and passed over. The exit status is 1 where a test failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.12", "3.13")
TESTS = ("tests/conclugen", "tests/shards")
# What these tests import besides the extras `data` and `evaluation`.
LIBRARIES = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "pandas", "webdataset")
PROCESSES = ("--numprocesses=logical", "--maxprocesses=4", "--dist=loadfile")
# Of encoders, clips and media, which need further extras, and of the wheel's own making.
LEFT_OUT = (
    "tests/conclugen/encoders",
    "tests/shards/adapters",
    "tests/shards/tools/test_check.py",
    "tests/shards/clips",
    "tests/shards/corpus",
    "tests/shards/media",
    "tests/shards/transcripts",
    "tests/shards/verification/test_verify_clips.py",
    "tests/shards/test_ray_tasks.py",
    "tests/conclugen/common/test_extras.py",
)


def interpreter(version: str) -> str | None:
    """A Python of that version that runs: on the path, or one of pyenv's, whose shims answer for chosen ones alone."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def prepare(python: str, place: Path) -> Path:
    """The environment's Python, with the project's wheel and the libraries."""
    own = place / "bin/python"
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools packs what an earlier build has left there
    if not own.exists():
        subprocess.run([python, "-m", "venv", "--clear", place], check=True)
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, f"{ROOT}[data,evaluation]", *LIBRARIES], check=True)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", ROOT], check=True)
    return own


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venvs", help="folder of the environments (%(default)s)")
    options = parser.parse_args()
    failed = []
    for version in options.versions:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: not installed here, passed over", flush=True)
            continue
        own = prepare(python, options.venvs / version)
        print(f"Python {version}: {own}", flush=True)
        ignored = [f"--ignore={path}" for path in LEFT_OUT]
        tests = [own, "-m", "pytest", "-q", *PROCESSES, "-m", "not slow", *ignored, *TESTS]
        if subprocess.run(tests, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            failed.append(version)
    if failed:
        print(f"failed on Python {' and '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
