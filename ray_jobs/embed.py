"""Job: representations of new clips by a pretrained run. `python -m ray_jobs.embed --help`.

python -m ray_jobs.embed CLIP... --run NAME            video files: embeddings, class probabilities, timelines
python -m ray_jobs.embed --data FOLDER --run NAME      shards of clips or of features, through Ray Data
"""

from __future__ import annotations

import sys
from pathlib import Path

from conclugen.common.commands import tell_next
from conclugen.common.options import Command
from ray_jobs.options.embed import EmbedJob
from ray_jobs.run_config import DEFAULT_OUTPUT


def run(job: EmbedJob) -> int:
    from ray_jobs.embedding import embed  # torch, Ray: not before a wrong option has been refused

    status = embed.run(job)
    where = [] if job.output == Path(DEFAULT_OUTPUT) else ["--output", str(job.output)]
    tell_next(["serve", job.run, *where])
    return status


COMMAND = Command(
    "ray_jobs.embed",
    EmbedJob,
    run,
    shown=(
        *("run", "files", "data", "output", "embeddings", "label", "evaluation", "fusion", "window", "stride", "text"),
        *("weights", "plugin", "gpus", "actors"),
    ),
    was={"clips": "data", "features": "data", "out": "embeddings"},
    bare="files",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
