"""The field's simple classifiers as baselines, by scikit-learn: (N, D) features and (N,) classes in, classes out.

Each takes the standardised labelled rows, their inner folds (held-out training groups, which choose what is chosen),
the standardised test rows and the training rows without labels, and a seed. All are of classes, and weigh them and
select as the linear probe beside them does.
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
from conclugen.evaluation.config import ProbeWeights, SelectBy

# Candidates of an RBF machine's C.
MACHINE_STRENGTHS = (0.1, 1.0, 10.0, 100.0)
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
    widths: Columns of each block of X, one after the other.
    class_weights: `none`, or `balanced`: every class weighs the same in sum.
    select_by: Score on held-out groups by which a candidate is chosen: `accuracy` or `uar`.
    """

    X: Floats
    y: Integers
    fold: Integers
    unlabelled: Floats
    test: Floats
    strength: float
    seed: int
    widths: tuple[int, ...] = ()
    class_weights: ProbeWeights = "none"
    select_by: SelectBy = "accuracy"

    @property
    def weighing(self) -> str | None:
        """As scikit-learn names it."""
        return "balanced" if self.class_weights == "balanced" else None

    def score(self, true: Integers, guess: Integers) -> float:
        """Of classes predicted for held-out rows."""
        from sklearn.metrics import accuracy_score, recall_score

        if self.select_by == "accuracy":
            return float(accuracy_score(true, guess))
        return float(recall_score(true, guess, labels=np.unique(true), average="macro"))


def shrinkage_lda(task: Task) -> Integers:
    """Linear discriminant analysis with the covariance shrunk by Ledoit & Wolf (2004)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    with warnings.catch_warnings():
        # Constant columns make the covariance singular until it is shrunk; scikit-learn warns all the same.
        warnings.simplefilter("ignore")
        classes = len(np.unique(task.y))
        priors = np.full(classes, 1 / classes) if task.weighing else None  # its form of class weights
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(task.X, task.y)
    return np.asarray(model.predict(task.test))


def rbf_machine(task: Task) -> Integers:
    """Support vector machine with a Gaussian kernel, gamma 1 / (D variance), C by inner folds."""
    from sklearn.svm import SVC

    return _chosen(task, MACHINE_STRENGTHS, lambda strength: SVC(C=strength, class_weight=task.weighing))


def boosted_trees(task: Task) -> Integers:
    """Gradient-boosted trees on binned columns, scikit-learn's defaults. No block scale changes them."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(early_stopping=False, random_state=task.seed, class_weight=task.weighing)
    return np.asarray(model.fit(task.X, task.y).predict(task.test))


def self_training(task: Task) -> Integers:
    """Logistic regression at the probe's strength that labels the unlabelled training rows it is sure of, and repeats
    (Yarowsky 1995). Without unlabelled rows it is the probe."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    base = LogisticRegression(C=task.strength, max_iter=2000, class_weight=task.weighing)
    if not len(task.unlabelled):
        return np.asarray(base.fit(task.X, task.y).predict(task.test))
    model = SelfTrainingClassifier(base, threshold=SELF_TRAINING_THRESHOLD)
    both = np.concatenate([task.X, task.unlabelled])
    known = np.concatenate([task.y, np.full(len(task.unlabelled), -1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some rows stayed unlabelled is its result, no fault
        return np.asarray(model.fit(both, known).predict(task.test))


def supervised(task: Task) -> Integers:
    """The product's own heads and their fusion, trained on the labels alone: see `supervised.fusion_network`."""
    from conclugen.evaluation.supervised import fusion_network  # the only one that needs torch

    counts = np.bincount(task.y)
    weights = len(task.y) / (len(counts) * counts) if task.weighing else None
    widths = task.widths or (task.X.shape[1],)
    predicted, _ = fusion_network(
        task.X, task.y, task.fold, task.test, widths, task.score, weights=weights, seed=task.seed
    )
    return predicted


def _chosen(task: Task, grid: Sequence[float], make: Callable[[float], Any]) -> Integers:
    """Predictions of the candidate that scores best on held-out groups, of equals the first."""
    right = np.zeros(len(grid))
    for held_out in np.unique(task.fold):
        kept, judged = task.fold != held_out, task.fold == held_out
        if len(np.unique(task.y[kept])) < 2:  # nothing to tell apart: every candidate predicts the one class
            continue
        for i, candidate in enumerate(grid):
            model = make(candidate).fit(task.X[kept], task.y[kept])
            right[i] += task.score(task.y[judged], model.predict(task.X[judged]))
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
