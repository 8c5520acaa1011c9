"""What an ablation will cost, told before it starts: from cells done before, else from a timed probe."""

import time
from collections.abc import Mapping, Sequence

from conclugen.evaluation.judge import evaluate
from tuning.ablation.cell import make_pretrainer, one_thread, table_of, train
from tuning.ablation.plan import PlannedCell
from tuning.dataset import LabelledSet
from tuning.ledger import Record

_TIMED_STEPS = 3


def estimate(
    cells: Sequence[PlannedCell], sets: Mapping[str, LabelledSet], finished: Mapping[str, Record]
) -> dict[str, float]:
    """key -> seconds that each cell will take, on one core of this machine.

    Where cells of the same data set and system are finished, their mean. Else the costliest cell of the set is begun on
    one fold: a few optimiser steps and one probe at each fraction, multiplied by how many there are.
    """
    known: dict[tuple[str, str], list[float]] = {}
    for record in finished.values():
        place = (str(record.tags.get("dataset")), str(record.tags.get("system")))
        known.setdefault(place, []).append(record.cost.get("seconds", 0.0))
    seconds: dict[str, float] = {}
    probed: dict[str, tuple[float, float]] = {}
    for planned in cells:
        done = known.get((planned.dataset, planned.cell.system))
        if done:
            seconds[planned.key] = sum(done) / len(done)
            continue
        if planned.dataset not in probed:
            own = [other for other in cells if other.dataset == planned.dataset and other.cell.config is not None]
            costliest = max(own, key=lambda other: (len(other.cell.tasks), len(other.cell.modalities)), default=None)
            probed[planned.dataset] = _probe(costliest, sets[planned.dataset])
        step, judging = probed[planned.dataset]
        seconds[planned.key] = judging + step * _steps(planned, sets[planned.dataset])
    return seconds


def _steps(planned: PlannedCell, data: LabelledSet) -> int:
    config = planned.cell.config
    if config is None or planned.cell.system != "pretrained":
        return 0
    return sum(config.epochs * (len(fold.train_rows) // config.global_batch) for fold in data.protocol.folds)


def _probe(planned: PlannedCell | None, data: LabelledSet) -> tuple[float, float]:
    """CPU seconds of an optimiser step, and of all the cell's probes: what else the machine does is not counted."""
    if planned is None or planned.cell.config is None:
        return 0.0, 0.0
    with one_thread():
        fold = data.protocol.folds[0]
        pretrainer, everything = make_pretrainer(planned.cell, data, fold)
        train(pretrainer, everything, fold, 0, 1)
        began = time.process_time()
        train(pretrainer, everything, fold, 1, 1 + _TIMED_STEPS)
        step = (time.process_time() - began) / _TIMED_STEPS
        representation = table_of(pretrainer.embed(everything))
        judging = 0.0
        for fraction, draws in fold.labelled.items():
            began = time.process_time()
            list(evaluate(data.protocol.only(fold), {"": representation}, draws=1, fractions=(fraction,)))
            judging += (time.process_time() - began) * len(draws)
        return step, judging * len(data.protocol.folds)


def told(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
