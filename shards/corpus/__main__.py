"""`python -m shards.corpus`: renders talking faces."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from conclugen.common import machine
from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, Command


@dataclass(frozen=True, kw_only=True)
class CorpusJob:
    """Render talking faces: MP4 files with sound, and a table of labels beside them.

    Each of the speakers acts six emotions, a few takes of each.

    Attributes:
        output: A new or empty folder; given without an option.
        speakers: Speakers that are drawn.
        takes: Clips of each emotion by each speaker.
        seed: Of all draws.
        silent: Share of the clips that have no sound.
        processes: Processes that render; the default is one for each core.
        overwrite: Replace a corpus in the output.
    """

    output: Path
    speakers: int = 16
    takes: int = 4
    seed: int = 0
    silent: float = 0.03
    processes: int = field(default_factory=machine.cores)
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes: must be at least 1, got {self.processes}")


def run(job: CorpusJob) -> int:
    # OpenCV, PyAV: not before a wrong option has been refused
    from shards.corpus.processes import in_processes
    from shards.corpus.writing import TABLE_NAME, CorpusConfig, write_corpus

    config = CorpusConfig(job.speakers, job.takes, job.seed, job.silent)
    rows = write_corpus(job.output, config, in_processes(job.processes), job.overwrite)
    print(f"{len(rows)} clips of {config.speakers} speakers: {job.output.absolute() / TABLE_NAME}")
    place = shlex.quote(str(job.output))
    tell_next(f"run {place} --labels {place}/clips.csv --label emotion --group speaker")
    return GOOD


def _example() -> str:
    from shards.corpus.emotions import EMOTIONS

    return (
        "clip shards of it:\n  conclugen build --adapter folder --source FOLDER --output SHARDS "
        f"\\\n      --table FOLDER/clips.csv --field group=speaker --field text=transcript \\\n"
        f"      --label emotion:class:{','.join(EMOTIONS)} --label valence:continuous"
    )


COMMAND = Command("shards.corpus", CorpusJob, run, bare="output", epilog=_example)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
