"""One file of a results folder is made hostile, and everything that reads such a folder reads it.

A case is whole where each reader ends by itself within bounds of time and memory: it works, or it raises ValueError or
OSError of one line, or (a command) prints one line and a status; nothing beside the folder and its default store was
changed; and no connection was tried.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from conclugen import storage
from ray_jobs.tracking import mlflow_sink
from ray_jobs.tracking.journal_sender import JournalSender
from tests.campaigns.results_fuzz.folders import MAKERS, READERS
from tests.campaigns.shard_fuzz.judge import bounded
from tests.ray_jobs.tracking.recording_server import RecordingServer

SECONDS, MEMORY = 60.0, 1 << 30
_TEXTS = (".json", ".jsonl", ".yaml", ".md")
_CANARY = "CANARY"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(10**30), 10**4000, 1e308, "", "NaN", [], {}, [[]], {"": {}}),
    *([None] * 9, {"NaN": None}, "a\nb", "x" * 300_000, "\0", "\ud800", "é" * 200, "|", "=1+1", "<script>", "$\\bad$"),
    *("../../CANARY", "/etc/hostname", "http://127.0.0.1:9/x", "sqlite:////nowhere/else.db", "file:///etc", "!!python"),
)


@dataclass
class Result:
    """What became of a case. outcome: `read`, `refused`, or `defect`, then with an error."""

    seed: int
    case: int
    kind: str
    file: str
    outcome: str
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Damage = Callable[[random.Random, Path, Path], None]  # generator, the file, a folder outside
KINDS: dict[str, Damage] = {}


def kind(name: str) -> Callable[[Damage], Damage]:
    def register(function: Damage) -> Damage:
        KINDS[name] = function
        return function

    return register


@kind("bits")
def _bits(rng: random.Random, path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@kind("cut, or doubled")
def _cut(rng: random.Random, path: Path, _: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(rng.choice((b"", data[: rng.randrange(len(data))], data + data, data[rng.randrange(len(data)) :])))


@kind("a value of another kind")
def _value(rng: random.Random, path: Path, _: Path) -> None:
    """Anywhere in a document, or in one line of it."""
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    at = rng.randrange(len(lines))
    try:
        document = json.loads(lines[at])
    except ValueError:  # YAML
        lines[at] += f"\nname: {json.dumps(rng.choice(_VALUES[:16]), default=str)[:4000]}".encode()
    else:
        places = list(_places(document))
        container, key = rng.choice(places)
        value = rng.choice(_VALUES)
        if rng.random() < 0.15 and isinstance(container, dict):
            container.pop(key)
            container[rng.choice(("", "../x", "kind", "é" * 99, "a/b"))] = value
        else:
            container[key] = value
        with _long_integers():
            lines[at] = json.dumps(document).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")


def _seal(path: Path) -> None:
    """Seal a model's document anew, as somebody would who means it: what it says now is then believed to be whole."""
    with contextlib.suppress(ValueError, OSError, RecursionError):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and document.pop("seal", None) is not None:
            with _long_integers():
                path.write_text(json.dumps({**document, "seal": storage._seal(document)}))


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


@contextlib.contextmanager
def _long_integers() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


@kind("nested deep")
def _deep(rng: random.Random, path: Path, _: Path) -> None:
    depth = rng.choice((99, 900, 40_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    text = opened * depth + "1" + closed * (depth if rng.random() < 0.7 else 0)
    path.write_text(rng.choice((text, f'{{"kind": "tags", "values": {text}}}', f"{path.read_text()}{text}\n")))


@kind("numbers that JSON has not")
def _numbers(rng: random.Random, path: Path, _: Path) -> None:
    text = path.read_text()
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    if digits:
        at = rng.choice(digits)
        word = rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "0x10", "1_000", "1e-400"))
        text = text[:at] + word + text[at + 1 :]
    path.write_text(text)


@kind("another encoding")
def _encoding(rng: random.Random, path: Path, _: Path) -> None:
    text = path.read_text()
    codec = rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037", "latin-1"))
    path.write_bytes(rng.choice((text, text + "é")).encode(codec) + rng.choice((b"", b"\xff\xfe", b"\x80")))


@kind("huge")
def _huge(rng: random.Random, path: Path, _: Path) -> None:
    """Sparse, of which a reader must not believe the size, or one line without an end."""
    size = rng.choice((1 << 28, 1 << 36, 1 << 42))
    with path.open("r+b" if rng.random() < 0.5 else "wb") as file:
        file.truncate(size)


@kind("pipe, device, folder, socket")
def _special(rng: random.Random, path: Path, _: Path) -> None:
    path.unlink()
    match rng.choice(("pipe", "pipe", "zero", "folder", "socket", "gone")):
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))


