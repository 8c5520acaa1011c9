"""Nothing in data is executed: forbidden calls are in no source file, and files made to run code do not run it."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from conclugen import export
from conclugen.common.options import OptionsError, strict_yaml
from conclugen.encoders import weights
from conclugen.export import ExportError
from conclugen.training import checkpoint
from conclugen.training.checkpoint import CheckpointError
from shards import Manifest, ManifestError, Reader, ShardError, View
from shards.format.tables import read_table
from shards.packing.sample_table import SampleTable
from shards.packing.source import open_source
from shards.webdataset_import.command import index_folder
from tests.campaigns.shard_fuzz.bombs import bomb
from tests.campaigns.shard_fuzz.judge import bounded
from tests.conclugen.runs import fresh, rows, small_config
from tests.shards.webdataset_import.plain_tars import plain_members, write_tar

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conclugen", "shards", "ray_jobs", "tuning", "benchmarks")

# Full names; a module stands for all that is in it.
FORBIDDEN = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "ray.cloudpickle", "joblib", "shelve", "marshal",
    "jsonpickle",
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package", "torch.serialization.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader",
    "numpy.fromregex", "pandas.read_pickle", "pandas.read_hdf", "pandas.eval", "mlflow.pytorch", "mlflow.sklearn",
    "torch.distributed.all_gather_object", "torch.distributed.gather_object", "torch.distributed.broadcast_object_list",
    "torch.distributed.scatter_object_list", "runpy", "pty", "code", "builtins",
    "os.execl", "os.execle", "os.execlp", "os.execlpe", "os.execv", "os.execve", "os.execvp", "os.execvpe",
    "os.spawnl", "os.spawnle", "os.spawnlp", "os.spawnlpe", "os.spawnv", "os.spawnve", "os.spawnvp", "os.spawnvpe",
    "os.posix_spawn", "os.posix_spawnp", "asyncio.create_subprocess_shell",
    "eval", "exec", "compile", "__import__", "types.FunctionType", "types.CodeType",
    "importlib.import_module", "importlib.__import__", "importlib.util.spec_from_file_location", "importlib.machinery",
    "multiprocessing.reduction",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "tarfile.extractall", "zipfile.extractall", "shutil.unpack_archive",
    "ray.tune.Tuner.restore", "ray.train.torch.TorchTrainer.restore", "ray.tune.Trial.restore",
}  # fmt: skip
ARRAY_READERS = {"numpy.load", "numpy.lib.format.read_array"}  # to be called with allow_pickle=False, and no other way
BUILTINS = {"eval", "exec", "__import__"}
# Methods that are forbidden whatever they are called on; `restore` where the object's name says Trial or Tuner.
METHODS = {"extractall", "read_pickle", "to_pickle"}
# (file, name): why it may stand there. An entry that nothing needs any more is an error.
ALLOWED = {
    (
        "conclugen/encoders/weights.py",
        "torch.load",
    ): "weights_only=True, for published weights that exist as .pth only",
    ("conclugen/__init__.py", "importlib.import_module"): "one of the modules that hold its public names",
    ("conclugen/encoders/__init__.py", "importlib.import_module"): "one of the encoders' modules that it lists",
    ("conclugen/encoders/registry.py", "importlib.import_module"): "the encoders' modules, and --plugin of a user",
    ("shards/transcripts/recogniser.py", "importlib.import_module"): "one of the recognisers' modules that it lists",
    ("shards/adapters/__init__.py", "importlib.import_module"): "one of the adapters' modules that it lists",
    ("shards/__init__.py", "importlib.import_module"): "one of the modules that hold its public names",
    ("conclugen/common/deferred.py", "importlib.import_module"): "libraries and modules that a source file names",
    ("conclugen/common/plugins.py", "importlib.import_module"): "the files of a folder of the project's own",
    ("ray_jobs/doctor.py", "importlib.import_module"): "one of the libraries that it lists",
    ("shards/commands.py", "importlib.import_module"): "one of the commands' modules that it lists",
    ("benchmarks/readers/peers.py", "extractall"): "the benchmark's own archive, with filter='data'",
}


def names_of(tree: ast.Module) -> dict[str, str]:
    """Local name -> full name, of what a module imports."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                known[item.asname or item.name.split(".")[0]] = item.name if item.asname else item.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for item in node.names:
                known[item.asname or item.name] = f"{node.module}.{item.name}"
    return known


