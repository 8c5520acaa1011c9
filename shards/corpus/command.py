"""`python -m shards.corpus FOLDER`: renders the corpus on this machine's cores."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from shards.clips.clip_progress import ClipProgress
from shards.corpus.emotions import EMOTIONS
from shards.corpus.writing import (
    TABLE_NAME,
    ClipPlan,
    ClipRow,
    CorpusConfig,
    Writer,
    one_by_one,
    write_clip,
    write_corpus,
)


def in_processes(processes: int) -> Writer:
    """A writer that spreads clips over processes and tells how far it is."""

    def write(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
        if processes == 1:
            yield from _shown(one_by_one(folder, plans), len(plans))
            return
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            try:
                waiting = [pool.submit(write_clip, folder, plan) for plan in plans]
                yield from _shown((done.result() for done in as_completed(waiting)), len(plans))
            finally:  # an error or Ctrl-C waits for the clips that are being rendered, not for all
                pool.shutdown(cancel_futures=True)

    return write


def _shown(rows: Iterator[ClipRow], total: int) -> Iterator[ClipRow]:
    progress = ClipProgress(total)
    for number, row in enumerate(rows, 1):
        progress.show(number, last=number == total)
        yield row


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    default = CorpusConfig()
    parser = argparse.ArgumentParser(
        "python -m shards.corpus",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Render talking faces: MP4 files with sound, and a table of labels beside them. Each of the\n"
        f"speakers acts {len(EMOTIONS)} emotions ({', '.join(EMOTIONS)}), a few takes of each.",
        epilog="Clip shards of it:\n  python -m ray_jobs.build_shards --adapter folder --source FOLDER --out SHARDS "
        f"\\\n      --table FOLDER/{TABLE_NAME} --field group=speaker --field text=transcript \\\n"
        f"      --label emotion:class:{','.join(EMOTIONS)} --label valence:continuous",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a new or empty folder")
    add("--speakers", type=int, default=default.speakers, metavar="N", help="default: %(default)s")
    add("--takes", type=int, default=default.takes, metavar="N", help="of each emotion by each speaker (%(default)s)")
    add("--seed", type=int, default=default.seed, metavar="N", help="of all draws (default: %(default)s)")
    add("--silent", type=float, default=default.silent, metavar="SHARE", help="clips without sound (%(default)s)")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one for each core")
    add("--overwrite", action="store_true", help="replace a corpus in FOLDER")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the corpus; returns the exit status: 0, 1 where it can't be written, or 2 for wrong input."""
    args = arguments().parse_args(argv)
    try:
        if args.processes < 1:
            raise ValueError(f"processes is {args.processes}, expected at least 1")
        config = CorpusConfig(args.speakers, args.takes, args.seed, args.silent)
        rows = write_corpus(args.folder, config, in_processes(args.processes), args.overwrite)
    except (ValueError, OSError) as error:
        print(f"python -m shards.corpus: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(f"{len(rows)} clips of {config.speakers} speakers: {args.folder.absolute() / TABLE_NAME}")
    return 0
