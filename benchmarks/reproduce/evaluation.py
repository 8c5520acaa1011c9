"""Evaluations of the systems of a page: predictions that are kept as files, and tables of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.reproduce import kept
from conclugen.evaluation import judge
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.config import FineTuneConfig
from conclugen.evaluation.judge import FoldAccuracy
from conclugen.evaluation.protocol import Protocol, Target
from conclugen.evaluation.statistics import DEFAULT, Interval, Resampling


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one system by one protocol.

    `predicted[fraction]` (draws, N) int16: class predicted for each test row, -1 for rows that no fold tests.
    `strengths[fraction]` (draws, folds): the C that was chosen. `seeds`: of pretraining; where there are several, the
    draws of one seed follow those of the other; `seed_names`: which they are, in that order, empty where nothing is
    drawn from one or it is not known. `values` (seeds, N): a continuous label as predicted from all labels, NaN for
    rows that no fold tests; None where the set has none. `seconds`: of CPU time that judging took, all folds and seeds
    together.
    """

    protocol: str
    predicted: Mapping[float, NDArray[np.int16]]
    strengths: Mapping[float, NDArray[np.float64]]
    seeds: int = 1
    values: NDArray[np.float64] | None = None
    seconds: float = 0.0
    seed_names: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.seed_names and len(self.seed_names) != self.seeds:
            raise ValueError(f"seed_names: {self.seed_names} name {len(self.seed_names)} seeds, expected {self.seeds}")

    def of_seeds(self, names: Sequence[int]) -> Evaluation:
        """The draws of these of its seeds, in this order. Time is theirs in proportion."""
        at = [self.seed_names.index(name) for name in names]

        def taken(array: NDArray[Any]) -> NDArray[Any]:
            return array.reshape(self.seeds, -1, array.shape[1])[at].reshape(-1, array.shape[1])

        return replace(
            self,
            predicted={f: taken(predicted) for f, predicted in self.predicted.items()},
            strengths={f: taken(strengths) for f, strengths in self.strengths.items()},
            seeds=len(at),
            values=None if self.values is None else self.values[at],
            seconds=self.seconds * len(at) / self.seeds,
            seed_names=tuple(names),
        )

    def by_seed(self, protocol: Protocol, fraction: float) -> NDArray[np.int16]:
        """(seeds, draws, N) predictions at a fraction."""
        predicted = self.of(protocol, fraction)
        return predicted.reshape(self.seeds, -1, predicted.shape[1])

    def draws(self, fraction: float) -> int:
        """Draws of labels at a fraction, each counted once for all seeds."""
        return len(self.predicted[fraction]) // self.seeds

    def save(self, path: Path, what: Mapping[str, Any] | None = None) -> None:
        """As `.npz` with a record of `what` it was made from (`kept`), read back by `load`."""
        arrays: dict[str, NDArray[Any]] = {
            "protocol": np.asarray(self.protocol),
            "seeds": np.asarray(self.seeds),
            "seconds": np.asarray(self.seconds),
        }
        for fraction, predicted in self.predicted.items():
            arrays[f"predicted/{fraction!r}"] = predicted
            arrays[f"strengths/{fraction!r}"] = self.strengths[fraction]
        if self.values is not None:
            arrays["values"] = self.values
        kept.save(path, what or {}, arrays)

    @classmethod
    def load(cls, path: Path | str) -> Evaluation:
        with np.load(path, allow_pickle=False) as stored:
            fractions = [name.removeprefix("predicted/") for name in stored.files if name.startswith("predicted/")]
            predicted = {float(fraction): stored[f"predicted/{fraction}"] for fraction in fractions}
            strengths = {float(fraction): stored[f"strengths/{fraction}"] for fraction in fractions}
            values = stored["values"] if "values" in stored.files else None
            seconds = float(stored["seconds"])
            return cls(str(stored["protocol"]), predicted, strengths, int(stored["seeds"]), values, seconds)

    def of(self, protocol: Protocol, fraction: float) -> NDArray[np.int16]:
        """(draws, N) predictions at a fraction; ValueError where they are of another protocol, or there are none."""
        if self.protocol != protocol.name:
            raise ValueError(f"evaluation of protocol {self.protocol!r}, expected {protocol.name!r}")
        if fraction not in self.predicted:
            raise ValueError(f"fraction: {fraction}; this evaluation has {sorted(self.predicted)}")
        return self.predicted[fraction]


