"""The commands of `python -m shards`; what does the work is imported when their options have been read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, PARTIAL, Command
from shards.options import CheckJob, ConvertPickleJob, IndexJob, PackJob, SplitJob, StatsJob, VerifyJob, by_name


def _run(module: str, then: Callable[[Any], str | None] | None = None) -> Callable[[Any], int]:
    """Runs a command's job, and names the next command unless it failed. then: the job -> that command."""

    def run(job: Any) -> int:
        status: int = import_module(module).run(job)  # numpy, Arrow: not before a wrong option has been refused
        if then is not None and status in (GOOD, PARTIAL) and (line := then(job)) is not None:
            tell_next(line)
        return status

    return run


def learn_from(folder: str | Path) -> str:
    """The command that learns from feature shards, by their first label where they have one; before it, where they have
    no views, the one that divides them, unless they are too few for that: `run` learns from all of these."""
    from shards.format.manifest import Manifest
    from shards.planning.view import ROW, IndexValues, View

    manifest = Manifest.open(folder)
    if not View.names(manifest) and manifest.rows >= _FEWEST_DIVIDED:
        by = "group" if manifest.schema.grouped else ROW
        if by == ROW or len(IndexValues.read(manifest, by).names) >= len(_PARTS):
            parts = ",".join(f"{name}={share}" for name, share in _PARTS.items())
            return f"split {shlex.quote(str(folder))} --by {by} --parts {parts} --seed 0"
    labels = manifest.labels
    return f"run {shlex.quote(str(folder))}" + (f" --label {labels[0].name}" if labels else "")


def _work_on(words: Sequence[str]) -> str | None:
    """The command that works on shards, of clips or of features; None of several: how they mix is for people to say."""
    folder, *others = by_name(words).values()
    if others:
        return None
    try:
        return learn_from(folder)
    except (OSError, ValueError):  # of clips; the job is done, and no hint makes it fail
        return f"run {shlex.quote(folder)}"


_PARTS = {"train": 0.7, "valid": 0.1, "test": 0.2}
_FEWEST_DIVIDED = 20  # rows, as of `conclugen run`

_PACK_EXAMPLE = """\
example:
  conclugen pack --source ravdess_features.npz --output shards/ravdess \\
    --column video=visual_au35 --column audio_egemaps=audio_egemaps88 --column audio_mfcc=audio_mfcc259 \\
    --modality video=video --modality audio=audio_egemaps,audio_mfcc \\
    --label emotion:class:names=emotion_names --group actor --key ids --text text"""
_INDEX_EXAMPLE = """\
example:
  conclugen index data --column video=video.npy --column audio=audio.npy \\
    --label mood=json#mood:class:calm,angry --group json#speaker --text txt"""
_CONVERT_EXAMPLE = """\
example:
  conclugen convert-pickle aligned_50.pkl --output mosi.npz
  conclugen pack --source mosi.npz --output shards/mosi --key id --column audio --pool mean \
    --zero-padding --meta split --view-by split"""
_CHECK_EXAMPLES = """\
examples:
  conclugen check videos --labels labels.csv --label emotion --group person
  conclugen check features.npz --labels labels.csv --table-key id --key ids --label emotion:class --group speaker
  conclugen check labels.csv"""


def _about_check() -> str:
    """Examples, and the data sets whose layout is known, for `--help`."""
    from shards import adapters

    return f"{_CHECK_EXAMPLES}\n\n{adapters.listed()}"


CHECK = Command(
    "shards check",
    CheckJob,
    _run("shards.tools.check"),
    short={"labels": "table"},
    bare="source",
    epilog=_about_check,
)
PACK = Command(
    "shards pack",
    PackJob,
    _run("shards.packing.command", lambda job: learn_from(job.output)),
    was={"out": "output"},
    bare="source",
    epilog=lambda: _PACK_EXAMPLE,
)
INDEX = Command(
    "shards index",
    IndexJob,
    _run("shards.webdataset_import.command", lambda job: learn_from(job.output or job.data)),
    was={"out": "output"},
    bare="data",
    epilog=lambda: _INDEX_EXAMPLE,
)
CONVERT_PICKLE = Command(
    "shards convert-pickle",
    ConvertPickleJob,
    _run("shards.webdataset_import.convert_pickle", lambda job: f"run {shlex.quote(str(job.output))}"),
    was={"out": "output"},
    bare="source",
    epilog=lambda: _CONVERT_EXAMPLE,
)
VERIFY = Command(
    "shards verify", VerifyJob, _run("shards.verification.command", lambda job: _work_on(job.data)), bare="data"
)
STATS = Command(
    "shards stats",
    StatsJob,
    _run("shards.tools.stats", lambda job: None if job.json == "-" else _work_on(job.data)),
    bare="data",
)
SPLIT = Command(
    "shards split",
    SplitJob,
    _run("shards.planning.split", lambda job: learn_from(job.data)),
    was={"groups": "take", "replace": "overwrite"},
    bare="data",
)
COMMANDS = {
    command.name.removeprefix("shards "): command
    for command in (CHECK, PACK, INDEX, CONVERT_PICKLE, VERIFY, STATS, SPLIT)
}
