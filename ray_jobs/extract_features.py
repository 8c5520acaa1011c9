"""Job: clip shards to feature shards through frozen encoders. `python -m ray_jobs.extract_features --help`."""

from __future__ import annotations

import sys

from conclugen.common.commands import tell_next
from conclugen.common.options import Command
from ray_jobs.options.extract import ExtractJob


def run(job: ExtractJob) -> int:
    from ray_jobs.extraction import extract  # torch, Ray: not before a wrong option has been refused
    from shards.commands import learn_from
    from shards.format.manifest import MANIFEST_NAME

    status = extract.run(job)
    if (job.output / MANIFEST_NAME).is_file():  # not every clip was left out
        tell_next(learn_from(job.output))
    return status


def known_encoders() -> str:
    """What can be named, for `--help`."""
    from conclugen.encoders import registry

    sets = "\n".join(f"  {name:<19} {', '.join(members)}" for name, members in registry.SETS.items())
    encoders = "\n".join(f"  {name:<19} {offer.about}" for name, offer in registry.offers().items())
    return f"sets of encoders:\n{sets}\n\nencoders:\n{encoders}"


COMMAND = Command(
    "ray_jobs.extract_features",
    ExtractJob,
    run,
    shown=(
        *("data", "output", "encoders", "weights", "plugin", "crop", "views", "sequences", "gpus", "actors"),
        *("overwrite", "seed", "quiet"),
    ),
    was={"clips": "data", "out": "output"},
    bare="data",
    epilog=known_encoders,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
