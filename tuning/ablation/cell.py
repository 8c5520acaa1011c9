"""One cell of an ablation: a system (pretrained heads, untrained heads or a raw row) judged on a set of shards.

A cell is run in one process. For every fold the heads are pretrained on its training rows, without labels; what
they give for each modality, concatenated, is the representation that the probe is fitted on, alone and beside the raw
features. Raw rows are those of an evaluation (`judge.raw_baselines`).
"""

import contextlib
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import conclugen
from conclugen import Batch, PretrainConfig, Pretrainer
from conclugen.evaluation import health
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import CONSTANTS, SINGLE, ComparisonConfig
from conclugen.evaluation.judge import (
    Predictions,
    evaluate,
    group_accuracies,
    group_class_rows,
    group_recalls,
    mean_confusion,
    merge_folds,
    raw_baselines,
    scores,
)
from conclugen.evaluation.protocol import Fold, Protocol
from conclugen.evaluation.solvers import LayerBlock
from shards import EpochPlan
from tuning.dataset import LabelledSet
from tuning.ledger import WITH_RAW, record_key

Layers = Sequence[LayerBlock]
SYSTEMS = ("pretrained", "untrained", "raw")
SCORES = ("accuracy", "uar", "f1_macro", "f1_weighted", "precision_weighted", "recall_weighted")
# Of groups: what is the same of every system; `rows/<class>` is as well.
_COUNTS = ("rows", "class_rows")


@dataclass(frozen=True)
class Cell:
    """What is run. config: None for raw rows, of these `modalities`: "raw" ones are concatenated as they are, other
    systems are named as in evaluations. method: by which it is judged, of `judge`."""

    system: str
    modalities: tuple[str, ...]
    config: PretrainConfig | None = None
    method: str = "probe"

    @property
    def seed(self) -> int:
        """Of pretraining; raw features have none."""
        return 0 if self.config is None else self.config.seed

    @property
    def tasks(self) -> tuple[str, ...]:
        return () if self.config is None or self.system != "pretrained" else tuple(self.config.tasks.active)

    def content(self) -> dict[str, Any]:
        """What decides the result, seed apart: cells of equal content are one cell, whatever preset they came from.

        Untrained heads do not depend on tasks, optimiser or length, for each parameter is drawn from seed and name.
        """
        content: dict[str, Any] = {"system": self.system, "modalities": list(self.modalities)}
        if self.method != "probe":
            content["method"] = self.method
        if self.config is None:
            return content
        whole = self.config.to_dict()
        if self.system == "untrained":
            return content | {name: whole[name] for name in ("model", "precision")}
        return content | {name: value for name, value in whole.items() if name not in ("preset", "seed")}

    def key(self, data: LabelledSet) -> str:
        return content_key(self.content(), data, self.seed)


def content_key(content: Mapping[str, Any], data: LabelledSet, seed: int) -> str:
    """By which the result of a `Cell.content` on a data set is found in a ledger."""
    return record_key(content, dataset=data.digest, seed=seed, protocol=data.judged_by)


@dataclass(frozen=True)
class Outcome:
    """Of a cell that was run; the fields are those of a ledger's record. arrays: `predicted/<fraction>` (draws, N)
    int16, -1 for rows never tested, and `target` (N,)."""

    metrics: dict[str, float]
    groups: dict[str, dict[str, float]]
    cost: dict[str, float]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def run(cell: Cell, data: LabelledSet) -> Outcome:
    """Run a cell. Raises what pretraining and probes raise (ValueError, NonFiniteLossError)."""
    started, worked = time.perf_counter(), time.process_time()
    _forget_peak_memory()
    protocol = judged_by(cell, data)
    parts: dict[str, list[list[Predictions]]] = {}
    measures: list[dict[str, float]] = []
    samples = 0
    for fold in protocol.folds:
        systems, healthy, seen = represent(cell, data, fold)
        samples += seen
        if healthy:
            measures.append(healthy)
        for name, system in systems.items():
            found = evaluate(protocol.only(fold), {cell.system: system}, (cell.method,))
            parts.setdefault(name, []).append(list(found))
    metrics: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, folds in parts.items():
        cells = [merge_folds(protocol, of_folds) for of_folds in zip(*folds, strict=True)]
        numbers, by_group = _scores(cells)
        metrics |= {f"{name}{metric}": value for metric, value in numbers.items()}
        groups |= {metric if is_count(metric) else f"{name}{metric}": own for metric, own in by_group.items()}
        arrays |= {f"{name}predicted/{found.fraction!r}": found.values for found in cells}
    metrics |= {name: float(np.mean([each[name] for each in measures])) for name in (measures[0] if measures else ())}
    cost = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
        "samples": float(samples),
        "peak_memory_bytes": _peak_memory(),
    }
    return Outcome(metrics, groups, cost, arrays | {"target": protocol.target.values.astype(protocol.target.dtype)})


