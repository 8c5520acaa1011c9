"""The results ledger: what every finished cell of an ablation and every trial of a sweep came to, in a local folder.

    ledger = Ledger.open("outputs/ablation")
    key = record_key(config.to_dict(), dataset=digest, seed=1, protocol="probe-3-folds")
    if key not in ledger.finished():
        ledger.append(Record(key, "cell", "finished", config.to_dict(), metrics={"accuracy@0.03": 0.57}))
    for record in Ledger.open("outputs/ablation").records():
        ...

Reports read it alone and need no server; whether a cell or trial is done, it alone decides. Layout of the folder:

    ledger/<writer>.jsonl    one record a line, in the order written; each writing process has a file of its own
    predictions/<key>.npz    large arrays of a record, named by the record's `arrays`

A record is on the disk (fsync) when `append` returns. A process that is killed can leave one torn line at the end of
its own file, which readers leave out; no other process ever writes there, so nothing is glued to it and no lock is
needed, on network file systems either. Records are never changed: of several with one key the last finished one counts,
else the last failed one.
"""

import hashlib
import json
import logging
import math
import os
import secrets
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common import uris
from conclugen.common.atomic import atomic_file, sync_folder
from conclugen.common.reading import UnreadableError, inside, parse_json, read_lines
from conclugen.fields import choose
from shards.access import LOCAL_SOURCE, refuse_url

_log = logging.getLogger(__name__)

KINDS = ("cell", "trial", "baseline")
STATUSES = ("finished", "failed")
_MOST = 1 << 62  # of whole numbers: servers and tables keep them in 64 bits
_LAST_TIME = 2.5e11  # of a clock; a later one in a record is not a time
LINES, _ARRAYS = "ledger", "predictions"
# JSON has no numbers for these; a diverged trial's metrics must be kept all the same.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class LedgerError(ValueError):
    """A ledger that cannot be read or written as asked: missing, or a record that is none."""


@dataclass(frozen=True)
class Record:
    """One finished or failed cell or trial.

    key: `record_key`. kind: "cell" (of an ablation), "trial" or "baseline" (a row beside them, of a sweep). status:
    "finished" or "failed", then with a `reason`, one sentence. configuration: all that was resolved, plain data.
    tags: what it is found by: str, number, list or mapping of these (tasks, modalities, weights, recipe, preset,
    seed, dataset, ...). metrics: name -> number, the names of which are the same everywhere (`accuracy@0.03`,
    `recall@1/audio-video`, `effective_rank/video`). groups: metric name -> {group: number}: a score of each speaker
    or video, besides `rows` -> {group: rows tested}. cost: `seconds` (of the clock), `cpu_seconds`, `samples`,
    `peak_memory_bytes`. arrays: of large arrays, the path below the ledger's folder (`put_arrays`). time: seconds
    since 1970, set by `append`: later than that of every record that was there when its writer began.
    """

    key: str
    kind: str
    status: str
    configuration: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    arrays: str | None = None
    time: float = 0.0

    def __post_init__(self) -> None:
        choose("record.kind", self.kind, KINDS)
        choose("record.status", self.status, STATUSES)
        if not self.key or not self.key.replace("-", "").replace("_", "").isalnum():
            raise LedgerError(f"record.key: found {self.key!r}, expected letters, digits, - and _ (see record_key)")
        if self.status == "failed" and not self.reason:
            raise LedgerError(f"record {self.key}: failed, but without a reason; say in one sentence what happened")


# Before the names of numbers that are of a representation beside the raw features.
WITH_RAW = "with_raw/"


