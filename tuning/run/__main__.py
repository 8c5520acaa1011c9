"""`python -m tuning.run`."""

from __future__ import annotations

import sys

from conclugen.common.options import Command
from conclugen.common.paths import absolute
from tuning.run.job import RunJob


def run(job: RunJob) -> int:
    _read_table(job)
    from tuning.run import stages  # torch, Ray: not before a wrong option, or a wrong table, has been refused

    return stages.run(job)


def _read_table(job: RunJob) -> None:
    """Read the table of a folder of clips, and look for its files. ValueError for what is wrong with them."""
    source = absolute(job.source, "source")
    if job.labels is None or not source.is_dir():
        return
    from shards.adapters import read_clips
    from shards.packing.labels import LabelSpec
    from shards.tools.check import kind_of

    if kind_of(source) == "clips":
        read_clips(
            "folder",
            source,
            job.allow_incomplete,
            table=absolute(job.labels, "labels"),
            fields=job.columns,
            labels=tuple(map(LabelSpec.parse, job.label)),
            encoding=job.encoding,
        )


COMMAND = Command(
    "tuning.run",
    RunJob,
    run,
    shown=(
        *("source", "labels", "label", "group", "text", "encoding", "allow_incomplete", "run", "output", "encoders"),
        *("batch", "epochs", "workers", "gpu", "overwrite"),
    ),
    bare="source",
    was={"table": "labels"},
)


if __name__ == "__main__":
    sys.exit(COMMAND.main())