def judged_by(cell: Cell, data: LabelledSet) -> Protocol:
    """The set's protocol; raw features are standardised already, on the training rows that have each modality."""
    if cell.config is not None:
        return data.protocol
    return replace(data.protocol, probe=replace(data.protocol.probe, scaling="none"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and for the linear algebra of NumPy: cells run side by side, a core each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def represent(cell: Cell, data: LabelledSet, fold: Fold) -> tuple[dict[str, Blocks], dict[str, float], int]:
    """Every row's representation, by the prefix of its numbers' names ("": alone), measures of health on the test rows,
    samples seen in pretraining."""
    features = data.standardised(cell.modalities, fold)
    if cell.config is None:
        return {"": raw_system(cell, features, data.layers)}, {}, 0
    pretrainer, everything = make_pretrainer(cell, data, fold)
    steps = int(pretrainer.steps_per_epoch) * cell.config.epochs if cell.system == "pretrained" else 0
    train(pretrainer, everything, fold, 0, steps)
    each = pretrainer.embed(everything)
    tested = torch.from_numpy(fold.test_rows.copy())
    present = {m: everything.present[m][tested] for m in cell.modalities}
    projections = {m: z[tested] for m, z in pretrainer.project(everything).items()}
    measures = health.report({m: r[tested] for m, r in each.items()}, projections, present)
    blocks = {m: r.numpy() for m, r in (each | pretrainer.embed_jointly(everything)).items()}
    systems = {"": Blocks.scaled(blocks, data.judging.block_scales)}
    if data.judging.with_raw and cell.system == "pretrained":
        whole = np.concatenate(list(blocks.values()), axis=1)
        systems[WITH_RAW] = Blocks.with_raw(whole, features)
    return systems, measures, steps * cell.config.global_batch


def raw_rows(data: LabelledSet, baselines: Sequence[str]) -> list[tuple[str, str]]:
    """(system, method) of every raw row that `baselines` ask for beside the plain ones, the constant among them."""
    rows = [(name, name) for name in CONSTANTS["class"] if "constant" in _asked(baselines).wanted]
    nothing = {m: np.zeros((1, data.widths[m])) for m in data.complete}
    for systems, methods in raw_baselines(nothing, _asked(baselines), _layers_of(data.layers, data.complete)):
        rows += [(name, method) for name in systems for method in methods]
    return [row for row in rows if row != ("raw", "probe")]


def raw_system(
    cell: Cell, features: Mapping[str, NDArray[np.float32]], layers: Mapping[str, Layers] = MappingProxyType({})
) -> Blocks:
    """Standardised features as the blocks of a raw row. layers: of all modalities of the set."""
    if cell.system == cell.method:  # a constant sees nothing
        return Blocks.plain({cell.system: np.empty((len(next(iter(features.values()))), 0))})
    if cell.system == "raw":
        return Blocks.plain(features)
    rows = raw_baselines(features, _asked(("all",)), _layers_of(layers, features))
    found = {name: value for systems, _ in rows for name, value in systems.items()}[cell.system]
    assert isinstance(found, Blocks)
    return found


def _layers_of(layers: Mapping[str, Layers], modalities: Iterable[str]) -> dict[str, Layers]:
    return {m: layers[m] for m in modalities if m in layers}


def _asked(baselines: Sequence[str]) -> ComparisonConfig:
    return ComparisonConfig(methods=("probe",), baselines=tuple(baselines))


def make_pretrainer(cell: Cell, data: LabelledSet, fold: Fold) -> tuple[Pretrainer, Batch]:
    """Heads as they begin, fitted to the fold's training rows, and all rows of the set as one batch.

    Raises ValueError where the configuration cannot be served, or the fold has fewer rows than a global batch.
    """
    config = cell.config
    assert config is not None
    # Beside what is learned, what only training reads: second views, clean columns to be told.
    names = tuple(dict.fromkeys((*cell.modalities, *config.required_modalities)))
    config.check_serves(data.widths)
    features = data.standardised(names, fold)
    fitted = None
    if config.model.standardize:
        fitted = conclugen.standardize.fit(
            {m: x[fold.train_rows[data.present[m][fold.train_rows]]] for m, x in features.items()}
        )
    steps = len(fold.train_rows) // config.global_batch
    widths = {m: x.shape[1] for m, x in features.items()}
    pretrainer = Pretrainer(config, widths, steps_per_epoch=steps, standardization=fitted)
    everything = Batch.of(
        Batch(
            {m: torch.from_numpy(x) for m, x in features.items()},
            # Arrays of Ray's object store are read-only, which torch does not know.
            {m: torch.from_numpy(data.present[m].copy()) for m in names},
            torch.arange(len(data.group)),
            group=torch.from_numpy(data.group.copy()),
        )
    )
    return pretrainer, everything


def train(
    pretrainer: Pretrainer,
    everything: Batch,
    fold: Fold,
    first: int,
    stop: int,
    seen: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> None:
    """Take the optimiser steps [first, stop) on the fold's training rows, in the order of the epoch plan. seen: is
    handed what each step reports."""
    config, per_epoch = pretrainer.config, int(pretrainer.steps_per_epoch)
    plan = EpochPlan([len(fold.train_rows)], seed=config.seed, global_batch=config.global_batch, chunk_rows=1)
    for step in range(first, stop):
        parts = plan.rows(step // per_epoch, step % per_epoch)
        chosen = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        rows = torch.from_numpy(fold.train_rows[chosen])
        reported = pretrainer.step(
            Batch(
                {m: x[rows] for m, x in everything.features.items()},
                {m: x[rows] for m, x in everything.present.items()},
                everything.row[rows],
                group=None if everything.group is None else everything.group[rows],
            )
        )
        if seen is not None:
            seen(reported)


def table_of(representations: Mapping[str, torch.Tensor]) -> NDArray[np.float32]:
    """(N, M * R): the representations of all modalities side by side."""
    return torch.cat(list(representations.values()), dim=1).numpy()


def _scores(cells: Sequence[Predictions]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores over all test rows, mean over draws, as `accuracy@0.03`; recall of each class; accuracy of each group, and
    of each class what its rows were taken for (`confusion/<class>@0.03`: class -> rows, mean over draws); of the best
    single modality how often it was which (`choices@0.03`). Where systems are compared by unweighted average recall
    also, for each class, each group's rows (`rows/<class>`) and its recall of them (`recall/<class>@0.03`)."""
    protocol = cells[0].protocol
    target, tested = protocol.target, protocol.test_rows
    owner = protocol.interval_units[tested]
    listed, counts = np.unique(owner, return_counts=True)
    metrics: dict[str, float] = {}
    groups = {"rows": {str(group): float(count) for group, count in zip(listed, counts, strict=True)}}
    support = np.bincount(target.values[tested], minlength=len(target.classes))
    groups["class_rows"] = {name: float(n) for name, n in zip(target.classes, support, strict=True)}
    if protocol.main_score == "uar":
        groups |= _by_class("rows/{}", target.classes, group_class_rows(protocol))
    for found in cells:
        of_all = scores(found)
        wanted = [*SCORES, *(name for name in of_all if name.startswith("recall/"))]
        metrics |= {f"{name}@{found.fraction:g}": of_all[name] for name in wanted}
        groups[f"accuracy@{found.fraction:g}"] = group_accuracies(found.protocol, found.values)
        if found.system == SINGLE:
            groups[f"choices@{found.fraction:g}"] = dict(Counter(found.choices))
        for name, row in zip(target.classes, mean_confusion(found.protocol, found.values), strict=True):
            own = dict(zip(target.classes, row.tolist(), strict=True))
            groups[f"confusion/{name}@{found.fraction:g}"] = {other: n for other, n in own.items() if n}
        if protocol.main_score == "uar":
            recalls = group_recalls(found.protocol, found.values)
            groups |= _by_class(f"recall/{{}}@{found.fraction:g}", target.classes, recalls)
    return metrics, groups


def _by_class(
    name: str, classes: Sequence[str], by_group: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float]]:
    """Group -> a number for each class, turned around, under the name of each class; what is nothing is left out."""
    return {
        name.format(of): {group: float(each[k]) for group, each in by_group.items() if each[k] > 0}
        for k, of in enumerate(classes)
    }


def is_count(name: str) -> bool:
    """Whether a name of `Outcome.groups` is of rows, which are the same for every system."""
    return name in _COUNTS or name.startswith("rows/")


def _forget_peak_memory() -> None:
    """Start the kernel's high-water mark again, where it can be, for a process that runs several cells."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> float:
    """Bytes of resident memory at the most since then (else since the process began)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
