"""Sends a journal's records to an MLflow server, each exactly once, whatever happens to either side.

How that is kept:

1. The journal is the truth. A record has its step and its time from the moment it is written, so a number on the server
   is recognised by (metric, step, time). Before a record is sent, the journal is synced to the disk: the server never
   has what the journal could lose.
2. The state file beside the journal says up to which byte everything is on the server for certain. It is replaced
   atomically after each answered request, never before.
3. A record is *doubtful* when the server may have it although the state file does not say so: everything behind the
   offset when a sender starts (the last one may have died between sending and noting), and every request that ended in
   an error (a timeout says nothing about what the server did). Doubtful numbers are looked up in the metric's history
   on the server, and only missing ones are sent. Records that never were in a request are sent without looking.
4. The other kinds can be repeated without effect: the run is found by its identity tag before it is made, parameters
   are compared first, tags and status are set, artifacts overwritten, a model version is looked up by run and source.
5. One sender at a time: a lock file beside the state file.

What remains: a request that was given up here and that the server carries out only after the look-up. MLflow's SQL
stores ignore the repetition, because (metric, step, time, value) is part of their primary key.

A file that cannot be stored while the server itself answers (an artifact store that is down, missing credentials) is
deferred, so that numbers do not wait for it. What the server refuses permanently is listed in
`<journal>.refused.jsonl`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from conclugen.common import uris
from conclugen.common.atomic import append_text, sync_file, write_json
from conclugen.common.locks import Lock, LockHeldError
from conclugen.common.reading import UnreadableError, parse_json, read_lines, read_mapping
from ray_jobs.tracking.journal import JournalError, read_identity, read_records
from ray_jobs.tracking.mlflow_environment import (
    bounded_calls,
    check_tracking_uri,
    connect,
    store_folder,
)
from ray_jobs.tracking.mlflow_run import (
    METRICS_PER_REQUEST,
    MlflowRun,
    OutsideStoreError,
    RunGoneError,
    is_refusal,
    says_absent,
)

_log = logging.getLogger(__name__)

# A store may refuse for a passing reason (SQLite reports some collisions so): a record is given up when that continues.
_REFUSALS_BEFORE_GIVING_UP = 3
_LARGEST_STATE = 16 << 20
_FILE_KINDS = ("artifact", "model")

Entry = tuple[dict[str, Any], int]  # a record, and the offset of the one behind it


class OutsidePathError(ValueError):
    """A journal names a file outside its own folder."""


class SenderBusyError(RuntimeError):
    """Another process is sending this journal to this server."""


class JournalSender:
    """Sends a journal to one server, from where the last sender stopped. Used by one thread.

    Args:
        journal: path of the journal.
        tracking_uri: MLflow tracking URI: http(s), or SQLite by absolute path.
        connect_to: makes the client from the URI; tests put a faulty one in between.
    """

    def __init__(self, journal: Path, tracking_uri: str, connect_to: Callable[[str], Any] = connect) -> None:
        if Path(journal).is_symlink():
            raise JournalError(f"{journal}: is a link; a journal lies in its own folder: move it there")
        self._journal = Path(os.path.realpath(journal))
        self._uri = check_tracking_uri(tracking_uri)
        self._connect = connect_to
        digest = hashlib.sha256(uris.public(tracking_uri).encode()).hexdigest()[:8]
        self._state_path = self._journal.with_name(f"{self._journal.stem}.mlflow-{digest}.json")
        self._lock: Lock | None = None
        self._run: MlflowRun | None = None
        self._attached = False
        self._offset = 0
        self._deferred: list[int] = []  # offsets of file records to be tried again
        self._doubtful_until = 0
        self._singly_until = 0  # records before this offset are sent one by one, to find the one that is refused
        self._refusals = 0

    @property
    def run_id(self) -> str | None:
        """The server's id of the run, once it is known there."""
        return self._run.run_id if self._run is not None and self._attached else None

    @property
    def unsent_bytes(self) -> int:
        """Bytes of the journal that are not on the server for certain."""
        return max(0, self._journal.stat().st_size - self._offset)

    def send_some(self) -> bool:
        """Send the next request's worth of records. Returns False when nothing is left.

        Raises: SenderBusyError; whatever the client raises when the server is out of reach. Call again to continue.
        """
        with bounded_calls():
            run = self._attach()
            batch = self._next_batch()
            if batch:
                self._send_batch(run, batch)
            elif self._deferred:
                self._send_deferred(run)
            else:
                run.nest()
                return False
        return True

    def missing(self) -> list[str]:
        """What the server lacks of the journal by its own word, in words; to be asked when nothing is left to send.

        The state file says what was sent; a server may have been set back since, or the run deleted.
        """
        with bounded_calls():
            run = self._attach()
            if self._offset == 0:
                return ["the run was deleted there"]
            given_up = _refused_numbers(self._journal)
            return run.missing(record for record, _ in read_records(self._journal) if record["seq"] not in given_up)

    def begin_again(self) -> None:
        """Compare everything with the server again, and send what is missing."""
        self._doubtful_until = self._journal.stat().st_size
        self._note(0)

    def close(self) -> None:
        """Let another sender have the journal."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ------------------------------------------------------------------ progress

    def _attach(self) -> MlflowRun:
        self._acquire()
        if self._run is None:
            below = store_folder(self._uri)
            if below is not None and not self._journal.is_relative_to(below):
                below = None  # a store that the user has named
            self._run = MlflowRun(self._connect(self._uri), self._uri, read_identity(self._journal), below)
        if not self._attached:
            state = self._load_state()
            size = self._journal.stat().st_size
            is_new = self._run.attach(state["run_id"])
            goes_on = not is_new and state["run_id"] == self._run.run_id and state["offset"] <= size
            self._deferred = state["deferred"] if goes_on else []
            self._doubtful_until = 0 if is_new else size
            self._note(state["offset"] if goes_on else 0)
            self._attached = True
        return self._run

    def _acquire(self) -> None:
        if self._lock is not None:
            return
        lock = Lock(self._state_path.with_suffix(".lock"))
        try:
            lock.acquire()
        except LockHeldError as error:
            raise SenderBusyError(
                f"{self._journal}: {error.holder} is sending it to {uris.public(self._uri)}; {error.remedy}"
            ) from None
        self._lock = lock

    def _load_state(self) -> dict[str, Any]:
        try:
            state = read_mapping(self._state_path, _LARGEST_STATE)
            offset, deferred = int(state["offset"]), [int(start) for start in state["deferred"]]
            if min([offset, *deferred]) < 0 or max([offset, *deferred]) > self._journal.stat().st_size:
                raise ValueError(f"no offsets of this journal: {offset}, {deferred}")
            return {"run_id": str(state["run_id"]), "offset": offset, "deferred": deferred}
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return {"run_id": None, "offset": 0, "deferred": []}  # all is doubtful then, and compared with the server

    def _note(self, offset: int) -> None:
        assert self._run is not None
        self._offset = offset
        state = {
            "server": uris.public(self._uri),
            "run_id": self._run.run_id,
            "offset": offset,
            "deferred": self._deferred,
        }
        write_json(self._state_path, state, indent=None, sort_keys=False)

    def _next_batch(self) -> list[Entry]:
        """Records from the offset on that go into one request: several of kind `metrics`, or one of another kind."""
        batch: list[Entry] = []
        numbers = 0
        for record, end in read_records(self._journal, self._offset):
            if record["kind"] != "metrics":
                return batch or [(record, end)]
            numbers += len(record["values"])
            if batch and (numbers > METRICS_PER_REQUEST or self._offset < self._singly_until):
                return batch
            batch.append((record, end))
        return batch

    # ------------------------------------------------------------------ sending

    def _send_batch(self, run: MlflowRun, batch: list[Entry]) -> None:
        record, end = batch[0][0], batch[-1][1]
        try:
            self._send(run, batch)
        except Exception as error:
            self._doubtful_until = max(self._doubtful_until, end)
            self._check_run(run, error)
            if record["kind"] in _FILE_KINDS and not _is_final(error):
                run.is_gone()  # raises while the server is out of reach: then nothing is deferred
                reason = uris.scrub(f"{type(error).__name__}: {error}")
                _log.warning("MLflow: %s is tried again later: %s", record["path"], reason)
                self._deferred.append(self._offset)
            elif not _is_final(error):
                raise
            elif len(batch) > 1:
                self._singly_until = end
                return
            else:
                self._refusals += 1
                gone = isinstance(error, FileNotFoundError | OutsidePathError | OutsideStoreError)
                if self._refusals < _REFUSALS_BEFORE_GIVING_UP and not gone:
                    raise
                self._give_up(record, error)
        self._refusals = 0
        self._note(end)

    def _send_deferred(self, run: MlflowRun) -> None:
        start = self._deferred[0]
        record, end = next(read_records(self._journal, start))
        try:
            self._send(run, [(record, end)])
        except Exception as error:
            self._check_run(run, error)
            if not _is_final(error):
                self._deferred.append(self._deferred.pop(0))
                raise
            self._give_up(record, error)
        self._deferred.remove(start)
        self._note(self._offset)

    def _send(self, run: MlflowRun, batch: list[Entry]) -> None:
        sync_file(self._journal)
        record = batch[0][0]
        match record["kind"]:
            case "metrics":
                run.send_metrics([record for record, _ in batch], [end <= self._doubtful_until for _, end in batch])
            case "params":
                run.send_params(record["values"])
            case "tags":
                run.send_tags(record["values"])
            case "inputs":
                run.send_inputs(record["datasets"])
            case "artifact":
                run.send_artifact(self._own_file(record), record["target"])
            case "model":
                run.send_model(self._own_file(record), record["target"], record["registered_name"])
            case "status":
                run.send_status(record["status"], record["time"])
            case "run":
                run.nest()
            case kind:
                _log.warning("%s: a record of unknown kind %r is not sent", self._journal, kind)

    def _own_file(self, record: dict[str, Any]) -> Path:
        """The file or folder that a record names. Raises OutsidePathError unless all of it lies in the run's folder.

        A journal may come from somebody else: a path that leaves the folder, by `..`, by being absolute or by a link,
        would send a file of this user's to the server.
        """
        folder = self._journal.parent
        path = folder / record["path"]
        target = PurePosixPath(record["target"])
        if target.is_absolute() or ".." in target.parts or "\\" in record["target"]:
            raise OutsidePathError(f"artifact target {record['target']!r} leaves the run's artifacts")
        inner = path.rglob("*") if path.is_dir() else ()
        for found in (path, *inner):
            if not Path(os.path.realpath(found)).is_relative_to(folder):
                raise OutsidePathError(f"artifact {found} lies outside the run's folder {folder}; it is not sent")
            if found.exists() and not (found.is_file() or found.is_dir()):
                raise OutsidePathError(f"artifact {found} is neither a file nor a folder; it is not sent")
        return path

    def _check_run(self, run: MlflowRun, error: Exception) -> None:
        """After an error what was seen of the server may be outdated; and the run may be gone, to be made again."""
        run.forget()
        if (is_refusal(error) or says_absent(error)) and run.is_gone():
            self._attached = False
            raise RunGoneError(
                f"run {run.run_id} is no longer at {uris.public(self._uri)}; it is written again"
            ) from error

    def _give_up(self, record: dict[str, Any], error: Exception) -> None:
        reason = uris.scrub(f"{type(error).__name__}: {error}")
        _log.error("%s: record %d (%s) is refused: %s", self._journal, record["seq"], record["kind"], reason)
        line = json.dumps({"seq": record["seq"], "kind": record["kind"], "reason": reason})
        append_text(_refusals(self._journal), f"{line}\n")


def refused(journal: Path, since: int = 0) -> list[str]:
    """`model: Invalid name ...` of each record from number `since` on that the server has refused permanently."""
    return [words for number, words in _refused_numbers(journal).items() if number >= since]


def _refused_numbers(journal: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    with contextlib.suppress(OSError, UnreadableError):
        for line, _ in read_lines(_refusals(Path(journal))):
            with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
                record = parse_json(line or b"")
                found[int(record["seq"])] = uris.scrub(f"{record['kind']}: {record['reason']}")
    return found


def _refusals(journal: Path) -> Path:
    return journal.with_name(f"{journal.stem}.refused.jsonl")


def _is_final(error: Exception) -> bool:
    """Whether sending the same record again cannot help."""
    return isinstance(error, OutsidePathError | OutsideStoreError) or is_refusal(error)
