"""The run's journal: everything a run wants tracked is first written here, to an append-only JSON-lines file.

One record a line: `{"seq", "time", "kind", ...}`; `time` is in milliseconds since 1970 and fixed at writing, so that a
record can be sent to a tracking server any number of times and still be recognised. Kinds and their other fields:

    run       run_id, experiment, name, parent  the first record, once: the identity of the run through all restarts
    params    values: {dotted name: scalar}
    tags      values: {name: str}
    metrics   series, step, values: {name: number}; in the file non-finite numbers are "NaN", "Infinity", "-Infinity"
    inputs    datasets: [{name, digest, source, context, rows}], what the run reads and for what
    artifact  path, target; path of a file or folder inside the journal's folder, relative to it
    model     path, target, registered_name; such a folder in MLflow's model format, optionally to be registered
    status    status: RUNNING | FINISHED | FAILED | KILLED
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, cast

from conclugen.common import uris
from conclugen.common.locks import descriptor_locked
from conclugen.common.reading import UnreadableError, parse_json, read_lines

_log = logging.getLogger(__name__)

STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
_REPAIR_BLOCK = 1 << 16
# Ids become part of queries to the server; MLflow's own and ours are hex digits, with dashes in some stores.
_MOST = 1 << 62  # of numbers that a server keeps in 64 bits
_LONGEST_NAME = 500
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FIELDS: dict[str, dict[str, Any]] = {
    "run": {"run_id": str, "experiment": str, "name": str},
    "params": {"values": dict},
    "tags": {"values": dict},
    "metrics": {"series": str, "step": int, "values": dict},
    "inputs": {"datasets": list},
    "artifact": {"path": str, "target": str},
    "model": {"path": str, "target": str, "registered_name": str | None},
    "status": {"status": str},
}


class JournalError(ValueError):
    """A journal that cannot be used: missing, of another run, or a file that is not a journal."""


@dataclass(frozen=True)
class RunIdentity:
    """Who a run is, as its first record says. `parent` is the `run_id` of another journal (or an MLflow run's id)."""

    run_id: str
    experiment: str
    name: str
    parent: str | None
    start_time: int


class Journal:
    """Writes a run's journal; several processes may (the job, the controller), one at a time.

    Opening an existing file continues it: a line torn by a crash is cut off (and logged), and the steps already
    written are known. Each record is one `write` to a file opened with O_APPEND, under a lock of the file and after
    reading what others have written since; a crash of the process loses nothing that was written. Thread-safe.

    Args:
        path: the file; its folder is created.
        experiment, name, parent: the run's identity, needed for a new journal. It is kept from the first opening;
            reopening may leave it out.
        began: when the run began, in seconds since 1970, where a new journal is written afterwards; else now.

    Raises:
        JournalError: there is not a journal yet and no identity is given, or the journal belongs to another run.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        experiment: str | None = None,
        name: str | None = None,
        parent: str | None = None,
        began: float | None = None,
    ) -> None:
        if Path(path).is_symlink():
            raise JournalError(f"{path}: is a link; a journal is written to, and lies in its own folder: move it there")
        self.path = Path(path).resolve()
        if os.path.lexists(self.path) and not self.path.is_file():
            raise JournalError(f"{path}: is not a regular file; move it away")
        if experiment is None or name is None:
            read_identity(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._thread_lock = threading.RLock()
        self._held = False
        self._seq = 0
        self._known_bytes = 0
        self._marks: dict[str, int] = {}
        self._measured: dict[str, dict[str, Any]] = {}
        self._latest: dict[str, dict[str, Any]] = defaultdict(dict)
        self._inputs: list[dict[str, Any]] = []
        self._status: str | None = None
        self._identity: RunIdentity | None = None
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with self._exclusive():
                if self._identity is None:
                    payload = {"run_id": uuid.uuid4().hex, "experiment": experiment, "name": name, "parent": parent}
                    self._append("run", payload, began)
                    os.fsync(self._file)
            found = self.identity
            if (experiment or found.experiment, name or found.name) != (found.experiment, found.name):
                raise JournalError(
                    f"{self.path}: this is the journal of run {found.name!r} in experiment {found.experiment!r}, "
                    f"not of {name!r} in {experiment!r}; use another folder, or the run's own name"
                )
        except BaseException:
            os.close(self._file)
            raise

    @property
    def identity(self) -> RunIdentity:
        """Who the run is; the same in every process and after every restart."""
        assert self._identity is not None
        return self._identity

    # ------------------------------------------------------------------ writing

    def params(self, values: Mapping[str, Any]) -> None:
        """Write a (nested) configuration as dotted names; what is already written with the same value is left out."""
        self._write_changes("params", flatten(values))

    def tags(self, values: Mapping[str, str]) -> None:
        """Write tags; what is already written with the same value is left out."""
        self._write_changes("tags", {name: str(value) for name, value in values.items()})

    def metrics(
        self, step: int, values: Mapping[str, SupportsFloat], series: str = "train", remeasured: bool = False
    ) -> bool:
        """Write numbers of a global step, unless the series already holds this step or a later one.

        A resumed run repeats the steps after its last checkpoint; their numbers are already here, so they are dropped.
        Each series (`train` at every step, `validation` at its own) has its own mark.

        Args:
            step: global step, counted from 0 or 1 over the whole run.
            values: name -> number; 0-d tensors and numpy scalars allowed.
            remeasured: these numbers may replace others of the same step (an evaluation done again in another way);
                they are left out only where they equal the series' last ones.

        Returns: whether a record was written.
        """
        with self._exclusive():
            encoded = {name: _encode(float(value)) for name, value in values.items()}
            seen = step <= self._marks.get(series, -1)
            if not values or (seen and not (remeasured and encoded != self._measured.get(series))):
                return False
            self._append("metrics", {"series": series, "step": int(step), "values": encoded})
            return True

    def inputs(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Write which data sets the run reads: name, digest, source (a folder or an address), context (`training`,
        `evaluation`), rows; what is already written alike is left out."""
        with self._exclusive():
            plain = [{**each, "source": uris.public(str(each["source"]))} for each in datasets]
            new = [each for each in plain if each not in self._inputs]
            if new:
                self._append("inputs", {"datasets": new})

    def tag(self, name: str) -> str | None:
        """The tag's last value, None where there is none."""
        with self._exclusive():
            found = self._latest["tags"].get(name)
            return None if found is None else str(found)

    def artifact(self, path: str | Path, target: str = "") -> None:
        """Ask for a file, or a folder's content, to be stored under `target` in the run's artifacts.

        It is read when it is sent: do not change it before. Raises JournalError for a path outside the journal's
        folder: a sender takes files from nowhere else.
        """
        self._append("artifact", {"path": self._inside(path), "target": target})

    def model(self, path: str | Path, target: str = "model", registered_name: str | None = None) -> None:
        """Ask for an MLflow model folder (`model_artifact.build`) to be stored, and registered if a name is given."""
        self._append("model", {"path": self._inside(path), "target": target, "registered_name": registered_name})

    def status(self, status: str, at: float | None = None) -> None:
        """Write the run's status (one of STATUSES); RUNNING after a restart. Repetitions are left out. at: since when
        it holds, in seconds since 1970, where that is not now."""
        if status not in STATUSES:
            raise ValueError(f"unknown run status {status!r}: expected one of {', '.join(STATUSES)}")
        with self._exclusive():
            if status != self._status:
                self._append("status", {"status": status}, at)
                os.fsync(self._file)

    @property
    def position(self) -> int:
        """Number of the next record."""
        return self._seq

    @contextmanager
    def running(self, left: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """RUNNING within the block; then FINISHED, where nothing is `left` (cells or trials that have failed and would
        be tried again), else FAILED, as after an error; KILLED where the block is interrupted."""
        self.status("RUNNING")
        try:
            yield
            ended = "FAILED" if left() else "FINISHED"
        except BaseException as error:
            try:
                self.status("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            except (OSError, JournalError) as unwritten:  # which is not what the run has ended of
                _log.warning("%s: the run's end could not be written (%s)", self.path, unwritten)
            raise
        self.status(ended)

    def mark(self, series: str = "train") -> int:
        """The highest step written in a series, -1 when there is none."""
        return self._marks.get(series, -1)

    def close(self) -> None:
        """Flush to the disk and let the file go. Closing twice is allowed."""
        with self._thread_lock:
            if self._file >= 0:
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ inside

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the file alone, with everything known that any process has written to it."""
        with self._thread_lock:
            if self._file < 0:
                raise JournalError(f"{self.path}: the journal is closed")
            if self._held:
                yield
                return
            with descriptor_locked(self._file, self.path):
                self._held = True
                try:
                    self._catch_up()
                    yield
                finally:
                    self._held = False

    def _catch_up(self) -> None:
        if os.fstat(self._file).st_size == self._known_bytes:
            return
        _cut_torn_line(self._file, self.path)
        for record, _ in read_records(self.path, self._known_bytes):
            self._remember(record)
        self._known_bytes = os.fstat(self._file).st_size

    def _remember(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if self._identity is None:
            self._identity = _identity(record, self.path)
        self._seq = record["seq"] + 1
        if kind == "metrics":
            self._marks[record["series"]] = max(record["step"], self._marks.get(record["series"], -1))
            self._measured[record["series"]] = {name: _encode(float(x)) for name, x in record["values"].items()}
        elif kind in ("params", "tags"):
            self._latest[kind].update(record["values"])
        elif kind == "inputs":
            self._inputs += record["datasets"]
        elif kind == "status":
            self._status = record["status"]

    def _write_changes(self, kind: str, values: dict[str, Any]) -> None:
        with self._exclusive():
            known = self._latest[kind]
            # Jobs refuse addresses with secrets; what comes here in another way must not be published either.
            safe = {name: uris.public(value) if isinstance(value, str) else value for name, value in values.items()}
            changed = {name: value for name, value in safe.items() if name not in known or known[name] != value}
            if changed:
                self._append(kind, {"values": changed})

    def _append(self, kind: str, payload: dict[str, Any], at: float | None = None) -> None:
        with self._exclusive():
            milliseconds = time.time_ns() // 1_000_000 if at is None else int(at * 1000)
            record = {"seq": self._seq, "time": milliseconds, "kind": kind, **payload}
            line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                # A full disk may take half a line; the next record must not be glued to it.
                os.ftruncate(self._file, self._known_bytes)
                raise
            self._known_bytes += len(line)
            self._remember(record)

    def _inside(self, path: str | Path) -> str:
        absolute, folder = Path(path).resolve(), self.path.parent
        if not absolute.is_relative_to(folder):
            raise JournalError(
                f"{self.path}: artifact {path} lies outside the run's folder {folder}; copy it there first"
            )
        return str(absolute.relative_to(folder))


def read_records(path: str | Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Iterate (record, offset of the next record) from a byte offset to the last complete line.

    An incomplete last line is left for later; a complete line that is not a record is skipped with a warning. Metrics
    come as floats, non-finite ones included.
    """
    start = offset
    for line, end in read_lines(path, offset):
        if line is not None and not line.endswith(b"\n"):
            return
        record = None if line is None else _record(line)
        if record is None:
            _log.warning("%s: skipped a damaged record at byte %d", path, start)
        else:
            yield record, end
        start = end


def _is_input(each: object) -> bool:
    texts = ("name", "digest", "source", "context")
    return (
        isinstance(each, dict)
        and all(isinstance(each.get(name), str) for name in texts)
        and isinstance(each.get("rows"), int)
        and abs(each["rows"]) < _MOST
    )


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is damaged, which may be as little as a field by another name."""
    try:
        record = parse_json(line)
        kind = record["kind"]
        fields = {"seq": int, "time": int, "kind": str, **_FIELDS.get(kind, {})}
        if not all(isinstance(record[name], type_) for name, type_ in fields.items()):
            return None
        if not all(abs(record.get(name, 0)) < _MOST for name in ("seq", "time", "step")):
            return None
        if kind == "metrics":
            record["values"] = {name: float(value) for name, value in record["values"].items()}
        elif kind in ("params", "tags"):
            plain = str if kind == "tags" else str | int | float | None
            if not all(isinstance(value, plain) for value in record["values"].values()):
                return None
        elif kind == "inputs":
            if not all(_is_input(each) for each in record["datasets"]):
                return None
        elif kind == "status" and record["status"] not in STATUSES:
            return None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return cast(dict[str, Any], record)


def read_identity(path: str | Path) -> RunIdentity:
    """The identity in a journal's first record. Raises JournalError when there is no such file or record."""
    try:
        for record, _ in read_records(path):
            return _identity(record, path)
    except FileNotFoundError:
        pass
    except UnreadableError as error:
        raise JournalError(str(error)) from None
    raise JournalError(f"{path}: no journal here yet; give the run's experiment and name to begin one")


def tracked_name(series: str, name: str) -> str:
    """Name of a metric outside its series: `loss` of `train` stays `loss`, of `validation` is `validation/loss`."""
    return name if series == "train" or name.startswith(f"{series}/") else f"{series}/{name}"


def metric_history(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a journal, for plots and summaries without a server: tracked name -> [(step, value), ...]."""
    history: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record, _ in read_records(path):
        if record["kind"] == "metrics":
            for name, value in record["values"].items():
                history[tracked_name(record["series"], name)].append((record["step"], value))
    return dict(history)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; sequences and other leaves become strings, JSON scalars stay."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        elif isinstance(value, float) and not math.isfinite(value):
            flat[f"{prefix}{name}"] = _encode(value)
        elif value is None or isinstance(value, str | int | float | bool):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, default=str)
    return flat


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _identity(record: Mapping[str, Any], path: str | Path) -> RunIdentity:
    if record["kind"] != "run":
        raise JournalError(
            f"{path}: the first record is of kind {record['kind']!r}, not 'run'; this is not a journal, or its first "
            "line is damaged: restore it from a backup"
        )
    identity = RunIdentity(record["run_id"], record["experiment"], record["name"], record.get("parent"), record["time"])
    for field, value in (("run_id", identity.run_id), ("parent", identity.parent)):
        if value is not None and not (isinstance(value, str) and _RUN_ID.fullmatch(value)):
            raise JournalError(
                f"{path}: {field} is {value!r:.80}, not an id of letters, digits, - and _; not a journal of ours"
            )
    for field, value in (("experiment", identity.experiment), ("name", identity.name)):
        if not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
            raise JournalError(
                f"{path}: {field} is {value!r:.80}, not 1 to {_LONGEST_NAME} printable characters; not a journal of "
                "ours"
            )
    return identity


def _cut_torn_line(file: int, path: Path) -> None:
    """Cut what follows the last newline: the part of a record that a crash left behind."""
    size = end = os.fstat(file).st_size
    keep = 0
    while end > 0:
        start = max(0, end - _REPAIR_BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        end = start
    if keep < size:
        _log.warning("%s: cut %d bytes of a record that a crash left incomplete", path, size - keep)
        os.ftruncate(file, keep)
