"""The progress of a run, read from its journal: a bar on a terminal, a line every half minute in a log."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from conclugen.common.screen import Progress, clock
from ray_jobs.tracking.journal import read_records


class ProgressPrinter:
    """Shows the reports of a run while it continues, and prints each of its validations.

    Args:
        journal: The run's journal; only records written from now on are printed.
        total_steps: Steps of the whole run, for the share and the time left.
    """

    def __init__(self, journal: Path, total_steps: int):
        self._journal = journal
        self._total = total_steps
        self._offset = journal.stat().st_size if journal.exists() else 0
        self._progress = Progress(first=0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressPrinter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            last_turn = self._stop.wait(0.5)
            self._print_new()
            if last_turn:
                return

    def _print_new(self) -> None:
        if not self._journal.exists():
            return
        for record, offset in read_records(self._journal, self._offset):
            self._offset = offset
            if record["kind"] != "metrics":
                continue
            if record["series"] == "train" and "samples_per_second" in record["values"]:
                step, values = record["step"], record["values"]
                line = training_line(step, self._total, values)
                self._progress.show(line, step / self._total, last=step >= self._total)
            elif record["series"] == "validation":
                print(validation_line(record["step"], record["values"]), flush=True)


def training_line(step: int, total: int, values: dict[str, Any]) -> str:
    """`step 40/200  loss 3.21  TASK 5.1 ...  1,234 samples/s  data wait 2.0%  queue 1.9  left 00:41:00`.

    queue: batches that were read ahead when the loop asked for one.
    """
    losses = "  ".join(
        f"{name.removeprefix('loss/')} {value:.4g}"
        for name, value in sorted(values.items())
        if name.startswith("loss/")
    )
    queue = f"  queue {values['input_queue_depth']:.1f}" if "input_queue_depth" in values else ""
    left = clock((total - step) * values["step_seconds"])
    return (
        f"step {step:>{len(str(total))}}/{total}  loss {values['loss']:.4f}  {losses}  "
        f"{values['samples_per_second']:,.0f} samples/s  data wait {values['data_wait_share']:.1%}{queue}  "
        f"left {left}"
    )


def validation_line(step: int, values: dict[str, Any]) -> str:
    """The measures that people follow; the journal has all of them."""
    shown = {name: value for name, value in sorted(values.items()) if name.startswith(_FOLLOWED)}
    return f"validation at step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


_FOLLOWED = ("effective_rank/", "recall@10/", "neighbour_accuracy", "clusters/used")
