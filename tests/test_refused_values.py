"""The borders of configuration values: the last one that is accepted on either side, and the first that is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from conclugen import presets
from conclugen.config import PretrainConfig
from conclugen.evaluation.config import ComparisonConfig, FineTuneConfig, JudgingConfig, MeasureConfig, ProbeConfig
from conclugen.evaluation.protocols.calibration import CalibrationConfig
from conclugen.evaluation.protocols.centring import CentringConfig
from conclugen.evaluation.protocols.cost import CostConfig
from conclugen.evaluation.protocols.gaps import GapsConfig
from conclugen.evaluation.protocols.labels_to_target import LabelsToTargetConfig
from conclugen.evaluation.protocols.missing_modalities import MissingModalitiesConfig
from conclugen.evaluation.protocols.registry import ProtocolsConfig
from conclugen.evaluation.protocols.transfer import TransferConfig
from conclugen.evaluation.statistics import Resampling
from conclugen.model_config import ModelConfig
from conclugen.schedule import OptimizerConfig
from conclugen.search_space import Range
from conclugen.tasks.clustering import ClusteringConfig
from conclugen.tasks.contrastive import ContrastiveConfig
from conclugen.tasks.reconstruction import ReconstructionConfig
from conclugen.tasks.siglip import SiglipConfig
from conclugen.tasks.simclr import SimclrConfig
from conclugen.tasks.vicreg import VicregConfig
from ray_jobs.embedding.clips import Windows
from ray_jobs.extraction.extract import Resources
from ray_jobs.extraction.plan import Augmentation, Decoding
from ray_jobs.run_config import DataConfig, RunConfig
from shards.clips.plan import BuildOptions
from shards.corpus.writing import CorpusConfig
from shards.errors import CorruptionLog
from shards.format.schema import Column, Label
from shards.media.limits import Limits
from shards.media.prepare import Request
from shards.packing.pooling import Pooling
from shards.planning.plan import Cursor
from shards.reading.ray_source import Execution
from tuning.ablation.job import AblateJob
from tuning.sweep.job import ResourceConfig, ScheduleConfig, SweepJob
from tuning.sweep.space import Space

TINY, BELOW_1, NAN = 1e-9, 1 - 1e-9, math.nan
Make = Callable[..., Any]
Borders = list[tuple[Make, str, list[Any], list[Any]]]


def pretrain(**changes: Any) -> PretrainConfig:
    return presets.build("conclugen", **changes)


def tasks(**changes: Any) -> PretrainConfig:
    return presets.build("conclugen", tasks=changes)


def data(**changes: Any) -> DataConfig:
    return DataConfig(folder="/data", **changes)


def run(**changes: Any) -> RunConfig:
    return RunConfig(**{"name": "one", **changes})


def four_workers(**changes: Any) -> RunConfig:
    return run(workers=4, **changes)


def ablate(**changes: Any) -> AblateJob:
    return AblateJob(**{"datasets": {"a": "/data"}, **changes})


def sweep(**changes: Any) -> SweepJob:
    return SweepJob(**{"data": data(), "name": "one", **changes})


def damage(**changes: Any) -> CorruptionLog:
    return CorruptionLog(total_rows=10, **changes)


def column(**changes: Any) -> Column:
    return Column("v", **changes)


def label(**changes: Any) -> Label:
    return Label("l", "continuous", **changes)


# (made by, field, accepted, refused)
OF_LEARNING: Borders = [
    (pretrain, "global_batch", [2], [1, 0]),
    (pretrain, "epochs", [1], [0, -1]),
    (pretrain, "clip_norm", [None, TINY], [0.0, math.inf, NAN]),
    (pretrain, "micro_batch", [None, 1], [0]),
    (pretrain, "precision", ["float32", "bfloat16", "float64"], ["float16"]),
    (pretrain, "modalities", [["a1", "b_2"]], [["a", "a"], ["a b", "c"], ["a.b", "c"]]),
    (tasks, "divisor", ["active", "configured"], ["all"]),
    (tasks, "weighting", ["static", "uncertainty", "gradnorm", "dynamic"], ["none", "share"]),  # weights sum to 3
    (tasks, "gradients", ["sum", "pcgrad"], ["mean"]),
    (tasks, "learned_weight_lr", [0.0], [-TINY, math.inf]),
    (tasks, "gradnorm_alpha", [0.0], [-TINY, NAN]),
    (tasks, "share_band", [0.0, BELOW_1], [-TINY, 1.0]),
    (tasks, "share_every", [0, 1], [-1]),
    *[(ModelConfig, f"{name}_dim", [1], [0]) for name in ("representation", "projection", "reconstruction_hidden")],
    (ModelConfig, "projection_shrink", [1], [0]),
    *[(ModelConfig, f"{name}_activation", ["relu", "none"], ["tanh"]) for name in ("representation", "projection")],
    (ModelConfig, "initialisation", ["uniform", "orthogonal"], ["normal"]),
    (ModelConfig, "input_clip", [TINY], [0.0]),
    (ModelConfig, "feature_mask", [0.0, BELOW_1], [-TINY, 1.0]),
    (OptimizerConfig, "lr", [1e-6, 1.0], [0.0, math.inf, NAN, 1e-7]),  # the last is below min_lr
    (OptimizerConfig, "min_lr", [0.0, 2e-5], [-TINY, 2.1e-5]),
    (OptimizerConfig, "weight_decay", [0.0], [-TINY, math.inf]),
    (OptimizerConfig, "decay", ["all", "matrices"], ["none"]),
    (OptimizerConfig, "beta1", [0.0, BELOW_1], [-TINY, 1.0]),
    (OptimizerConfig, "beta2", [0.0, BELOW_1], [-TINY, 1.0]),
    (OptimizerConfig, "eps", [1e-30], [0.0]),
    (OptimizerConfig, "warmup_epochs", [0.0], [-TINY, math.inf]),
    (OptimizerConfig, "warmup_start", [TINY, 1.0], [0.0, 1 + TINY]),
    (OptimizerConfig, "restart_epochs", [TINY], [0.0, math.inf]),
    (OptimizerConfig, "restart_factor", [1], [0]),
    (OptimizerConfig, "peak_decay", [TINY, 1.0], [0.0, 1 + TINY]),
    (ClusteringConfig, "clusters", [2], [1]),
    (ClusteringConfig, "queue_batches", [0], [-1]),
    (ClusteringConfig, "start_epoch", [0], [-1]),
    (ClusteringConfig, "mode", ["joint", "individual"], ["mean"]),
    (ClusteringConfig, "margin", [0.0, BELOW_1], [-TINY, 1.0]),
    (ClusteringConfig, "score", ["dot", "cosine"], ["l2"]),
    (ClusteringConfig, "temperature", [TINY, 1.0], [0.0, 1 + TINY]),
    (ClusteringConfig, "kmeans_start", ["random", "warm"], ["plus"]),
    (ClusteringConfig, "max_iterations", [1], [0]),
    (ClusteringConfig, "queue", ["per_epoch", "rolling"], ["none"]),
    (ContrastiveConfig, "margin", [0.0, BELOW_1], [-TINY, 1.0]),
    (ContrastiveConfig, "temperature", [None, 0.01, 1.0], [0.0099, 1 + TINY]),
    (ContrastiveConfig, "learn_temperature", [False], [True]),
    (ContrastiveConfig, "negatives", ["all", "same_group"], ["others"]),
    (ReconstructionConfig, "output_activation", ["relu", "none"], ["tanh"]),
    (SiglipConfig, "inverse_temperature", [1.0, 100.0], [1 - TINY, 100.1]),
    (SiglipConfig, "bias", [0.0], [math.inf, NAN]),
    (SimclrConfig, "mask", [TINY, BELOW_1], [0.0, 1.0]),
    (SimclrConfig, "temperature", [TINY, 1.0], [0.0, 1 + TINY]),
    (SimclrConfig, "second_view", [None, "video_3d_b"], ["video_3d"]),
    *[(VicregConfig, name, [TINY], [-TINY, math.inf, NAN]) for name in ("invariance", "variance", "covariance")],
    (VicregConfig, "variance", [1.0], [0.0]),
    *[
        (task, "weight", [TINY], [0.0, -1.0, math.inf, NAN])
        for task in (
            ClusteringConfig,
            ContrastiveConfig,
            ReconstructionConfig,
            SiglipConfig,
            SimclrConfig,
            VicregConfig,
        )
    ],
    *[(task, "block_rows", [None, 1], [0]) for task in (ContrastiveConfig, SiglipConfig, SimclrConfig)],
]

OF_JUDGING: Borders = [
    (ProbeConfig, "class_weights", ["none", "balanced"], ["meld"]),
    (ProbeConfig, "select_by", ["accuracy", "uar"], ["f1"]),
    *[(FineTuneConfig, name, [1], [0]) for name in ("epochs", "batch", "patience")],
    (FineTuneConfig, "dropout", [0.0, BELOW_1], [-TINY, 1.0]),
    (FineTuneConfig, "continuous_loss", ["l1", "mse"], ["huber"]),
    (ComparisonConfig, "fractions", [(TINY, 1.0)], [(), (0.0,), (1 + TINY,), (0.1, -0.1)]),
    (ComparisonConfig, "draws", [1], [0]),
    (ComparisonConfig, "methods", [("probe",), ("neighbours", "fine_tune")], [(), ("vote",)]),
    (ComparisonConfig, "baselines", [(), ("all",), ("constant", "supervised")], [("none",)]),
    (ComparisonConfig, "class_weights", ["none", "inverse_frequency", "frequency", "meld"], ["balanced"]),
    (ComparisonConfig, "probe_weights", ["none", "balanced"], ["meld"]),
    (ComparisonConfig, "select_by", ["accuracy", "uar"], ["f1"]),
    (JudgingConfig, "fractions", [(TINY, 1.0)], [(), (0.0,), (1 + TINY,)]),
    (JudgingConfig, "draws", [1], [0]),
    (JudgingConfig, "folds", [2], [1]),
    (JudgingConfig, "inner_folds", [2], [1]),
    (JudgingConfig, "block_scales", ["plain", "balanced", "chosen"], ["equal"]),
    (JudgingConfig, "class_weights", ["none", "balanced"], ["meld"]),
    (JudgingConfig, "select_by", ["accuracy", "uar"], ["f1"]),
    (MeasureConfig, "label_fraction", [TINY, 1.0], [0.0, 1 + TINY]),
    (MeasureConfig, "strengths", [(TINY,)], [(), (1.0, 0.0)]),
    (MeasureConfig, "inner_folds", [2], [1]),
    (MeasureConfig, "clusters", [2], [1]),
    (MeasureConfig, "block_scales", ["plain", "balanced", "chosen"], ["equal"]),
    (MeasureConfig, "baselines", [(), ("all",), ("raw", "boosted_trees")], [("none",)]),
    (ProtocolsConfig, "fraction", [TINY, 1.0], [0.0, 1 + TINY]),
    *[(ProtocolsConfig, name, [1], [0]) for name in ("draws", "resamples", "least_rows")],
    (CalibrationConfig, "bins", [1], [0]),
    (CalibrationConfig, "binning", ["width", "mass"], ["count"]),
    (CentringConfig, "clips", [(), (1,)], [(3, 0)]),
    (CentringConfig, "clip_draws", [1], [0]),
    (CostConfig, "repeats", [1], [0]),
    (GapsConfig, "columns", [("group",)], [()]),
    (LabelsToTargetConfig, "targets", [(1.0,), (TINY,)], [(), (0.0,), (1 + TINY,)]),
    (LabelsToTargetConfig, "fractions", [(TINY, 1.0)], [(1.0,), (0.0, 1.0)]),
    (MissingModalitiesConfig, "rates", [(TINY, BELOW_1)], [(), (0.0,), (1.0,)]),
    (MissingModalitiesConfig, "patterns", [1], [0]),
    (TransferConfig, "scaling", ["source", "corpus"], ["both"]),
    (Resampling, "resamples", [1], [0]),
    (Resampling, "level", [TINY, BELOW_1], [0.0, 1.0]),
]

OF_DATA: Borders = [
    (CorpusConfig, "speakers", [1, 1000], [0, 1001]),
    (CorpusConfig, "takes", [1, 1000], [0, 1001]),
    (CorpusConfig, "seed", [0], [-1]),
    *[
        (CorpusConfig, name, [0.0, BELOW_1], [-TINY, 1.0])
        for name in ("silent", "without_transcript", "without_valence")
    ],
    (BuildOptions, "clips_per_shard", [None, 1], [0]),
    (BuildOptions, "audio_rate", [None, 8000, 192_000], [7999, 192_001]),
    (BuildOptions, "faces", ["keep", "drop", "off"], ["blur"]),
    (BuildOptions, "audio_length", ["refuse", "pad", "cut"], ["stretch"]),
    (BuildOptions, "speech_model", [None], ["model"]),
    (BuildOptions, "grammar", [None], ["grammar"]),
    *[(Limits, name, [1], [0, -1]) for name in ("max_pixels", "max_decoded_bytes")],
    *[(Limits, name, [TINY], [0.0, NAN]) for name in ("max_seconds", "max_preroll_seconds", "picture_gap_seconds")],
    *[(Limits, name, [0.0], [-TINY, NAN]) for name in ("audio_gap_seconds", "audio_gap_share")],
    (Limits, "max_damaged_share", [0.0, BELOW_1], [-TINY, 1.0, NAN]),
    (lambda **c: Request("clip", **c), "sound", ["flac", "wav"], ["mp3"]),
    (lambda **c: Request("clip", **c), "audio_length", ["refuse", "pad", "cut"], ["stretch"]),
    (Pooling, "kind", [None, "mean", "mean-std", "max"], ["min"]),
    (Pooling, "zero_padding", [False], [True]),
    (Cursor, "epoch", [0], [-1, True, 1.0]),
    (Cursor, "step", [0], [-1, False, "1"]),
    *[(Execution, name, [1], [0]) for name in ("tasks", "task_bytes", "window_tasks", "store_bytes", "prefetch")],
    (Execution, "read_cpus", [0.0], [-TINY]),
    (damage, "max_share", [0.0, 1.0], [-TINY, 1 + TINY, NAN]),
    (column, "width", [1], [0, True, 1.0]),
    (label, "width", [1, 2], [0]),
    (label, "classes", [()], [("a",)]),
]

OF_JOBS: Borders = [
    (data, "max_corrupt_share", [0.0, 1.0], [-TINY, 1 + TINY]),
    (data, "standardization_rows", [2], [1]),
    *[(data, name, [1], [0]) for name in ("read_tasks", "prefetch")],
    (data, "chunk_rows", [None, 1], [0]),
    (run, "name", ["a", "A-1_b.c", "é", "n" * 100], ["", ".a", "a/b", "a b", "n" * 300]),
    *[(run, name, [1], [0]) for name in ("workers", "cpus_per_worker", "keep_checkpoints")],
    (run, "checkpoint_every", [None, 1], [0]),
    (run, "checkpoint_every_s", [None, TINY], [0.0, -1.0, math.inf, NAN]),
    (run, "report_every", [1], [0]),
    (run, "max_failures", [-1, 0], [-2]),
    (four_workers, "min_workers", [None, 1, 4], [0, 5]),
    (run, "profile", [False, True, 0, 5], [-1]),
    (run, "stall_timeout_s", [TINY], [0.0, math.inf, NAN]),
    (run, "output", ["outputs"], ["s3://bucket/runs"]),
    (Windows, "stride", [TINY, 2.0], [0.0, 2.0 + TINY]),
    (Resources, "cpus", [TINY], [0.0]),
    (Resources, "clips_per_task", [1], [0]),
    (Resources, "gpus", [{"a": 0.0}], [{"a": -TINY}]),
    (Resources, "actors", [{"a": 1}], [{"a": 0}]),
    (Decoding, "crop", ["follow", "union", "none"], ["face"]),
    (Augmentation, "count", [0, 99], [-1, 100]),
    (Augmentation, "strength", ["mild", "strong"], ["none"]),
]

OF_EXPERIMENTS: Borders = [
    (ablate, "datasets", [{"a-1_b": "/data"}], [{}, {"a b": "/data"}]),
    (ablate, "name", ["a-1_b"], ["", "a/b", "a.b"]),
    (ablate, "tasks", [("contrastive",)], [(), ("contrast",)]),
    (ablate, "sections", [("combinations",)], [(), ("configurations",), ("everything",)]),
    (ablate, "recipes", [("paper",)], [(), ("best",)]),
    (ablate, "baselines", [(), ("all",)], [("none",)]),
    (ablate, "seeds", [(1, 2)], [(1,), (), (1, 1), (1, 2, 2)]),
    (ablate, "parallel", [None, 1], [0]),
    *[
        (ablate, name, [{}, {"a": "group"}], [{"b": "group"}])
        for name in ("labels", "train_only", "split_units", "speakers", "interval_units")
    ],
    (ScheduleConfig, "reduction", [2], [1]),
    *[(ScheduleConfig, name, [None, 1], [0]) for name in ("grace_epochs", "report_epochs")],
    (ScheduleConfig, "exchange_epochs", [1], [0]),
    (ScheduleConfig, "checkpoint_every_s", [0.0], [-TINY]),
    *[(ResourceConfig, name, [1], [0]) for name in ("workers", "cpus_per_worker")],
    (ResourceConfig, "max_concurrent", [None, 1], [0]),
    (ResourceConfig, "max_failures", [0], [-1]),
    (sweep, "trials", [None, 1], [0]),
    (sweep, "name", ["a-1_b.c"], ["", ".a", "a/b"]),
    (Space, "epochs", [30], [0]),
    (Space, "lr", [Range(1.0, 1.0)], []),
    (Space, "representation_dim", [(8,)], [(), (8, 8)]),
    (Space, "recipe", [("paper", "improved")], [(), ("paper", "paper"), ("best",)]),
    (Space, "weighting", [("static", "gradnorm")], [("none",)]),
    (Space, "gradients", [("sum", "pcgrad")], [("mean",)]),
    (lambda **c: Range(**{"low": 1.0, "high": 2.0, **c}), "low", [TINY, 2.0], [0.0, 2.0 + TINY, NAN]),
    (lambda **c: Range(**{"low": 1.0, "high": 2.0, **c}), "high", [1.0], [1 - TINY, math.inf]),
    (lambda **c: Range(**{"low": 1.0, "high": 2.0, **c}), "points", [1], [0]),
    (lambda **c: Range(**{"high": 2.0, "log": False, **c}), "low", [0.0, -1.0], [2.0 + TINY]),
]


@pytest.mark.parametrize("borders", [OF_LEARNING, OF_JUDGING, OF_DATA, OF_JOBS, OF_EXPERIMENTS])
def test_values_at_the_border_are_accepted_and_those_beyond_are_refused_by_name(borders: Borders) -> None:
    wrong = []
    for make, field, accepted, refused in borders:
        for value in accepted:
            try:
                make(**{field: value})
            except ValueError as error:
                wrong.append(f"{field} = {value!r} is refused: {error}")
        for value in refused:
            try:
                made = make(**{field: value})
            except ValueError as error:
                if not names(str(error), field):
                    wrong.append(f"{field} = {value!r} is refused without its name: {error}")
            else:
                wrong.append(f"{field} = {value!r} is accepted: {type(made).__name__}")
    assert not wrong, "\n".join(wrong)


# Options whose name on the command line is not the field's.
OTHER_NAMES = {"kind": "pool", "count": "views", "max_share": "max_corrupt_share", "datasets": "name"}


def names(message: str, field: str) -> bool:
    said = message.replace("-", "_")
    return field in said or OTHER_NAMES.get(field, field) in said


@pytest.mark.parametrize("place", ["", "~nobody-here/x"])
def test_places_that_name_nothing_are_refused_by_their_field(place: str) -> None:
    for make, field in (
        (lambda: DataConfig(folder=place), "data.folder"),
        (lambda: RunConfig(name="one", storage=place), "run.storage"),
        (lambda: RunConfig(name="one", output=place).output_folder, "run.output"),
    ):
        with pytest.raises(ValueError, match=f"^{field}: "):
            make()
