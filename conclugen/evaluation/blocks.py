"""Modalities side by side for a penalised probe: how much of the total variance each one gets.

A concatenation of standardised columns gives each modality a share of the variance that is proportional to its width,
which has nothing to do with what it says: beside 347 columns of audio, 35 of video are 9 % to an L2 penalty. Dividing
each block by the square root of its width gives all the same share. Which shares serve best is a choice of the probe,
made on held-out training groups as its strength is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.evaluation.checks import Floats
from conclugen.evaluation.solvers import LayerBlock

Weights = Mapping[str, float]
# Share of the total variance that the chosen weights may give one modality; the others divide the rest.
LEADING = 0.8


@dataclass(frozen=True)
class Blocks:
    """Blocks of columns, and the ways to weigh them among which a probe chooses.

    Attributes:
        arrays: Name of a block -> (N, D_b).
        choices: Name of a choice -> block -> its weight: in the standardised matrix its share of the total variance is
            its weight over the sum of weights. A block without a weight is left out. The total variance is the number
            of columns that are left, as in a plain concatenation, so that strengths mean the same for every choice.
        layers: Block -> those of its columns that are layers side by side, of which a probe learns the weighted sum.

    Raises:
        ValueError: no block, blocks of different numbers of rows, a weight of an unknown block or not above 0.
    """

    arrays: Mapping[str, Floats]
    choices: Mapping[str, Weights]
    layers: Mapping[str, Sequence[LayerBlock]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = {name: len(array) for name, array in self.arrays.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"blocks: must be one or more, of equally many rows, got {rows}")
        if not self.choices:
            raise ValueError("blocks: must have at least one choice of weights, got none")
        for choice, weights in self.choices.items():
            for block, weight in weights.items():
                if block not in self.arrays or not weight > 0:
                    raise ValueError(
                        f"blocks, choice {choice!r}: weights must be above 0 and of {', '.join(self.arrays)}; "
                        f"got {weight} of {block!r}"
                    )

    @classmethod
    def plain(cls, arrays: Mapping[str, ArrayLike]) -> Blocks:
        """Side by side as they are: shares of the variance are shares of the columns."""
        blocks = _blocks(arrays)
        return cls(blocks, {"plain": _plain(blocks)})

    @classmethod
    def layered(cls, arrays: Mapping[str, ArrayLike], layers: Mapping[str, Sequence[LayerBlock]]) -> Blocks:
        """Side by side as they are, but for the layers."""
        return replace(cls.plain(arrays), layers=layers)

    @classmethod
    def balanced(cls, arrays: Mapping[str, ArrayLike]) -> Blocks:
        """The same share for each block."""
        return cls(_blocks(arrays), {"balanced": dict.fromkeys(arrays, 1.0)})

    @classmethod
    def single(cls, arrays: Mapping[str, ArrayLike]) -> Blocks:
        """One block alone; which is chosen."""
        return cls(_blocks(arrays), {name: {name: 1.0} for name in arrays})

    @classmethod
    def weighted(cls, arrays: Mapping[str, ArrayLike]) -> Blocks:
        """Plain, balanced, each block leading (80 % of the variance), each block alone: which is chosen.

        Of equally good choices the first wins.
        """
        blocks = _blocks(arrays)
        choices: dict[str, Weights] = {"plain": _plain(blocks)}
        if len(blocks) > 1:
            if len({array.shape[1] for array in blocks.values()}) > 1:  # equally wide blocks are balanced as they are
                choices["balanced"] = dict.fromkeys(blocks, 1.0)
            rest = (1 - LEADING) / (len(blocks) - 1)
            for leader in blocks:
                choices[f"{leader} leading"] = {name: LEADING if name == leader else rest for name in blocks}
            for name in blocks:
                choices[f"{name} alone"] = {name: 1.0}
        return cls(blocks, choices)

    @classmethod
    def scaled(cls, arrays: Mapping[str, ArrayLike], how: str) -> Blocks:
        """`plain`, `balanced` or `chosen` (`BLOCK_SCALES`)."""
        return {"plain": cls.plain, "balanced": cls.balanced, "chosen": cls.weighted}[how](arrays)

    @classmethod
    def with_raw(cls, representation: ArrayLike, raw: Mapping[str, ArrayLike]) -> Blocks:
        """A representation (N, R) beside raw modalities: half of the variance to each side, raw ones balanced."""
        weights = {"representation": 0.5} | {f"raw {name}": 0.5 / len(raw) for name in raw}
        arrays = {"representation": representation} | {f"raw {name}": array for name, array in raw.items()}
        return cls(_blocks(arrays), {"halves": weights})

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def matrix(self) -> Floats:
        """(N, D) all blocks side by side, unscaled."""
        return np.concatenate(list(self.arrays.values()), axis=1)

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each block, in the order of `matrix`."""
        return {name: array.shape[1] for name, array in self.arrays.items()}

    @property
    def only_choice(self) -> str | None:
        """The name of the choice where there is one alone."""
        return next(iter(self.choices)) if len(self.choices) == 1 else None

    def columns(self, choice: str) -> tuple[NDArray[np.int64], Floats]:
        """Columns of `matrix` that a choice keeps, and the factor of each after standardisation."""
        weights = self.choices[choice]
        widths = self.widths
        starts = dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
        kept = [name for name in self.arrays if name in weights]
        total, columns = sum(weights.values()), sum(widths[name] for name in kept)
        at = [np.arange(starts[name], starts[name] + widths[name]) for name in kept]
        factors: list[Floats] = [
            np.full(widths[name], np.sqrt(weights[name] * columns / (total * widths[name])))
            if widths[name]
            else np.empty(0)
            for name in kept
        ]
        return np.concatenate(at), np.concatenate(factors)

    def layers_of(self, choice: str) -> list[LayerBlock]:
        """Among the columns that a choice keeps."""
        found, start = [], 0
        for name in self.arrays:
            if name in self.choices[choice]:
                found += [replace(block, start=block.start + start) for block in self.layers.get(name, ())]
                start += self.widths[name]
        return found


def _blocks(arrays: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    return {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}


def _plain(blocks: Mapping[str, Floats]) -> Weights:
    """Weights that leave every column exactly as it is; an empty block has none to scale."""
    return {name: float(max(array.shape[1], 1)) for name, array in blocks.items()}
