"""No secret that an address can carry gets into any job, by any of its fields, or out of it by any message.

The fields are those of the option schema: a new one is covered by being there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conclugen.common.options import OptionsError, build, command, schema
from conclugen.evaluation.config import MeasureConfig
from ray_jobs import building, checkpoint_store
from ray_jobs.embedding import corpus
from ray_jobs.extraction import extract
from ray_jobs.tracking.journal import Journal
from ray_jobs.training import failures, worker
from shards import Rows
from tests import jobs
from tests.tuning.sweep.made_trials import TuneTrial
from tests.tuning.sweep.test_tune_callback import Sweep
from tuning.ablation import run as ablation
from tuning.ablation.plan import PlannedCell
from tuning.ledger import Ledger, Record
from tuning.sweep import objective, trial_actor

MARK = "Zq7marker"
URIS = {
    "password": f"http://user:{MARK}@127.0.0.1:9/x",
    "token": f"https://{MARK}@host/x",
    "key": f"s3://KEY:{MARK}@bucket/folder",
    "signed query": f"https://bucket.host/x?X-Amz-Signature={MARK}",
    "behind a cache": f"simplecache::s3://KEY:{MARK}@bucket/folder",
    "odd password": f"http://user:an 'odd' {MARK}@127.0.0.1:9/x",
    "odd name": f"https://host/x?x-api%2Dkey={MARK}",
    "in a fragment": f"https://host/x#access_token={MARK}",
}
NAMES = (*jobs.JOBS, *jobs.SHARDS)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_no_field_of_any_job_takes_a_secret_or_shows_it(
    name: str, every: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By option, in a list or a mapping of it, in a file, and where the configuration is only printed; by default in
    one of the ways for each field."""
    job = jobs.load(name)
    monkeypatch.chdir(tmp_path)
    leaves = command._leaves(job)
    monkeypatch.setattr(command, "_leaves", lambda _: leaves)
    for number, leaf in enumerate(leaves):
        option = job.option(leaf.name)
        ways = []
        for uri in URIS.values():
            value = f"a={uri}" if schema.is_mapping(leaf.hint) else uri
            path = tmp_path / f"{len(ways)}.json"
            path.write_text(json.dumps(_nested(leaf, uri)))
            ways += [[f"{option}={value}"], [f"{option}={value}", "--print-config"], ["--config", str(path)]]
        for words in ways if every else ways[number % len(ways) :][:1]:
            assert job.main(words) == 2, (words, capsys.readouterr())
            said = "".join(capsys.readouterr())
            assert MARK not in said, (words, said)
            lines = [line for line in said.splitlines() if not line.startswith("note: ")]
            assert len(lines) == 1 and lines[0].startswith("error: "), (words, said)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


def _nested(leaf: schema.Leaf, uri: str) -> dict[str, object]:
    value: object = {"a": uri} if schema.is_mapping(leaf.hint) else [uri] if schema.is_list(leaf.hint) else uri
    for part in reversed(leaf.name.split(".")):
        value = {part: value}
    return value  # type: ignore[return-value]


def test_a_job_built_without_a_command_line_is_refused_as_well() -> None:
    from ray_jobs.evaluate import EvaluateJob

    for field in ("run", "label", "test_view", "output", "tracking_uri"):
        data = {"run": "r", "label": "l", "data": {"folder": "x"}, field: URIS["token"]}
        with pytest.raises(OptionsError, match=f"^{field}: ") as refused:
            build(EvaluateJob, data)
        assert MARK not in str(refused.value)