def full_name(node: ast.expr, known: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = full_name(node.value, known)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def is_forbidden(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in FORBIDDEN for n in range(1, len(parts) + 1))


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def faults(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every forbidden import, name and call in a module."""
    tree = ast.parse(source)
    known = names_of(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names if is_forbidden(item.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (
                (node.lineno, f"{node.module}.{item.name}")
                for item in node.names
                if is_forbidden(f"{node.module}.{item.name}")
            )
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, name) for name in _call_faults(node, known))
        elif isinstance(node, ast.Attribute):
            name = full_name(node, known)
            if name is not None and (name in FORBIDDEN or (name in ARRAY_READERS and id(node) not in called)):
                yield node.lineno, name
        elif isinstance(node, ast.Name) and node.id in BUILTINS and id(node) not in called:
            yield node.lineno, node.id


def _call_faults(call: ast.Call, known: dict[str, str]) -> Iterator[str]:
    name = full_name(call.func, known)
    if isinstance(call.func, ast.Name) and name in FORBIDDEN and name == call.func.id:
        yield name  # a builtin
    if isinstance(call.func, ast.Attribute):
        method, owner = call.func.attr, ast.unparse(call.func.value).lower()
        if method in METHODS:
            yield method
        if method == "restore" and any(word in owner for word in ("trial", "tuner", "trainer")) and "pre" not in owner:
            yield "Trial/Tuner.restore"
    if name in ARRAY_READERS and not is_constant(keyword(call, "allow_pickle"), False):
        yield f"{name} without allow_pickle=False"
    pickling = keyword(call, "allow_pickle")
    if name not in ARRAY_READERS and pickling is not None and not is_constant(pickling, False):
        yield f"{name} with allow_pickle"
    if name == "getattr" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
        asked = f"{full_name(call.args[0], known)}.{call.args[1].value}"
        if asked in ARRAY_READERS or is_forbidden(asked):
            yield asked
    if (shell := keyword(call, "shell")) is not None and not is_constant(shell, False):
        yield "shell=True"
    if (trust := keyword(call, "trust_remote_code")) is not None and not is_constant(trust, False):
        yield "trust_remote_code"


def test_no_forbidden_call_stands_in_the_project() -> None:
    found: dict[tuple[str, str], list[int]] = {}
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    for path in files:
        for line, name in faults(path.read_text(encoding="utf-8")):
            found.setdefault((path.relative_to(ROOT).as_posix(), name), []).append(line)
    assert {place: lines for place, lines in found.items() if place not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found), "an entry of the allow-list is not needed any more: remove it"
    source = (ROOT / "conclugen/encoders/weights.py").read_text()
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert calls and all(is_constant(keyword(call, "weights_only"), True) for call in calls)
    source = (ROOT / "benchmarks/readers/peers.py").read_text()
    assert source.count("extractall(") == source.count('filter="data")') == 1


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import pickle as p", "from ray import cloudpickle",
        "import joblib.numpy_pickle", "import torch\ntorch.load('x')", "from torch import load as l\nl('x')",
        "import torch as t\nt.save(1, 'x')", "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)",
        "import yaml\nclass L(yaml.Loader): pass", "from yaml import unsafe_load", "eval('1')", "exec('1')",
        "compile('1', 'x', 'eval')", "__import__('os')", "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)", "import numpy\nnumpy.load('x', allow_pickle=some)",
        "import os\nos.system('x')", "from os import system", "import subprocess\nsubprocess.run('x', shell=True)",
        "tar.extractall()", "Tuner.restore('x')", "self.trial.restore('x')", "import pandas as pd\npd.read_pickle('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)", "import shelve", "import marshal",
        "from torch import distributed\ndistributed.all_gather_object(x, y)",
        "import mlflow\nmlflow.sklearn.load_model('x')", "f = eval", "map(exec, x)", "import builtins",
        "import torch\ngetattr(torch, 'load')('x')", "import numpy as np\nread = np.load\nread('x')",
        "import numpy as np\nnp.lib.npyio.NpzFile('x', allow_pickle=True)",
        "import importlib\nimportlib.import_module(x)",
        "from importlib import import_module", "import os\nos.execl('x')", "import os\nos.posix_spawn('x')",
        "import types\ntypes.FunctionType(c, {})", "from multiprocessing.reduction import ForkingPickler",
        "import importlib.util\nimportlib.util.spec_from_file_location('a', 'b')",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(faults(source))


def test_the_search_lets_the_rest_pass() -> None:
    source = (
        "import numpy as np, re, yaml\nfrom . import pickle_free\nnp.load('x', allow_pickle=False)\nre.compile('x')\n"
        "model.eval()\nstate.restore(pretrainer)\nyaml.safe_load('x')\nself.weighting.restore(x)\ncode.exec_module(x)\n"
        "import subprocess\nsubprocess.run(['x'], shell=False)"
    )
    assert list(faults(source)) == []


# ---- files made to harm --------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes the file `executed` in the current folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists(), "a payload was executed"


def test_the_payload_would_run(tmp_path: Path) -> None:
    """The proof that the tests below could fail."""
    pickle.loads(pickle.dumps(Payload()))  # noqa: S301
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()


def objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Payload()], dtype=object), allow_pickle=True)
    return file.getvalue()


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": Payload()}, file)
    return file.getvalue()


def safetensors(header: dict[str, object] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**fields: object) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **fields}}


TENSOR_FILES = {
    "pickle": pickle.dumps(Payload()),
    "torch": torch_file(),
    "empty": b"",
    "header of 2^63 bytes": safetensors(one(), b"1234", 2**63 - 1),
    "header longer than the file": safetensors(one(), b"1234", 10_000),
    "shape of 2^60": safetensors(one(shape=[2**60]), b"1234"),
    "shape that overflows": safetensors(one(shape=[2**40, 2**40]), b"1234"),
    "offsets outside": safetensors(one(data_offsets=[0, 2**40], shape=[2**38]), b"1234"),
    "offsets backwards": safetensors(one(data_offsets=[4, 0]), b"1234"),
    "hole": safetensors(one(data_offsets=[4, 8]), b"12345678"),
    "nested without end": safetensors(b"[" * 200_000),
    "unknown type": safetensors(one(dtype="O"), b"1234"),
    "path as name": safetensors({"../../escaped": one()["x"]}, b"1234"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pretrainer = fresh(small_config("contrast_only"))
    pretrainer.step(rows(0))
    checkpoint.save(folder / "checkpoint", pretrainer, {"epoch": 0, "step": 1}, {})
    export.save(folder / "model", pretrainer)
    return folder


Loader = tuple[str, Callable[[Path], object], type[ValueError], str, str]
LOADERS: list[Loader] = [
    ("checkpoint", checkpoint.load, CheckpointError, checkpoint.TENSORS, checkpoint.DOCUMENT),
    ("model", export.load, ExportError, export.TENSORS, export.DOCUMENT),
]


def copied(saved: Path, name: str, to: Path) -> Path:
    to.mkdir()
    for path in (saved / name).iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("loader", LOADERS, ids=[loader[0] for loader in LOADERS])
@pytest.mark.parametrize("data", TENSOR_FILES.values(), ids=TENSOR_FILES)
def test_hostile_tensor_files(saved: Path, tmp_path: Path, loader: Loader, data: bytes) -> None:
    name, load, error, tensors, _ = loader
    folder = copied(saved, name, tmp_path / "x")
    before = {path.name for path in tmp_path.rglob("*")}
    (folder / tensors).write_bytes(data)
    with pytest.raises(error, match=tensors):
        load(folder)
    assert {path.name for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("loader", LOADERS, ids=[loader[0] for loader in LOADERS])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        *("[]", "null", "9" * 10_000, '{"schema": {"__reduce__": 1}}', "\xff", ""),
    ],
    ids=["nested lists", "nested objects", "list", "null", "long number", "another schema", "not UTF-8", "empty"],
)
def test_hostile_documents(saved: Path, tmp_path: Path, loader: Loader, text: str) -> None:
    name, load, error, _, document = loader
    folder = copied(saved, name, tmp_path / "x")
    (folder / document).write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=document):
        load(folder)


@pytest.mark.parametrize("loader", LOADERS, ids=[loader[0] for loader in LOADERS])
def test_links_and_pipes_in_place_of_files(saved: Path, tmp_path: Path, loader: Loader) -> None:
    """A link may stand for the file (it is only read, and its digest is checked); to anything else it is refused."""
    name, load, error, tensors, document = loader
    folder = copied(saved, name, tmp_path / "x")
    (tmp_path / "secret").write_bytes(b"root:x:0:0")
    (folder / tensors).unlink()
    (folder / tensors).symlink_to(tmp_path / "secret")
    with pytest.raises(error, match=tensors):
        load(folder)
    (folder / tensors).unlink()
    (folder / tensors).symlink_to(folder / "nowhere")
    with pytest.raises(error, match=tensors):
        load(folder)
    for file in (tensors, document):  # the document is looked at first
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)):
            (folder / file).unlink()
            make(folder / file)
            with bounded(10, 1 << 29), pytest.raises(error, match=f"{file}: can't be read"):
                load(folder)
    (folder / document).unlink()
    with (folder / document).open("wb") as sparse:
        sparse.truncate(1 << 40)
    with bounded(10, 1 << 29), pytest.raises(error, match=f"{document}: can't be read"):
        load(folder)


@pytest.mark.parametrize("data", [pickle.dumps(Payload()), torch_file(), objects(), gzip.compress(bytes(1 << 20))])
def test_hostile_weights_of_encoders(tmp_path: Path, data: bytes) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(weights.WeightsError, match=name):
            weights.read(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "x: !!python/object/apply:pathlib.Path.touch [executed]",
        "x: !!python/object:tests.test_nothing_executes.Payload {}",
        "x: !!python/name:os.system",
        "!!python/object/new:os.system [touch executed]",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "model:\n  class_path: os.system\n  init_args: {command: touch executed}",
    ],
)
def test_hostile_configurations(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(OptionsError, match=r"run\.yaml:\d.*(refused|names code)"):
        strict_yaml.load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x: " + "[" * 100_000, r"run\.yaml:1: is nested more than 50 deep"),
        ("\n".join(" " * i + "a:" for i in range(200)), r"run\.yaml:5\d: is nested more than 50 deep"),
        ("x: " + "9" * 10_000, r"run\.yaml: cannot be read: .*digits"),
        ("? [a, b]\n: 1", r"run\.yaml:1: the name of a field is a list or a mapping"),
        ("x: " + "y" * (1 << 20), r"run\.yaml: has more than 1048576 bytes"),
    ],
    ids=["nested lists", "nested mappings", "long number", "a list as a name", "huge"],
)
def test_configurations_that_would_take_for_ever_or_break_the_reader(tmp_path: Path, text: str, told: str) -> None:
    """Nested lists of 100 kB took more than three minutes."""
    (tmp_path / "run.yaml").write_text(text)
    with bounded(10, 1 << 29), pytest.raises(OptionsError, match=told):
        strict_yaml.load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1, 2\nb: 3\n", "2:2: no valid YAML: while parsing a flow sequence (line 1, column 4): expected ',' or "
         "']', but got ':'"),
        ("a: 1\n b: 2\n", "2:3: no valid YAML: mapping values are not allowed here"),
        ("a: 'x\n", "2:1: no valid YAML: while scanning a quoted scalar (line 1, column 4): found unexpected end of "
         "stream"),
        ("a: 1\nbc\x07: 2", "2:3: no valid YAML: found character '\\x07'; remove it"),
        ("\x07", "1:1: no valid YAML: found character '\\x07'; remove it"),
        ("a: 1\n--- b", "2:1: no valid YAML: expected a single document in the stream (line 1, column 1): but found "
         "another document"),
        ("%YAML 3.0\n---\na: 1", "1:1: no valid YAML: found incompatible YAML document (version 1.* is required)"),
        ("a: &\n b", "1:5: no valid YAML: while scanning an anchor (line 1, column 4): expected alphabetic or numeric "
         "character, but found '\\n'"),
    ],
)  # fmt: skip
def test_broken_configurations_are_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(OptionsError) as error:
        strict_yaml.load(tmp_path / "run.yaml")
    assert str(error.value) == f"{tmp_path / 'run.yaml'}:{told}"
    with pytest.raises(OptionsError) as error:
        strict_yaml.words(text, "--space")
    assert str(error.value) == f"--space:{told}"


def test_hostile_arrays(tmp_path: Path) -> None:
    """Where packing reads arrays: .npy of objects, .npz with one, an .npz that is a pickle."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.npy").write_bytes(objects())
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        open_source(tmp_path / "folder").column("a")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", objects())
    with pytest.raises(ValueError, match=r"x\.npz.*'a' cannot be read"):
        open_source(tmp_path / "x.npz").column("a")
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"x\.npz cannot be read"):
        open_source(tmp_path / "x.npz")


