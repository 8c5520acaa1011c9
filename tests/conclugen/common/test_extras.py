"""Which extra brings which library; one line names it where it is missing; nothing is imported that no extra brings."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conclugen.common import extras
from conclugen.common.extras import EXTRA_OF, MissingExtraError
from tests import other_pythons

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("conclugen", "shards", "ray_jobs", "tuning")
# Where the name of a distribution is not that of what is imported.
DISTRIBUTION = {"cv2": "opencv-python-headless", "grpc": "grpcio", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def distribution(library: str) -> str:
    return DISTRIBUTION.get(library, library.replace("_", "-")).lower()


def names(requirements: list[str]) -> set[str]:
    """Names of distributions, without versions; the project's own extras left out."""
    found = {re.split(r"[<>=\[; ]", requirement)[0].lower() for requirement in requirements}
    return found - {"conclugen"}


BASE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}


def test_every_library_stands_in_the_extra_that_is_named() -> None:
    for library, extra in EXTRA_OF.items():
        assert distribution(library) in EXTRAS[extra], (library, extra)


def test_extras_hold_each_other_and_the_tested_versions_fit() -> None:
    from packaging.requirements import Requirement
    from packaging.version import Version

    assert {"media", "offline", "train", "tune", "tracking", "s3", "all"} <= set(EXTRAS)
    assert {"torch", "numpy", "safetensors", "filelock", "pyyaml"} == BASE
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    tested = {line.partition("==")[0].lower(): line.partition("==")[2] for line in lines}
    every = [*PROJECT["dependencies"], *(text for texts in PROJECT["optional-dependencies"].values() for text in texts)]
    for requirement in map(Requirement, every):
        if requirement.name != "conclugen" and requirement.name.lower() in tested:
            assert Version(tested[requirement.name.lower()]) in requirement.specifier, requirement
    assert not any("==" in text for text in every), "versions are pinned in constraints.txt alone"


