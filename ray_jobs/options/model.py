"""Options of the jobs that put clips through a finished run's model: embed and serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A finished run's model, and what comes out of it.

    Attributes:
        run: A finished pretraining run in `output`.
        output: Folder of all runs.
        label: Evaluated label whose probe gives probabilities; none: the only one, of a run with several none.
        evaluation: Of several evaluations of the label (of other data, views or fusion) the one whose probe it is: its
            folder's name in the run's `evaluation`; none: the only one.
        fusion: How modalities become one vector: `concat`, `mean`, `concat+raw` (beside the raw features, each half of
            the variance), or one modality.
        window: Length of a timeline's window in seconds.
        stride: Seconds from the start of one window to that of the next.
    """

    run: str
    output: Path = Path("outputs")
    label: str | None = None
    evaluation: str | None = None
    fusion: str = "concat"
    window: float = 2.0
    stride: float = 0.5
