"""Numbers of a sweep's objective and of ablation cells on small seeded data, as recorded before there was one judge."""

from pathlib import Path

import numpy as np
import pytest

from conclugen.evaluation.config import JudgingConfig, MeasureConfig
from conclugen.evaluation.judge import evaluate
from ray_jobs.run_config import DataConfig
from shards import Manifest
from tests.feature_corpus import write_corpus
from tests.tuning.labelled_shards import write_labelled
from tests.tuning.sweep.test_objective import MODALITIES, Fake
from tuning.ablation.cell import Cell, run
from tuning.dataset import open_set
from tuning.sweep.objective import Judge

SEVERAL = MeasureConfig(clusters=4, strengths=(1e-3, 1e-1, 10.0))
FEW = MeasureConfig(clusters=4, strengths=(1e-2, 1.0), label_fraction=0.3, draw=1, inner_folds=2)


def test_probe_of_a_sweep(tmp_path: Path) -> None:
    write_corpus(tmp_path / "shards", speakers=9, takes=6)
    data = DataConfig(folder=str(tmp_path / "shards"), label="emotion")
    recorded = [
        (SEVERAL, (0.4666666666666667, 0.4666666666666666, 0.4470616901731453)),
        (FEW, (0.2833333333333333, 0.2833333333333333, 0.23725571725571726)),
    ]
    for config, expected in recorded:
        judge = Judge.open(data, Manifest.open(data.folder), MODALITIES, config)
        found = judge.measure(Fake(lambda batch, m: batch.features[m][:, :8]))  # type: ignore[arg-type]
        names = ("probe_accuracy", "probe_uar", "probe_macro_f1")
        np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-9)


def test_raw_cell_of_an_ablation(tmp_path: Path) -> None:
    folder = write_labelled(tmp_path / "two", ("video", "audio"), published=True, missing=9, seed=1)
    data = open_set("two", str(folder), JudgingConfig(fractions=(0.2, 1.0), draws=2, folds=4))
    outcome = run(Cell("raw", ("video", "audio")), data)
    recorded = {
        "accuracy@0.2": 0.84375,
        "uar@0.2": 0.84375,
        "f1_weighted@0.2": 0.8423645320197044,
        "precision_weighted@0.2": 0.8562753036437247,
        "recall/calm@0.2": 0.9375,
        "accuracy@1": 0.875,
        "f1_weighted@1": 0.8745098039215686,
        "precision_weighted@1": 0.8809523809523809,
        "recall/happy@1": 0.8125,
    }
    assert {name: outcome.metrics[name] for name in recorded} == pytest.approx(recorded, rel=1e-12)
    assert outcome.groups == {
        "class_rows": {"calm": 16.0, "happy": 16.0},
        "confusion/calm@0.2": {"calm": 15.0, "happy": 1.0},
        "confusion/happy@0.2": {"calm": 4.0, "happy": 12.0},
        "confusion/calm@1": {"calm": 15.0, "happy": 1.0},
        "confusion/happy@1": {"calm": 3.0, "happy": 13.0},
        "rows": {"7": 16.0, "8": 16.0},
        "accuracy@0.2": {"7": 0.8125, "8": 0.875},
        "accuracy@1": {"7": 0.8125, "8": 0.9375},
    }


def test_class_weights_and_selection_reach_the_probes_of_ablations(tmp_path: Path) -> None:
    """Their defaults leave the key under which results are kept as it was."""
    folder = write_labelled(tmp_path / "two", ("video", "audio"), published=True, missing=9, seed=1)
    before = open_set("two", str(folder), JudgingConfig(fractions=(0.2, 1.0), draws=2, folds=4))
    assert "class_weights" not in before.judged_by and "select_by" not in before.judged_by
    judging = JudgingConfig(fractions=(0.2, 1.0), draws=2, folds=4, class_weights="balanced", select_by="uar")
    weighted = open_set("two", str(folder), judging)
    assert (weighted.protocol.probe.class_weights, weighted.protocol.probe.select_by) == ("balanced", "uar")
    assert '"class_weights": "balanced"' in weighted.judged_by and weighted.judged_by != before.judged_by
    for name, config in (("judging", JudgingConfig), ("measure", MeasureConfig)):
        with pytest.raises(ValueError, match=rf"{name}\.select_by"):
            config(select_by="recall")


def test_class_weights_and_selection_reach_the_probe_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "shards", speakers=9, takes=6)
    data = DataConfig(folder=str(tmp_path / "shards"), label="emotion")
    config = MeasureConfig(clusters=4, strengths=(1e-3, 1.0), class_weights="balanced", select_by="uar")
    judge = Judge.open(data, Manifest.open(data.folder), MODALITIES, config)
    probes = []

    def spy(protocol, systems):
        probes.append(protocol.probe)
        return evaluate(protocol, systems)

    monkeypatch.setattr("tuning.sweep.objective.evaluate", spy)
    judge.measure(Fake(lambda batch, m: batch.features[m][:, :8]))  # type: ignore[arg-type]
    assert [(p.class_weights, p.select_by, p.strengths) for p in probes] == [("balanced", "uar", (1e-3, 1.0))]