@kind("link that leaves the folder")
def _link(rng: random.Random, path: Path, outside: Path) -> None:
    if rng.random() < 0.5:  # the file itself; its content is right
        shutil.copy(path, outside / "copy")
        path.unlink()
        path.symlink_to(rng.choice((outside / "copy", outside / "nothing", Path("loop"), Path(path.name))))
    else:  # a folder that is written to, or whose files are sent
        name = rng.choice(("report", "plots", "ledger", "predictions", "evaluation", "runs"))
        place = path.parent / name
        if place.is_dir():
            shutil.rmtree(place)
        if not place.exists():
            place.symlink_to(outside)


@kind("a journal's own paths and texts")
def _journal(rng: random.Random, path: Path, outside: Path) -> None:
    if path.name != "journal.jsonl":
        return _value(rng, path, outside)
    paths = (
        "../../outside/CANARY",
        str(outside / _CANARY),
        "plots/../../../outside/CANARY",
        "/dev/zero",
        ".",
        "..",
        "\0",
    )
    record = {"seq": 99, "time": 1, "kind": rng.choice(("artifact", "model")), "path": rng.choice(paths)}
    record |= {
        "target": rng.choice(("", "../x", "/x", "a\\..\\b", "x" * 3000)),
        "registered_name": rng.choice((None, "a/b")),
    }
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    return None


# Of texts alone; the others are of tensors too.
_OF_TEXT = (
    "a value of another kind",
    "nested deep",
    "numbers that JSON has not",
    "another encoding",
    "a journal's own paths and texts",
)


def case(seed: int, number: int, work: Path, memory: float = MEMORY) -> Result:
    """Run a case in `work`, which must not exist; it does not exist afterwards."""
    rng = random.Random(f"{seed}/{number}")
    kinds = list(KINDS)
    name = kinds[number % len(kinds)]
    made = list(MAKERS)[(number // len(kinds)) % len(MAKERS)]
    outside = work / "outside"
    outside.mkdir(parents=True)
    (outside / _CANARY).write_text(_CANARY)
    folder = work / "results" / made
    MAKERS[made](folder)
    suffixes = _TEXTS if name in _OF_TEXT else (*_TEXTS, ".safetensors")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes)
    path = rng.choice([*files, *[f for f in files if f.suffix == ".jsonl"]])
    result = Result(seed, number, name, f"{made}/{path.relative_to(folder)}", "defect")
    try:
        KINDS[name](rng, path, outside)
        if name in _OF_TEXT and rng.random() < 0.8:
            _seal(path)
        before = _outside_of(work, folder)
        outcomes = [_read(reader, folder, memory) for reader in READERS[made].items()]
        changed = {p for p, content in _outside_of(work, folder).items() if before.get(p) != content}
        if changed:
            raise AssertionError(f"changed outside of the folder: {sorted(changed)}")
        result.outcome = "refused" if "refused" in outcomes else "read"
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"[:1500]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def block(seed: int, numbers: list[int]) -> list[Result]:
    """Several cases, for a process of their own; defects are told at once."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            results.append(case(seed, number, Path(folder) / str(number)))
            if results[-1].outcome == "defect":
                print(results[-1], file=sys.stderr, flush=True)
    return results


def _outside_of(work: Path, folder: Path) -> dict[str, bytes]:
    """Every file beside the folder, but for the default store."""
    found = {}
    for path in work.rglob("*"):
        inside = path.is_relative_to(folder) or path.name.startswith("mlflow")
        if not inside and path.is_file():
            found[str(path.relative_to(work))] = path.read_bytes()
    return found


def _read(reader: tuple[str, Callable[[Path], object]], folder: Path, memory: float) -> str:
    """`read`, or `refused` in one line. Raises AssertionError for all else, and what no reader may raise."""
    name, read = reader
    server = RecordingServer()

    def sender(journal: Path, uri: str, *_: object) -> JournalSender:
        return JournalSender(journal, uri, lambda _: server)

    def connect(*_: object) -> NoReturn:
        tried.append("a connection was tried")
        raise ConnectionRefusedError(*tried)

    tried: list[str] = []
    refused = False
    out, err = io.StringIO(), io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            bounded(SECONDS, memory),
            mock.patch.object(socket.socket, "connect", connect),
            mock.patch.object(mlflow_sink, "JournalSender", sender),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = read(folder)
    except (ValueError, OSError) as error:
        assert isinstance(error, OSError) or len(str(error)) < 4000, (
            f"{name}: a message of {len(str(error))} characters"
        )
        refused = True
    except BaseException as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
    said = err.getvalue()
    assert not tried or "an address that the run's folder names" in said, f"{name}: {tried[0]}"
    assert "Traceback" not in said, f"{name}: {said}"
    assert said.count("error: ") <= 3, f"{name}: {said}"
    shared = [p.read_bytes() for p in (folder / "shared").rglob("*") if p.is_file()]
    assert not any(_CANARY.encode() in content for content in shared), f"{name}: a file from outside was shared"
    sent = [content for files in server.artifacts.values() for content in files.values()]
    assert _CANARY not in sent, f"{name}: a file from outside was sent"
    if refused:
        return "refused"
    if name in ("track", "report", "export"):
        assert status in (0, 1, 2, 3), f"{name}: status {status!r}"
        return "refused" if status else "read"
    return "read"
