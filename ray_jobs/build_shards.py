"""Job: folders of video to clip shards, on all CPUs of the cluster. `python -m ray_jobs.build_shards --help`."""

from __future__ import annotations

import shlex
import sys

from conclugen.common.commands import tell_next
from conclugen.common.options import Command
from ray_jobs.options.build import BuildJob


def run(job: BuildJob) -> int:
    from ray_jobs import building  # Ray, media: not before a wrong option has been refused

    status = building.run(job)
    tell_next(f"features --data {shlex.quote(str(job.output))} --output {shlex.quote(f'{job.output}-features')}")
    return status


def _known() -> str:
    """Adapters, ways with sound, and recognisers, for `--help`."""
    from shards import adapters
    from shards.media.limits import AUDIO_LENGTHS
    from shards.transcripts.recogniser import BACKENDS

    lengths = "\n".join(f"  {name:<13} {what}" for name, what in AUDIO_LENGTHS.items())
    recognisers = "\n".join(f"  {name:<13} {what}" for name, (_, what) in BACKENDS.items())
    return f"{adapters.listed()}\n\naudio lengths:\n{lengths}\n\nrecognisers:\n{recognisers}"


COMMAND = Command(
    "ray_jobs.build_shards",
    BuildJob,
    run,
    shown=(
        *("source", "output", "adapter", "table", "field", "label", "folds", "faces", "transcribe", "overwrite"),
        *("allow-incomplete", "cpus", "quiet"),
    ),
    was={"out": "output"},
    bare="source",
    epilog=_known,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
