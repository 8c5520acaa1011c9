"""Settings of evaluations. Loads neither torch nor NumPy, so that command lines can read it at once."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from conclugen.fields import choose, require
from conclugen.schedule import OptimizerConfig

Kind = Literal["class", "multilabel", "continuous"]
Fit = Literal["l1", "mse"]
ProbeWeights = Literal["none", "balanced"]
SelectBy = Literal["accuracy", "uar"]
Mode = Literal["inductive", "speaker_normalised"]
PROBE_WEIGHTS: tuple[ProbeWeights, ...] = get_args(ProbeWeights)
SELECT_BY: tuple[SelectBy, ...] = get_args(SelectBy)
MODES: tuple[Mode, ...] = get_args(Mode)

METHODS = ("probe", "neighbours", "fine_tune")
# Predictions that know the training labels alone, by kind of label: see `judge`.
CONSTANTS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {"class": ("majority",), "multilabel": ("frequency",), "continuous": ("mean", "median")}
)
BASELINES = tuple(name for names in CONSTANTS.values() for name in names)

# Rows beside a representation: those that are cheap, and all there are.
CHEAP_BASELINES = ("constant", "untrained", "raw", "raw_balanced", "best_modality")
SLOW_BASELINES = (
    "block_weights",
    "late_fusion",
    "shrinkage_lda",
    "rbf_machine",
    "boosted_trees",
    "self_training",
    "supervised",
)
# How the modalities of a concatenation share the variance.
BLOCK_SCALES = ("plain", "balanced", "chosen")
# Systems that hold raw features and nothing learned without labels: the strongest row of these is the one to beat.
LAYERS_WEIGHED = "raw, layers weighed"
SINGLE = "best single modality"
RAW_SYSTEMS = ("raw", "raw balanced", SINGLE, "raw, block weights chosen", LAYERS_WEIGHED)

# Candidates of C, the inverse of a probe's penalty: of logistic regressions, and of ridge regressions.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RIDGE_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

# Class weights of the authors' configurations (github.com/tub-cv-group/conclugen), in the order of each data set's
# label indices.
PUBLISHED_WEIGHTS = MappingProxyType(
    {
        # neutral, surprise, fear, sadness, joy, disgust, anger
        "meld": (4.0, 15.0, 15.0, 3.0, 1.0, 6.0, 3.0),
        # neutral, calm, happy, sad, angry, fearful, disgust, surprised: neutral has half as many clips
        "ravdess": (1.875, 0.9375, 0.9375, 0.9375, 0.9375, 0.9375, 0.9375, 0.9375),
        # happy, sad, anger, surprise, disgust, fear: weights of the positive rows in a binary cross-entropy
        "mosei": (1.05285, 5.21507, 5.33730, 19.48985, 7.04484, 23.68800),
    }
)
CLASS_WEIGHTS = ("none", "inverse_frequency", "frequency", *PUBLISHED_WEIGHTS)


def _check_fractions(name: str, fractions: tuple[float, ...]) -> None:
    require(bool(fractions), name, fractions, "at least one share of the labels")
    for fraction in fractions:
        require(0 < fraction <= 1, name, fraction, "shares above 0 and up to 1")


@dataclass(frozen=True)
class ProbeConfig:
    """How probes and neighbours learn from the labelled rows of a split.

    Attributes:
        strengths: Candidates for C; a single one is used as it is. None: `STRENGTHS`, of continuous labels
            `RIDGE_STRENGTHS`.
        inner_folds: Folds over training groups by which a candidate is chosen.
        scaling: Rows that features are standardised on: `training` (all of the fold's, labels unused), `labelled`, or
            `none`: they are taken as they are.
        inner_groups: Groups that inner folds are dealt to: all of the fold's `training` rows, or those of the
            `labelled` ones.
        class_weights: `none`, or `balanced`: rows of n_k among n labelled ones weigh n / (K n_k), so that every class
            weighs the same in sum. Of class labels, as is `select_by`.
        select_by: Score on held-out groups by which a candidate is chosen: `accuracy`, or `uar`, the unweighted
            average recall over the classes that have rows there.
    """

    strengths: tuple[float, ...] | None = None
    inner_folds: int = 3
    scaling: Literal["training", "labelled", "none"] = "training"
    inner_groups: Literal["training", "labelled"] = "training"
    class_weights: ProbeWeights = "none"
    select_by: SelectBy = "accuracy"

    def __post_init__(self) -> None:
        choose("probe.class_weights", self.class_weights, PROBE_WEIGHTS)
        choose("probe.select_by", self.select_by, SELECT_BY)


def _published_optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr=0.00967, weight_decay=0.004)


@dataclass(frozen=True)
class FineTuneConfig:
    """The published classifier: dropout and a linear layer. Defaults are the published ones, but for `epochs`, which
    was not published: early stopping ends most runs.

    Attributes:
        epochs: Passes over the labelled rows, at most.
        batch: Rows of an optimiser step.
        dropout: Share of the inputs that is hidden from each row.
        patience: Epochs without a lower validation loss before training stops.
        seed: Of initial weights, order of rows and dropout.
        optimizer: Of the linear layer.
        continuous_loss: Loss of continuous labels, `l1` or `mse`.
        text_encoder: Encoder of texts in whose space the names of the classes are targets beside the classes
            themselves; None: the published head, which does not know what classes are called.
        text_share: Of the loss and of the scores, what the comparison with the names has.
        text_prompt: What is encoded of a class, with `{}` for its name.
        text_temperature: What similarities to the names are divided by.
    """

    epochs: int = 200
    batch: int = 4096
    dropout: float = 0.5
    patience: int = 15
    seed: int = 127
    optimizer: OptimizerConfig = field(default_factory=_published_optimizer)
    continuous_loss: Fit = "l1"
    text_encoder: str | None = None
    text_share: float = 0.5
    text_prompt: str = "a person who is {}"
    text_temperature: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.text_share <= 1, "text_share", self.text_share, "above 0, at most 1")
        require(0 < self.text_temperature <= 1, "text_temperature", self.text_temperature, "above 0, at most 1")
        require(self.text_prompt.count("{}") == 1, "text_prompt", self.text_prompt, "a text with {} once, for the name")
        for name in ("epochs", "batch", "patience"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share from 0 to below 1")
        choose("continuous_loss", self.continuous_loss, ("l1", "mse"))


@dataclass(frozen=True)
class ComparisonConfig:
    """What is compared, on one split into training and test rows.

    Attributes:
        methods: `probe` (logistic or ridge regression), `neighbours` (cosine vote; classes only), `fine_tune` (the
            published dropout and linear layer, trained by gradient descent).
        fractions: Shares of the training rows whose labels are used. A draw of too few to learn from is named below the
            table, where it leaves a dash or a mean of fewer draws.
        draws: Label draws of each share below 1.
        class_weights: Of the fine-tuned head's loss; a data set's name is its published list.
        sentiment: Score a continuous label as CMU-MOSI's: Acc-7 and both Acc-2.
        seed: Of draws, bootstrap and fine-tuning.
        fine_tune: Settings of the fine-tuned head.
        probe_weights: Of the classes in the probe's loss: `none` or `balanced`.
        select_by: Score by which the probe's strength (and blocks) are chosen: `accuracy` or `uar`.
        baselines: Rows beside the representation: `constant` (the best one), `untrained` heads, `raw` features side by
            side (of encoders that store all their layers also the weighted sum of these, learned by the probe),
            `raw_balanced` (each modality the same share of the variance), `best_modality` (of raw ones, chosen on
            held-out training groups); slower: `block_weights` (shares of the variance, chosen so), `late_fusion` (a
            probe for each modality), `shrinkage_lda`, `rbf_machine`, `boosted_trees`, `self_training`, `supervised`
            (the heads and their fusion, trained on the labels alone); or `all`.
    """

    methods: tuple[str, ...] = METHODS
    fractions: tuple[float, ...] = (0.03, 0.1, 1.0)
    draws: int = 3
    class_weights: str = "none"
    sentiment: bool = False
    seed: int = 127
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    baselines: tuple[str, ...] = CHEAP_BASELINES
    probe_weights: ProbeWeights = "none"
    select_by: SelectBy = "accuracy"

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the baselines, `all` spelt out."""
        return (*CHEAP_BASELINES, *SLOW_BASELINES) if "all" in self.baselines else self.baselines

    def __post_init__(self) -> None:
        choose("comparison.probe_weights", self.probe_weights, PROBE_WEIGHTS)
        choose("comparison.select_by", self.select_by, SELECT_BY)
        for baseline in self.baselines:
            choose("comparison.baselines", baseline, (*CHEAP_BASELINES, *SLOW_BASELINES, "all"))
        require(bool(self.methods), "comparison.methods", self.methods, "at least one method")
        for method in self.methods:
            choose("comparison.methods", method, METHODS)
        choose("comparison.class_weights", self.class_weights, CLASS_WEIGHTS)
        _check_fractions("comparison.fractions", self.fractions)
        require(self.draws >= 1, "comparison.draws", self.draws, "1 or more")


@dataclass(frozen=True)
class JudgingConfig:
    """How the representations of an ablation are judged.

    Attributes:
        fractions: Shares of the training rows whose labels the probe sees; all of them is 1.
        draws: Draws of labels at each share below 1.
        folds: Folds over the groups, where the shards have no views train and test.
        inner_folds: Folds over training groups by which the probe's strength is chosen.
        draw_seed: Of the draws of labels; the same for every system and pretraining seed.
        class_weights: Of the classes in the probe's loss: `none` or `balanced`.
        select_by: Score by which the probe's strength is chosen: `accuracy` or `uar`.
        block_scales: How the modalities of a representation share the variance: `plain`, `balanced` or `chosen`.
        with_raw: Judge each representation once more beside the raw features, each at half of the total variance.
        normalisation: Features standardised on the training rows (`inductive`), or those of each unit of splits by its
            own unlabelled rows (`speaker_normalised`: transductive, and much easier; never compared with the other).
    """

    fractions: tuple[float, ...] = (0.03, 0.1, 1.0)
    draws: int = 5
    folds: int = 4
    inner_folds: int = 3
    draw_seed: int = 127
    class_weights: ProbeWeights = "none"
    select_by: SelectBy = "accuracy"
    block_scales: str = "plain"
    with_raw: bool = True
    normalisation: Mode = "inductive"

    def __post_init__(self) -> None:
        choose("judging.normalisation", self.normalisation, MODES)
        choose("judging.block_scales", self.block_scales, BLOCK_SCALES)
        choose("judging.class_weights", self.class_weights, PROBE_WEIGHTS)
        choose("judging.select_by", self.select_by, SELECT_BY)
        _check_fractions("judging.fractions", self.fractions)
        for name, least in (("draws", 1), ("folds", 2), ("inner_folds", 2)):
            require(getattr(self, name) >= least, f"judging.{name}", getattr(self, name), f"{least} or more")


@dataclass(frozen=True)
class MeasureConfig:
    """How the trials of a sweep are measured.

    Attributes:
        label_fraction: Share of the labelled training rows that the probe learns from.
        draw: Which draw of them.
        strengths: Of the probe (C); of several, inner folds over the labelled training groups choose (and cost time).
        inner_folds: Of that choice.
        fusion: `concat`, `mean`, or the name of one modality: what the probe sees.
        clusters: K of the k-means behind `cluster_usage`.
        test_views: Views that no search may touch, besides those with `test` in their name.
        class_weights: Of the classes in the probe's loss: `none` or `balanced`.
        select_by: Score by which one of several strengths is chosen: `accuracy` or `uar`.
        block_scales: Of a concatenation, how the modalities share the variance: `plain`, `balanced` or `chosen`.
        baselines: Rows beside the trials, as `comparison.baselines` of an evaluation has them, judged once; untrained
            heads are those of the best trial. Trials that ran to their end are also judged beside the raw features of
            their modalities, each at half of the total variance.
    """

    label_fraction: float = 1.0
    draw: int = 0
    strengths: tuple[float, ...] = (1e-2,)
    inner_folds: int = 3
    fusion: str = "concat"
    clusters: int = 16
    test_views: tuple[str, ...] = ()
    class_weights: ProbeWeights = "none"
    select_by: SelectBy = "accuracy"
    block_scales: str = "plain"
    baselines: tuple[str, ...] = CHEAP_BASELINES

    def __post_init__(self) -> None:
        choose("measure.block_scales", self.block_scales, BLOCK_SCALES)
        for baseline in self.baselines:
            choose("measure.baselines", baseline, (*CHEAP_BASELINES, *SLOW_BASELINES, "all"))
        choose("measure.class_weights", self.class_weights, PROBE_WEIGHTS)
        choose("measure.select_by", self.select_by, SELECT_BY)
        require(0 < self.label_fraction <= 1, "measure.label_fraction", self.label_fraction, "above 0, at most 1")
        require(bool(self.strengths) and min(self.strengths) > 0, "measure.strengths", self.strengths, "above 0")
        require(self.inner_folds >= 2, "measure.inner_folds", self.inner_folds, "2 or more")
        require(self.clusters >= 2, "measure.clusters", self.clusters, "2 or more")
