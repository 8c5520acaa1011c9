"""Renders clips on this machine's cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from conclugen.common.screen import ClipProgress
from shards.corpus.writing import ClipPlan, ClipRow, Writer, one_by_one, write_clip


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
