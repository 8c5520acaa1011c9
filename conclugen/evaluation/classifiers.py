"""The field's simple classifiers as baselines, by scikit-learn: (N, D) features and (N,) classes in, classes out.

Each takes the standardised labelled rows, their inner folds (held-out training groups, which choose what is chosen),
the standardised test rows and the training rows without labels, and a seed. All are of classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen.common.extras import require
from conclugen.evaluation.checks import Floats, Integers

# Candidates of an RBF machine's C, and of the penalty of a network's weights.
MACHINE_STRENGTHS = (0.1, 1.0, 10.0, 100.0)
NETWORK_PENALTIES = (1e-3, 1e-1, 10.0)
NETWORK_WIDTH = 64
# A row joins the labelled ones when its most likely class is at least this likely.
SELF_TRAINING_THRESHOLD = 0.75


@dataclass(frozen=True)
class Task:
    """Attributes:
    X: (n, D) labelled rows.
    y: (n,) their classes.
    fold: (n,) inner fold of each.
    unlabelled: (u, D) training rows without labels.
    test: (t, D) rows to predict.
    strength: C of the linear probe on the same rows.
    seed: Of what is drawn.
    """

    X: Floats
    y: Integers
    fold: Integers
    unlabelled: Floats
    test: Floats
    strength: float
    seed: int


def shrinkage_lda(task: Task) -> Integers:
    """Linear discriminant analysis with the covariance shrunk by Ledoit & Wolf (2004)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    with warnings.catch_warnings():
        # Constant columns make the covariance singular until it is shrunk; scikit-learn warns all the same.
        warnings.simplefilter("ignore")
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(task.X, task.y)
    return np.asarray(model.predict(task.test))


def rbf_machine(task: Task) -> Integers:
    """Support vector machine with a Gaussian kernel, gamma 1 / (D variance), C by inner folds."""
    from sklearn.svm import SVC

    return _chosen(task, MACHINE_STRENGTHS, lambda strength: SVC(C=strength))


def boosted_trees(task: Task) -> Integers:
    """Gradient-boosted trees on binned columns, scikit-learn's defaults. No block scale changes them."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(early_stopping=False, random_state=task.seed)
    return np.asarray(model.fit(task.X, task.y).predict(task.test))


def self_training(task: Task) -> Integers:
    """Logistic regression at the probe's strength that labels the unlabelled training rows it is sure of, and repeats
    (Yarowsky 1995). Without unlabelled rows it is the probe."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    base = LogisticRegression(C=task.strength, max_iter=2000)
    if not len(task.unlabelled):
        return np.asarray(base.fit(task.X, task.y).predict(task.test))
    model = SelfTrainingClassifier(base, threshold=SELF_TRAINING_THRESHOLD)
    both = np.concatenate([task.X, task.unlabelled])
    known = np.concatenate([task.y, np.full(len(task.unlabelled), -1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some rows stayed unlabelled is its result, no fault
        return np.asarray(model.fit(both, known).predict(task.test))


def supervised(task: Task) -> Integers:
    """A small fusion network trained on the labels alone: the concatenated blocks, one hidden layer of 64 rectified
    units, softmax; Adam; the penalty of its weights by inner folds."""
    from sklearn.neural_network import MLPClassifier

    def make(penalty: float) -> Any:
        return MLPClassifier((NETWORK_WIDTH,), alpha=penalty, max_iter=200, random_state=task.seed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 200 passes are its length, converged or not
        return _chosen(task, NETWORK_PENALTIES, make)


def _chosen(task: Task, grid: Sequence[float], make: Callable[[float], Any]) -> Integers:
    """Predictions of the candidate that is right most often on held-out groups, of equals the first."""
    right = np.zeros(len(grid))
    for held_out in np.unique(task.fold):
        kept, judged = task.fold != held_out, task.fold == held_out
        if len(np.unique(task.y[kept])) < 2:  # nothing to tell apart: every candidate predicts the one class
            continue
        for i, candidate in enumerate(grid):
            model = make(candidate).fit(task.X[kept], task.y[kept])
            right[i] += (model.predict(task.X[judged]) == task.y[judged]).mean()
    return np.asarray(make(grid[int(right.argmax())]).fit(task.X, task.y).predict(task.test))


CLASSIFIERS: Mapping[str, Callable[[Task], NDArray[np.int64]]] = {
    "shrinkage_lda": shrinkage_lda,
    "rbf_machine": rbf_machine,
    "boosted_trees": boosted_trees,
    "self_training": self_training,
    "supervised": supervised,
}


def classify(name: str, task: Task) -> Integers:
    """Predictions (t,) of a classifier by name."""
    require(f"baseline {name}", "sklearn")
    return CLASSIFIERS[name](task)