def evaluate(
    protocol: Protocol,
    representation: ArrayLike | Blocks,
    draws: int | None = None,
    standardized: bool = False,
    values: ArrayLike | None = None,
    method: str = "probe",
    seed: int = 127,
) -> Evaluation:
    """Predictions of one (N, R) representation of every row, or of blocks, by logistic probes or another method.

    standardized: it is taken as it is (raw features after `normalise`), not standardised on the fold's training rows.
    values (N,): a continuous label, predicted by ridge regression from those of all the fold's training rows. seed: of
    methods that draw.
    """
    started = time.process_time()
    probe = replace(protocol.probe, scaling="none") if standardized else protocol.probe
    protocol = replace(protocol, probe=probe)
    settings = FineTuneConfig(seed=seed)
    cells = {
        found.fraction: found
        for found in judge.evaluate(protocol, {method: representation}, (method,), draws=draws, fine_tune=settings)
    }
    regressed = None
    if values is not None:
        target = Target("value", "continuous", np.asarray(values, dtype=np.float64))
        continuous = replace(protocol, target=target, probe=replace(probe, strengths=None))
        (found,) = judge.evaluate(continuous, {method: representation}, (method,), fractions=(1.0,))
        regressed = found.values
    return Evaluation(
        protocol.name,
        {fraction: found.values for fraction, found in cells.items()},
        {fraction: found.strengths for fraction, found in cells.items()},
        values=regressed,
        seconds=time.process_time() - started,
    )


def majority(protocol: Protocol, draws: int | None = None) -> Evaluation:
    """The baseline that predicts the most frequent class of the labelled rows (of equals the first)."""
    return evaluate(protocol, np.empty((protocol.rows, 0)), draws, method="majority")


def cell(protocol: Protocol, evaluation: Evaluation, fraction: float, resampling: Resampling = DEFAULT) -> FoldAccuracy:
    """Accuracy of a system at one label fraction."""
    return judge.fold_accuracy(protocol, evaluation.of(protocol, fraction), resampling)


def paired(
    protocol: Protocol, first: Evaluation, second: Evaluation, fraction: float, resampling: Resampling = DEFAULT
) -> Interval:
    """Accuracy of the first minus that of the second, bootstrap over the test groups, same draws of labels.

    A system pretrained from several seeds has each draw once for each seed.
    """
    one, other = first.of(protocol, fraction), second.of(protocol, fraction)
    if first.draws(fraction) != second.draws(fraction):
        raise ValueError(
            f"draws at fraction {fraction}: {first.draws(fraction)} of the first system and {second.draws(fraction)} "
            "of the second; pairs need the same draws"
        )
    return judge.paired(protocol, one, other, resampling)


def merge(folds: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of all folds: their test rows are disjoint, and -1 where a fold does not test."""
    fractions = folds[0].predicted
    return Evaluation(
        folds[0].protocol,
        {f: np.maximum.reduce([part.predicted[f] for part in folds]) for f in fractions},
        {f: np.concatenate([part.strengths[f] for part in folds], axis=1) for f in fractions},
        folds[0].seeds,
        _together([part.values for part in folds], lambda values: np.fmax.reduce(values)),
        sum(part.seconds for part in folds),
        folds[0].seed_names,
    )


def stack(seeds: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of the same rows by systems that differ in their seed: their draws one after another."""
    return Evaluation(
        seeds[0].protocol,
        {f: np.concatenate([one.predicted[f] for one in seeds]) for f in seeds[0].predicted},
        {f: np.concatenate([one.strengths[f] for one in seeds]) for f in seeds[0].strengths},
        sum(one.seeds for one in seeds),
        _together([one.values for one in seeds], np.concatenate),
        sum(one.seconds for one in seeds),
        tuple(name for one in seeds for name in one.seed_names),
    )


def _together(
    values: Sequence[NDArray[np.float64] | None], how: Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    given = [value for value in values if value is not None]
    if given and len(given) != len(values):
        raise ValueError(
            f"scores of continuous labels: {len(given)} of {len(values)} cells have them; remove the kept cells"
        )
    return how(given) if given else None


def table(
    protocol: Protocol, systems: Mapping[str, Evaluation], resampling: Resampling = DEFAULT
) -> dict[str, dict[float, FoldAccuracy]]:
    """System -> fraction -> cell, in the order given. One table holds one normalisation mode: keep them apart."""
    return {
        name: {fraction: cell(protocol, evaluation, fraction, resampling) for fraction in sorted(evaluation.predicted)}
        for name, evaluation in systems.items()
    }


def markdown(cells: Mapping[str, Mapping[float, FoldAccuracy]]) -> str:
    """A table for a report: `mean ± deviation over folds [interval over groups]`; a hole is an em dash."""
    fractions = sorted({fraction for row in cells.values() for fraction in row})
    head = ["representation", *(f"{fraction:.0%} of labels" for fraction in fractions)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in cells.items():
        shown = [_shown(row[fraction]) if fraction in row else "—" for fraction in fractions]
        lines.append("| " + " | ".join([name, *shown]) + " |")
    return "\n".join(lines)


def _shown(value: FoldAccuracy) -> str:
    deviation = f" ± {value.deviation:.3f}" if np.isfinite(value.deviation) else ""
    return f"{value.mean:.3f}{deviation} [{value.interval.low:.3f}, {value.interval.high:.3f}]"
