"""What a representation is worth: probes, neighbours, fine-tuned heads, their scores, intervals and baselines.

NumPy in, plain results out. Rows without a label are left out by the caller; rows without a representation too, or
they are fused from the modalities that are there.
"""

from conclugen.downstream.baselines import Majority, raw_features, untrained_heads
from conclugen.downstream.bootstrap import (
    Interval,
    Resampling,
    bootstrap_interval,
    confusion_difference,
    confusion_interval,
    group_sums,
    holm,
    macro_f1,
    mean_difference,
    mean_interval,
    unweighted_average_recall,
)
from conclugen.downstream.class_weights import frequency, inverse_frequency, positive_weights, published
from conclugen.downstream.decisions import Kind
from conclugen.downstream.finetune import Epoch, FineTuneConfig, FineTuned, fine_tune
from conclugen.downstream.fractions import label_draw
from conclugen.downstream.fusion import fuse
from conclugen.downstream.knn import NEIGHBOURS, NeighbourVote, neighbour_vote
from conclugen.downstream.metrics import (
    ContinuousScores,
    MultiLabelScores,
    PerClass,
    SentimentScores,
    SingleLabelScores,
    confusion_matrix,
    continuous,
    mean_of_defined,
    multi_label,
    sentiment,
    single_label,
)
from conclugen.downstream.probe import (
    RIDGE_STRENGTHS,
    STRENGTHS,
    Probe,
    ProbeResult,
    fit_classes,
    fit_labels,
    fit_values,
    held_out_probe,
)
from conclugen.downstream.scaling import Scaling, standardize_by_group
from conclugen.downstream.score_intervals import (
    class_intervals,
    continuous_intervals,
    multilabel_intervals,
    sentiment_intervals,
)
from conclugen.downstream.selection import group_folds

__all__ = [
    "NEIGHBOURS",
    "RIDGE_STRENGTHS",
    "STRENGTHS",
    "ContinuousScores",
    "Epoch",
    "FineTuneConfig",
    "FineTuned",
    "Interval",
    "Kind",
    "Majority",
    "MultiLabelScores",
    "NeighbourVote",
    "PerClass",
    "Probe",
    "ProbeResult",
    "Resampling",
    "Scaling",
    "SentimentScores",
    "SingleLabelScores",
    "bootstrap_interval",
    "class_intervals",
    "confusion_difference",
    "confusion_interval",
    "confusion_matrix",
    "continuous",
    "continuous_intervals",
    "fine_tune",
    "fit_classes",
    "fit_labels",
    "fit_values",
    "frequency",
    "fuse",
    "group_folds",
    "group_sums",
    "held_out_probe",
    "holm",
    "inverse_frequency",
    "label_draw",
    "macro_f1",
    "mean_difference",
    "mean_interval",
    "mean_of_defined",
    "multi_label",
    "multilabel_intervals",
    "neighbour_vote",
    "positive_weights",
    "published",
    "raw_features",
    "sentiment",
    "sentiment_intervals",
    "single_label",
    "standardize_by_group",
    "untrained_heads",
    "unweighted_average_recall",
]
