"""What a name stands for: numbers that are asked for by the name of a protocol, a data set or a method, written down
once more. Who changes one changes what earlier tables mean, and says so here and in docs/protocols.md."""

from __future__ import annotations

from conclugen.common.options import to_plain
from conclugen.evaluation.config import (
    PUBLISHED_WEIGHTS,
    RIDGE_STRENGTHS,
    STRENGTHS,
    ComparisonConfig,
    FineTuneConfig,
    JudgingConfig,
    MeasureConfig,
    ProbeConfig,
)
from conclugen.evaluation.protocols.registry import ProtocolsConfig, registered
from conclugen.evaluation.statistics import DEFAULT
from conclugen.search_space import Range
from conclugen.tasks import registry

SHARED = {"score": None, "fraction": 1.0, "draws": 5, "fill": "mean", "resamples": 2000, "least_rows": 10}
PROTOCOLS = {
    "calibration": {"bins": 15, "binning": "width"},
    "centring": {"clips": [1, 3, 10], "clip_draws": 5, "speaker": "group"},
    "cost": {"repeats": 3},
    "gaps": {"columns": ["group"]},
    "labels_to_target": {"targets": [0.03, 0.1, 1.0], "fractions": [0.03, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0]},
    "missing_modalities": {"rates": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "patterns": 3},
    "transfer": {
        "folder": None,
        "label": None,
        "view": "everything",
        "train_classes": {},
        "judge_classes": {},
        "scaling": "source",
        "unit": None,
    },
}


def test_each_protocol_by_its_name_alone() -> None:
    plain = to_plain(ProtocolsConfig())
    own = {name.replace("-", "_") for name in registered()}
    assert own >= PROTOCOLS.keys()
    assert {name: value for name, value in plain.items() if name not in own - PROTOCOLS.keys()} == SHARED | PROTOCOLS


def test_published_weights_and_the_published_classifier() -> None:
    assert dict(PUBLISHED_WEIGHTS) == {
        "meld": (4, 15, 15, 3, 1, 6, 3),
        "ravdess": (1.875, *[0.9375] * 7),
        "mosei": (1.05285, 5.21507, 5.33730, 19.48985, 7.04484, 23.68800),
    }
    published = FineTuneConfig()
    assert (published.batch, published.dropout, published.patience) == (4096, 0.5, 15)
    assert (published.optimizer.lr, published.optimizer.weight_decay) == (0.00967, 0.004)
    assert (published.epochs, published.seed, published.continuous_loss) == (200, 127, "l1")


def test_the_judge_s_own_settings() -> None:
    assert STRENGTHS == (0.0001, 0.001, 0.01, 0.1, 1.0) and (0.00001, *STRENGTHS) == RIDGE_STRENGTHS
    probe = ProbeConfig()
    assert (probe.strengths, probe.inner_folds, probe.scaling, probe.inner_groups) == (None, 3, "training", "training")
    compared = ComparisonConfig()
    assert (compared.fractions, compared.draws, compared.seed) == ((0.03, 0.1, 1.0), 3, 127)
    assert compared.wanted == ("constant", "untrained", "raw", "raw_balanced", "best_modality")
    judging = JudgingConfig()
    assert (judging.fractions, judging.draws, judging.folds, judging.inner_folds) == ((0.03, 0.1, 1.0), 5, 4, 3)
    assert (judging.draw_seed, judging.block_scales, judging.with_raw) == (127, "plain", True)
    assert MeasureConfig().baselines == ("constant", "untrained", "raw", "raw_balanced", "best_modality")
    assert (DEFAULT.resamples, DEFAULT.seed, DEFAULT.level) == (10_000, 127, 0.95)


def test_what_a_search_draws_from_by_the_name_of_its_space() -> None:
    """Published: the paper's lists, or our own for tasks that it has not; laptop: smaller ones."""
    found = {
        searched.name: (tuple(searched.published), tuple(searched.laptop), searched.ablation)
        for task in registry.registered().values()
        for searched in task.searched
        if isinstance(searched.published, tuple)
    }
    assert (
        found
        | {
            "clusters": ((2, 4, 8, 32, 64, 128), (8, 16, 32), 32),
            "queue_batches": ((2, 4, 8, 16, 32, 64, 128), (0, 2, 4), 2),
            "start_epoch": ((0, 3, 6, 9, 12, 15), (0, 2), None),
            "cluster_mode": (("joint", "individual"), ("joint",), None),
            "reconstruction_hidden_dim": ((512, 768, 1024, 1536), (64, 128, 256), 512),
            "prototypes": ((8, 32, 128, 512), (8, 16, 32), None),
            "speaker_clusters": ((4, 8, 16, 32), (4, 8, 16), None),
        }
        == found
    )
    ranges = {
        searched.name: [(each.low, each.high, each.log, each.points) for each in (searched.published, searched.laptop)]
        for task in registry.registered().values()
        for searched in task.searched
        if isinstance(searched.published, Range)
    }
    assert (
        ranges
        | {
            "temperature": [(0.05, 1.0, True, 3)] * 2,
            "siglip_inverse_temperature": [(2.0, 50.0, True, 3)] * 2,
            "vicreg_covariance": [(0.1, 10.0, True, 3)] * 2,
            "swapped_epsilon": [(0.03, 0.2, True, 3), (0.05, 0.2, True, 3)],
            "masked_share": [(0.15, 0.85, False, 3), (0.3, 0.7, False, 3)],
            "comm_mask": [(0.1, 0.7, False, 3), (0.2, 0.6, False, 3)],
            "comm_temperature": [(0.05, 0.5, True, 3)] * 2,
            "speaker_clusters_temperature": [(0.05, 1.0, True, 3), (0.1, 1.0, True, 3)],
            "pase_mask": [(0.1, 0.7, False, 3), (0.2, 0.6, False, 3)],
        }
        == ranges
    )