def record_key(configuration: Mapping[str, Any], *, dataset: str, seed: int, protocol: str) -> str:
    """Digest (24 hex digits) of what decides a result: configuration, the data's digest, seed, how it was judged.

    The order of fields does not matter; 1 and 1.0 are the same number.
    """
    content = [_canonical(configuration), dataset, int(seed), protocol]
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Ledger:
    """Reads the records of a folder, and appends to it. Any number of processes and threads may, at once."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._file = -1
        self._owner = 0
        self._latest = 0.0  # time of the last record that is known

    @classmethod
    def open(cls, folder: Path | str, must_exist: bool = False) -> "Ledger":
        """The ledger of a folder, which need not exist before the first `append`.

        Raises LedgerError where `must_exist` and there is none.
        """
        refuse_url("FOLDER", folder, LOCAL_SOURCE)
        if must_exist and not (Path(folder) / LINES).is_dir():
            raise LedgerError(
                f"{folder}: no results here (no folder {LINES!r}); name the output folder of an ablation or a sweep"
            )
        return cls(folder)

    # ------------------------------------------------------------------ reading

    def history(self) -> Iterator[Record]:
        """Every record that was written, oldest first. Damaged lines are left out, with a warning."""
        inside(self.folder, LINES)
        found = [
            (record.time, path.name, number, record)
            for path in sorted((self.folder / LINES).glob("*.jsonl"))
            for number, record in enumerate(_read(path))
        ]
        yield from (record for *_, record in sorted(found, key=lambda entry: entry[:3]))

    def records(self) -> list[Record]:
        """One record for each key, the one that counts, in the order in which the keys first appeared."""
        decisive: dict[str, Record] = {}
        for record in self.history():
            known = decisive.get(record.key)
            if known is None or record.status == "finished" or known.status == "failed":
                decisive[record.key] = record
        return list(decisive.values())

    def finished(self) -> dict[str, Record]:
        """key -> record of all that need not be run again."""
        return {record.key: record for record in self.records() if record.status == "finished"}

    def arrays(self, record: Record) -> dict[str, NDArray[Any]]:
        """The large arrays of a record, {} when it has none. Raises LedgerError where the file is missing."""
        if record.arrays is None:
            return {}
        path = Path(os.path.realpath(self.folder / record.arrays))
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise LedgerError(f"{self.folder}: arrays {record.arrays!r} of record {record.key} are not in this folder")
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise LedgerError(f"{path}: has no arrays ({error})") from error

    # ------------------------------------------------------------------ writing

    def append(self, record: Record) -> None:
        """Write a record with the present time; it is on the disk when this returns.

        Raises OSError where it cannot be written (a full disk); the file then holds whole records only.
        """
        values = {f.name: getattr(record, f.name) for f in fields(record)}
        values["reason"] = uris.scrub(record.reason)  # what a library said, as often as not
        with self._lock:
            file = self._own_file()
            # What is written later counts: a clock that was set back since must not put it before what is there.
            self._latest = max(time.time(), math.nextafter(self._latest, math.inf))
            values["time"] = self._latest
            line = json.dumps(_encode(values), allow_nan=False, separators=(",", ":")).encode() + b"\n"
            before = os.fstat(file).st_size
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise

    def put_arrays(self, key: str, arrays: Mapping[str, ArrayLike]) -> str:
        """Write large arrays of a record as a whole file or not at all; returns the path for `Record.arrays`."""
        name = f"{_ARRAYS}/{key}.npz"
        path = inside(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.savez_compressed(file, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
        return name

    def close(self) -> None:
        """Let the file go; a later `append` opens another. Closing twice is allowed."""
        with self._lock:
            if self._file >= 0 and self._owner == os.getpid():
                os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _own_file(self) -> int:
        # A forked process must not write to its parent's file.
        if self._file < 0 or self._owner != os.getpid():
            folder = inside(self.folder, LINES)
            folder.mkdir(parents=True, exist_ok=True)
            self._latest = max((r.time for r in self.history() if r.time < _LAST_TIME), default=0.0)
            # Time first, so that files list in the order in which their writers began.
            name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            self._file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self._owner = os.getpid()
            sync_folder(folder)  # a new name is only on the disk when its folder is
        return self._file


def _read(path: Path) -> Iterator[Record]:
    known = {f.name for f in fields(Record)}
    try:
        for number, (line, _) in enumerate(read_lines(path), 1):
            try:
                if line is None or not line.endswith(b"\n"):
                    raise ValueError("too long" if line is None else "incomplete: its writer was stopped")
                values = _decode(parse_json(line))
                yield _checked(Record(**{name: value for name, value in values.items() if name in known}))
            except (ValueError, TypeError, AttributeError, OverflowError) as error:
                _log.warning("%s: left out line %d: %s", path, number, uris.scrub(error)[:200])
    except (OSError, UnreadableError) as error:
        _log.warning("left out: %s", uris.scrub(error))


def _checked(record: Record) -> Record:
    """The record, if its fields are what they should be; its writer may be somebody else. Raises ValueError."""
    kinds = {"configuration": Mapping, "tags": Mapping, "reason": str, "arrays": str | None, "time": int | float}
    for name, kind in kinds.items():
        value = getattr(record, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}: wrong type, {value!r:.40}")
    if not math.isfinite(record.time):
        raise ValueError(f"time: {record.time}")
    for name, numbers in (("metrics", record.metrics), ("cost", record.cost), *record.groups.items()):
        if not all(_is_number(number) for number in numbers.values()):
            raise ValueError(f"{name}: contains something that is not a number")
    _check_tags(record.tags)
    return record


def _check_tags(tags: Mapping[str, Any]) -> None:
    """Of a cell those that reports go by, of a trial those that a sweep does."""
    for name in ("dataset", "system", "recipe", "configuration", "sweep", "objective", "state", "score"):
        if not isinstance(tags.get(name, ""), str):
            raise ValueError(f"tags.{name}: must be text, got {tags[name]!r:.40}")
    for name in ("tasks", "modalities", "rows"):
        value = tags.get(name, [])
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ValueError(f"tags.{name}: must be a list of names, got {value!r:.40}")
    for name in ("seed", "number"):
        value = tags.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _MOST):
            raise ValueError(f"tags.{name}: must be a whole number, got {value!r:.40}")
    for name in ("epochs", "curve"):
        value = tags.get(name, [])
        if not (isinstance(value, list) and all(map(_is_number, value))):
            raise ValueError(f"tags.{name}: must be numbers, got {value!r:.40}")


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _encode(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity": None}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)) in _NON_FINITE and next(iter(value.values())) is None:
            return _NON_FINITE[next(iter(value))]
        return {name: _decode(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    return value