def imported(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    found: set[str] = set()
    for node in tree:
        if isinstance(node, ast.Import):
            found |= {item.name.partition(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_import_is_of_the_base_or_of_an_extra() -> None:
    known = {*sys.stdlib_module_names, *PACKAGES, *EXTRA_OF}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    foreign = {(path.relative_to(ROOT), name) for path in files for name in imported(path) - known}
    assert {(path, name) for path, name in foreign if distribution(name) not in BASE} == set()
    assert any(name == "torch" for _, name in foreign), "the walk sees imports"


def module_level(path: Path) -> set[str]:
    """Names of modules that an import of this file imports or requires, `a.b` for `from a import b` too."""
    found: set[str] = set()

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(item.name for item in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.update((node.module, *(f"{node.module}.{item.name}" for item in node.names)))
            elif isinstance(node, ast.Expr) and ast.unparse(node).startswith("extras.require("):
                assert isinstance(node.value, ast.Call)
                found.update(str(ast.literal_eval(library)) for library in node.value.args[1:])
            elif isinstance(node, ast.ClassDef | ast.With | ast.Try):
                walk(node.body)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                walk([*node.body, *node.orelse])

    walk(ast.parse(path.read_text()).body)
    return found


def files_of(module: str) -> list[Path]:
    """The repository's files that an import of this module executes, packages included."""
    parts = module.split(".")
    starts = [ROOT.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    found = [path / "__init__.py" for path in starts] + [starts[-1].with_suffix(".py")]
    return [path for path in found if path.is_file()]


def test_light_tests_import_what_the_other_pythons_have() -> None:
    """Those environments lack Ray, MLflow and media: one module-level import of these, however far away, and no
    light test runs there."""
    brought = BASE | EXTRAS["data"] | EXTRAS["evaluation"] | {name.lower() for name in other_pythons.LIBRARIES}
    absent = {library for library in EXTRA_OF if distribution(library) not in brought}
    assert {"ray", "mlflow", "av"} <= absent
    left_out = [ROOT / path for path in other_pythons.LEFT_OUT]
    light = [path for folder in other_pythons.TESTS for path in (ROOT / folder).rglob("*.py")]
    waiting = [path for path in light if not any(path.is_relative_to(place) for place in left_out)]
    came_by: dict[Path, Path | None] = dict.fromkeys(waiting)
    while waiting:
        path = waiting.pop()
        for module in module_level(path):
            if module.partition(".")[0] in absent:
                way, at = [f"{module} by {path.relative_to(ROOT)}"], came_by[path]
                while at is not None:
                    way, at = [*way, str(at.relative_to(ROOT))], came_by[at]
                pytest.fail(" <- ".join(way))
            for file in files_of(module):
                if file not in came_by:
                    came_by[file] = path
                    waiting.append(file)


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in sys.argv[1].split(','):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition('.')[0] in sys.argv[1].split(',') else real(name, package)
)
"""


TRY = """
for code in sys.argv[2:]:
    try:
        exec(code)
        print('nothing raised')
    except Exception as error:
        print(str(error).replace(chr(10), ' // '))
"""
# What is used -> the library that is missed first, and the extra that is named.
USES = {
    "import shards.media.cut": ("av", "media"),
    "from shards.corpus.writing import render": ("av", "media"),
    "import numpy; from shards.media import mel; mel.mel_bands(numpy.zeros(16000, 'float32'))": ("torchaudio", "media"),
    "import shards.reading.ray_source": ("ray", "train"),
    "import ray_jobs.training.trainer": ("ray", "train"),
    "import ray_jobs.extraction.plan": ("ray", "train"),
    "import ray_jobs.plots": ("matplotlib", "train"),
    "from ray_jobs.tracking import mlflow_environment as m; m.prepare_import()": ("mlflow", "tracking"),
    "from conclugen import encoders; encoders.create('resnet152')": ("torchvision", "media"),
    "from conclugen import encoders; encoders.create('text')": ("transformers", "offline"),
    "from conclugen import encoders; encoders.create('distillmos')": ("distillmos", "offline"),
    "from tuning.report import sweep_response; sweep_response.importance(())": ("sklearn", "evaluation"),
}


def said_without(hidden: set[str], *codes: str) -> list[str]:
    """What each piece of code raises in a fresh process that lacks some libraries."""
    command = [sys.executable, "-c", HIDE + TRY, ",".join(hidden), *codes]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("command", "library"),
    [
        ("ray_jobs.build_shards --adapter folder --source . --output out", "ray"),
        ("ray_jobs.extract_features --data . --output out", "ray"),
        ("ray_jobs.embed a.mp4 --run r", "ray"),
        ("ray_jobs.pretrain --data . --run r", "ray"),
    ],
)
def test_a_job_without_its_library_ends_in_one_line(tmp_path: Path, command: str, library: str) -> None:
    """Whatever it would have imported first: status 2, the extra to install, no trace, nothing written."""
    module, *arguments = command.split()
    hidden = HIDE.replace("sys.argv[1]", repr(library))
    run = f"{hidden}\nfrom {module} import main\nsys.exit(main({arguments!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-c", run]
    ended = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert re.search(
        rf'^error: .* needs {library}, not installed: pip install "conclugen\[\w+\]"$', ended.stderr.strip()
    )
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_in_one_line() -> None:
    hidden = {library for library, extra in EXTRA_OF.items() if extra != "data"}
    for said, (code, (library, extra)) in zip(said_without(hidden, *USES), USES.items(), strict=True):
        assert library in said and re.search(rf"pip install .conclugen\[{extra}\]", said), (code, said)
    assert (
        said_without({"xxhash", "h5py"}, "import shards.adapters.mosei", "import shards.planning.plan")
        == ['the data plane needs xxhash, not installed: pip install "conclugen[data]"'] * 2
    )
    assert said_without({"h5py"}, "import shards.adapters.mosei") == [
        'CMU-MOSEI in .csd files needs h5py, not installed: pip install "conclugen[data]"'
    ]


def test_the_core_needs_no_extra() -> None:
    code = "import conclugen; [getattr(conclugen, name) for name in conclugen.__all__]"
    hidden = ",".join(EXTRA_OF)
    subprocess.run([sys.executable, "-c", HIDE + code, hidden], cwd=ROOT, check=True)


def test_errors_are_of_the_kinds_that_callers_catch() -> None:
    with pytest.raises(MissingExtraError, match=r'tuning needs optuna, not installed: pip install "conclugen\[tune\]"'):
        raise extras._missing("tuning", "optuna")
    assert issubclass(MissingExtraError, ValueError) and issubclass(MissingExtraError, ImportError)
    with pytest.raises(ModuleNotFoundError, match="no_such"), extras.needed_for("x"):
        import no_such  # type: ignore[import-not-found]  # noqa: F401
