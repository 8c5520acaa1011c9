"""From a linear model's raw outputs to probabilities and predictions."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from conclugen.downstream.checks import Floats
from conclugen.downstream.solvers import sigmoid, softmax

Kind = Literal["class", "multilabel", "continuous"]


def probabilities(kind: Kind, raw: Floats) -> Floats:
    """(N, K) logits to probabilities: softmax over the classes, or a sigmoid for each label."""
    if kind == "continuous":
        raise ValueError("probabilities: continuous labels have values, no probabilities; call predict")
    return softmax(raw) if kind == "class" else sigmoid(raw)


def predictions(kind: Kind, raw: Floats) -> NDArray[Any]:
    """(N,) class indices, (N, L) labels in {0, 1} at probability 0.5, or the (N, T) values themselves."""
    if kind == "class":
        return raw.argmax(axis=1)
    return (raw > 0).astype(np.int64) if kind == "multilabel" else raw