def test_what_reaches_journals_and_ledgers_in_other_ways_is_scrubbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{MARK}/2")
    with Journal(tmp_path / "journal.jsonl", experiment="e", name="n") as journal:
        journal.params({"data": {"folder": URIS["key"], "list": [URIS["token"]]}})
        journal.tags({"reason": f"404 for {URIS['signed query']}"})
    with Ledger.open(tmp_path) as ledger:
        ledger.append(Record("k", "cell", "failed", reason=f"{URIS['password']} said no to {MARK}/2"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 and not [path for path in files if MARK in path.read_text()]


def test_what_a_run_says_of_a_library_s_error_is_scrubbed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a worker that died without a record of its own, of a checkpoint that a store refused, of a rank's record."""
    error = RuntimeError(f"Worker exit detail: PUT {URIS['signed query']} by {URIS['password']} failed")
    error.worker_failures = {0: error}  # type: ignore[attr-defined]
    said = [failures.describe([], error, 7), failures.describe([], RuntimeError(f"GET {URIS['token']}"), 7)]
    said += [checkpoint_store.describe(OSError(5, "x", URIS["key"])), checkpoint_store.describe(error)]
    with contextlib.suppress(RuntimeError), failures.Heartbeat(tmp_path / "failures.jsonl", "a", 0, 1, 60.0):
        raise error
    said += [(tmp_path / "failures.jsonl").read_text(), "".join(capsys.readouterr())]
    assert MARK not in "".join(said)
    assert "PUT https://bucket" in said[0] and all("127.0.0.1:9" in text for text in said[3:5]), said


def test_what_sweeps_and_ablations_say_of_what_died_is_scrubbed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A trial, a cell, a raw row that isn't judged: in what is printed, journals, ledger and MLflow's tags."""
    monkeypatch.setenv("MY_API_TOKEN", f"{MARK}/3")

    sweep = Sweep(tmp_path / "s")
    sweep.begin(0)
    died = f"Traceback\n  OSError: GET {URIS['signed query']} with {MARK}/3 failed\n"
    sweep.callback.on_trial_error(0, [], TuneTrial(0, None, died))
    (tag,) = [tags["values"]["reason"] for tags in sweep.of(0, "tags") if "reason" in tags["values"]]
    assert tag.startswith("died: OSError: GET https://bucket.host/x?X-Amz-Signature=*** with *** failed")

    cell: Any = SimpleNamespace(config=None, seed=1, content=dict)
    planned = PlannedCell("k", "a", cell, (), {})
    said = f"{'x' * 480} {MARK}/3"  # a reason is cut within the secret
    monkeypatch.setattr(ablation.ray, "get", lambda _: (_ for _ in ()).throw(OSError(said)))
    record = ablation._keep(planned, None, Ledger.open(tmp_path / "a"))
    assert record.status == "failed" and record.reason.endswith("xxx ***")

    features = {"audio": np.ones((4, 2), np.float32)}
    rows = Rows(features, {"audio": np.ones(4, bool)}, np.arange(4), {}, None)
    train, held_out = (objective.Labelled(rows, np.arange(4) % 2, np.arange(4) + at) for at in (0, 4))
    judge = objective.Judge(MeasureConfig(baselines=("raw",)), ("a", "b"), train, rows, held_out)
    monkeypatch.setattr(objective, "evaluate", lambda *_: (_ for _ in ()).throw(ValueError(URIS["token"])))
    assert judge.rows_beside() == {}
    (tmp_path / "a" / "ledger" / "bad.jsonl").write_text(
        json.dumps({"kind": f"{MARK}/3", "key": "k", "status": "failed"}) + "\n"
    )
    assert len(list(Ledger.open(tmp_path / "a").history())) == 1 and "left out line 1" in caplog.text
    printed = "".join([*capsys.readouterr(), caplog.text])
    assert "died: OSError" in printed and "not judged: https://host/x" in printed
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.name != "bad.jsonl"]
    assert len(files) >= 3 and MARK not in "".join([printed, record.reason, *files])


def test_other_libraries_messages_are_scrubbed_wherever_they_are_shown(tmp_path: Path) -> None:
    """Loggers that exist already, traces, warnings, errors that nothing catches; in threads too."""
    program = f"""
import logging, sys, threading, warnings
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
theirs = logging.getLogger("theirs")
handler = logging.FileHandler(sys.argv[1])
theirs.addHandler(handler)
from conclugen.common import uris
uris.scrub_output()
uris.scrub_output()
uri = {URIS["password"]!r}
theirs.warning("retry of %s", uri)
theirs.debug("sent {{'Authorization': 'Basic {MARK}=='}} and authorization: Bearer {MARK}")
theirs.warning("as quoted: Zq7marker%2Fx%40")
try:
    raise OSError("no route to " + uri)
except OSError:
    theirs.exception("failed")
warnings.warn("slow " + uri)
warnings.warn_explicit("of ours " + uri, UserWarning, uris.__file__, 1)
thread = threading.Thread(target=lambda: (_ for _ in ()).throw(ValueError("in a thread " + uri)))
thread.start(); thread.join()
raise RuntimeError("at the end " + uri)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "MY_TOKEN": f"{MARK}/x@"},
        timeout=60,
    )
    said = done.stdout + done.stderr + (tmp_path / "log").read_text()
    # The lines of source that a trace shows are this program's own, without the value.
    assert MARK not in said, said
    for part in ("retry of http://127.0.0.1:9/x", "no route to", "slow", "in a thread", "at the end", "as quoted: ***"):
        assert part in said, part
    assert "\nwarning: of ours http://127.0.0.1:9/x\n" in done.stderr  # in words, without a line of the source
    assert said.count("Traceback") == 4, said  # logged twice


def test_what_workers_log_is_scrubbed_from_their_first_line_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray starts in another process: it has none of the command's own settings."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    nothing: Any = None
    begin: dict[str, Callable[[], object]] = {
        "training": lambda: worker.train(nothing),
        "build": lambda: next(building._build_task(nothing)),
        "decoding": lambda: next(extract._EncodeRanges(nothing, [])({"id": [0]})),
        "encoder": lambda: extract._EncoderActor(nothing),
        "embedding": lambda: corpus._InTasks(nothing, ())({"id": [0]}),
        "embedding of clips": lambda: corpus._EmbedTables(nothing),
        "embedding of features": lambda: corpus._EmbedRanges(nothing, nothing, []),
        "cell": lambda: ablation._run_cell._function(nothing, nothing),
        "trial": lambda: trial_actor.TrialActor.setup(nothing, {}, nothing, nothing),
    }
    try:
        for name, first in begin.items():
            logging.setLogRecordFactory(logging.LogRecord)
            with contextlib.suppress(Exception):  # there is nothing to work on
                first()
            record = logging.getLogRecordFactory()("theirs", 30, "", 1, "retry of %s", (URIS["password"],), None)
            assert record.getMessage() == "retry of http://127.0.0.1:9/x", name
    finally:
        logging.setLogRecordFactory(factory)