def with_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n1234"


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': (",
        "  {\n x",
        "(" * 9000,
        "{[]: 1}",
        "{'descr': [(1,)], 'fortran_order': 0, 'shape': 1}",
        "__import__('os')",
    ],
)
def test_headers_that_are_no_headers(tmp_path: Path, header: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.npy").write_bytes(with_header(header))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", with_header(header))
    for path in ("folder", "x.npz"):
        with pytest.raises(ValueError, match=r"a\.npy cannot be read|x\.npz.*'a' cannot be read"):
            open_source(tmp_path / path).column("a")


def claiming(shape: tuple[int, ...]) -> bytes:
    """An .npy file of four bytes whose header claims this many float32."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"1234"


@pytest.mark.parametrize(
    "shape",
    [(1 << 40,), (1 << 62,), (1 << 64,), (-1,), (1 << 31, 1 << 31, 4)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_sizes_that_arrays_claim(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for name in ("arrays/a.npy", "files/column/k0.npy"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(claiming(shape))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", claiming(shape))
    with bounded(60, 1 << 30):
        for path, column in (("arrays", "a"), ("files", "column"), ("x.npz", "a")):
            with pytest.raises(ValueError, match=r"(a|k0)\.npy cannot be read|x\.npz.*'a' cannot be read"):
                open_source(tmp_path / path).column(column)


def test_archives_of_arrays_that_unpack_to_more_than_memory_holds(tmp_path: Path) -> None:
    """64 MiB of zeros in 64 KiB, with 16 MiB of memory; one whose packed bytes are damaged."""
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(1 << 24, np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", zeros.getvalue())
    source = open_source(tmp_path / "x.npz")
    told = r"x\.npz: array 'a' takes 67108992 bytes.*unpack the archive"
    memory = mock.patch("psutil.virtual_memory", return_value=mock.Mock(available=1 << 24))
    with memory, bounded(60, 1 << 28), pytest.raises(ValueError, match=told):
        source.column("a")
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[100:200] = bytes(100)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npz: array 'a' cannot be read"):
        open_source(tmp_path / "x.npz").column("a")


def test_tables_that_would_fill_the_memory(tmp_path: Path) -> None:
    """279 bytes that decode to 1 GB: refused before they do."""
    (tmp_path / "t.parquet").write_bytes(bomb(4000, 1 << 18))
    read = (
        "import sys, pyarrow; from pathlib import Path; from shards.format.parquet import read_parquet\n"
        "try: read_parquet(Path(sys.argv[1]).read_bytes())\n"
        "except ValueError as error: print(pyarrow.default_memory_pool().max_memory(), error)"
    )
    told = subprocess.check_output(
        [sys.executable, "-c", read, str(tmp_path / "t.parquet")],
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
    assert "decode to more than" in told
    assert int(told.split()[0]) < 16 << 20
    with bounded(60, 1 << 30):
        with pytest.raises(ValueError, match=r"t\.parquet cannot be read.*decode to more"):
            SampleTable(tmp_path / "t.parquet", None, None)
        with pytest.raises(ValueError, match=r"t\.parquet cannot be read.*decode to more"):
            read_table(tmp_path / "t.parquet")


def test_objects_in_an_archive(tmp_path: Path) -> None:
    """Before it is indexed, and after: an index that vouches for the objects changes nothing."""
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "bad.tar", [("k0.a.npy", objects())])
    with pytest.raises(ShardError, match=r"'bad', sample 'k0'"):
        index_folder(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["bad.tar"]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (tarfile.REGTYPE, "../../executed.a.npy", "absolute or leads outside"),
        (tarfile.REGTYPE, "/executed.a.npy", "absolute or leads outside"),
        (tarfile.SYMTYPE, "k9.a.npy", "symbolic link"),
        (tarfile.LNKTYPE, "k9.a.npy", "hard link"),
        (tarfile.CHRTYPE, "k9.a.npy", "character device"),
    ],
)
def test_hostile_archives(tmp_path: Path, kind: bytes, name: str, message: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "bad.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardError, match=f"'bad'.*{message}"):
        index_folder(folder)


def test_shards_that_are_links_to_other_things(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_tar(folder / "t.tar", plain_members())
    manifest = index_folder(folder)
    (folder / "t.tar").unlink()
    for target in ("/etc/passwd", "/dev/zero", tmp_path):
        (folder / "t.tar").symlink_to(target)
        with pytest.raises(ShardError, match="'t'"):
            Reader(manifest).read(0, 0, 1)
        (folder / "t.tar").unlink()
    os.mkfifo(folder / "t.tar")
    with pytest.raises(ShardError, match=r"'t'.*not a regular file"):
        Reader(manifest).read(0, 0, 1)


def has_no_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def is_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("make", [os.mkfifo, has_no_end, is_sparse])
def test_manifests_indexes_and_views_that_are_no_files_or_have_no_end(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A pipe would be waited for, a device or a sparse file of a terabyte fill the memory."""
    write_tar(tmp_path / "t.tar", plain_members())
    manifest = index_folder(tmp_path)
    View.where(manifest, np.arange(4) < 2, "some").save()

    def replaced(name: str) -> None:
        (tmp_path / name).unlink()
        make(tmp_path / name)

    with bounded(20, 1 << 30):
        replaced("views/some.parquet")
        with pytest.raises(ValueError, match="some"):
            View.open(manifest, "some")
        replaced("t.index.parquet")
        with pytest.raises(ShardError, match=r"'t'.*index cannot be read"):
            Reader(manifest).read(0, 0, 1)
        replaced("manifest.parquet")
        with pytest.raises(ManifestError, match=r"manifest\.parquet.*cannot be read.*--repair"):
            Manifest.open(tmp_path)


@pytest.mark.parametrize(
    "data", [pickle.dumps(Payload()), objects(), torch_file(), gzip.compress(bytes(1 << 24)), b"PAR1"]
)
def test_hostile_manifests(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.parquet").write_bytes(data)
    with pytest.raises(ManifestError, match=r"manifest\.parquet.*not a readable manifest"):
        Manifest.open(tmp_path)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    """gzip of 16 MiB of zeros, under the name of a shard: read as the tar that it is not."""
    (tmp_path / "bomb.tar").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(ShardError, match=r"'bomb'.*header"):
        index_folder(tmp_path)
