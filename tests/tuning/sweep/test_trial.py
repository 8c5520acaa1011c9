"""A trial in one process trains exactly as a loop over the stream does, and continues from its checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conclugen import PretrainConfig, Pretrainer, presets
from conclugen.evaluation.config import MeasureConfig
from ray_jobs.run_config import DataConfig
from ray_jobs.tracking.journal import Journal, metric_history
from shards import Cursor, EpochPlan, Manifest, Reader, View
from shards.reading.stream import stream
from shards.tools.stats import column_moments
from tests.feature_corpus import write_corpus
from tuning.sweep.objective import Judge
from tuning.sweep.population import Schedule, check_space, replay, weights_of
from tuning.sweep.space import Range, Space, Weights, laptop
from tuning.sweep.trial import Trial, TrialShared

MODALITIES = ("video", "audio", "text")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder, speakers=6, takes=5)
    return DataConfig(folder=str(folder), label="emotion")


@pytest.fixture(scope="module")
def manifest(data: DataConfig) -> Manifest:
    return Manifest.open(data.folder)


@pytest.fixture(scope="module")
def judge(data: DataConfig, manifest: Manifest) -> Judge:
    return Judge.open(data, manifest, MODALITIES, MeasureConfig(clusters=4))


@pytest.fixture(scope="module")
def shared(data: DataConfig, manifest: Manifest, judge: Judge) -> TrialShared:
    return TrialShared.open(data, manifest, MODALITIES, judge, seed=127)


def config(**changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "global_batch": 24,
        "epochs": 3,
        "precision": "float64",
        "model": {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 16},
        "tasks": {"clustering": {"clusters": 4, "queue_batches": 2, "start_epoch": 1}},
    }
    return presets.build("conclugen", **{**settings, **changes})


def losses(journal: Path) -> list[tuple[int, float]]:
    return metric_history(journal)["loss"]


@pytest.mark.parametrize(
    ("modalities", "remainder"), [(MODALITIES, "drop"), (("audio", "text"), "carry"), (("audio", "text"), "pad")]
)
def test_trains_on_the_batches_of_the_stream(
    data: DataConfig, manifest: Manifest, judge: Judge, tmp_path: Path, modalities: tuple[str, ...], remainder: str
) -> None:
    """Against a loop over `shards.reading.stream` with a reader of these modalities only, which is what pretraining
    runs."""
    own = dataclasses.replace(data, remainder=remainder)  # type: ignore[arg-type]
    shared = TrialShared.open(own, manifest, MODALITIES, judge, seed=127)
    chosen = config(modalities=modalities)
    with Journal(tmp_path / "journal.jsonl", experiment="e", name="n") as journal:
        trial = Trial(chosen, shared, "t", journal)
        trial.advance(1)
        trial.advance(99)
    assert trial.finished and trial.epoch == 3

    view = View.open(manifest, "train")
    reader = Reader(manifest, view, {m: manifest.modalities[m] for m in modalities}, labels=())
    plan = EpochPlan(view.counts, 127, 24, remainder=remainder)
    moments = column_moments(reader, data.standardization_rows, 127)
    peer = Pretrainer(chosen, reader.widths, plan.steps_per_epoch, moments)
    steps = plan.start_of_epoch(3)
    expected = [float(peer.step(rows)["loss"]) for rows in stream(reader, plan, 0, 1, Cursor(), steps)]
    assert losses(tmp_path / "journal.jsonl") == [(k + 1, loss) for k, loss in enumerate(expected)]
    for (name, mine), theirs in zip(
        trial.pretrainer.model.state_dict().items(), peer.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_streamed_rows_are_the_shared_ones(
    data: DataConfig, manifest: Manifest, judge: Judge, shared: TrialShared
) -> None:
    streaming = TrialShared.open(data, manifest, MODALITIES, judge, seed=127, shared_bytes=0)
    assert streaming.rows is None and shared.rows is not None
    plan = shared.plan(config())
    start = Cursor(1, 2)
    for one, two in zip(shared.batches(plan, start, 7), streaming.batches(plan, start, 7), strict=True):
        np.testing.assert_array_equal(one.row, two.row)
        for m in MODALITIES:
            np.testing.assert_array_equal(one.features[m], two.features[m])
            np.testing.assert_array_equal(one.present[m], two.present[m])


def test_goes_on_from_its_checkpoint_to_the_same_end(shared: TrialShared, tmp_path: Path) -> None:
    whole = Trial(config(), shared)
    end = whole.advance(3)
    cut = Trial(config(), shared, "mine")
    cut.advance(1)
    cut.save(tmp_path)
    again = Trial(config(), shared, "mine")
    again.load(tmp_path)
    assert again.epoch == 1 and again.seconds.train == cut.seconds.train
    assert again.advance(3) == end
    other = Trial(config(), shared, "other")
    other.load(tmp_path)
    assert other.epoch == 1 and other.seconds.train == 0
    with pytest.raises(ValueError, match="saved run is another"):
        Trial(config(seed=5), shared).load(tmp_path)


def test_a_schedule_of_weights_is_written_down_and_replayed(shared: TrialShared, tmp_path: Path) -> None:
    """One model that changed its weights, and its state, twice; the replay begins with nothing but the schedule."""
    donor = Trial(
        config(tasks={"clustering": {"clusters": 4, "queue_batches": 2, "start_epoch": 0, "weight": 0.7}}), shared
    )
    donor.advance(1)
    donor.save(tmp_path)
    taker = Trial(
        config(tasks={"clustering": {"clusters": 4, "queue_batches": 2, "start_epoch": 0, "weight": 0.1}}), shared
    )
    taker.load(tmp_path)
    assert taker.pretrainer.weighting.current["clustering"] == 0.7  # the donor's, not its own
    taker.pretrainer.set_weights({"contrastive": 1.25, "clustering": 0.56})
    taker.advance(2)
    taker.pretrainer.set_weights({"contrastive": 1.0})
    end = taker.advance(3)
    schedule = Schedule.of(donor.config, taker.pretrainer.weighting.state(), "probe_accuracy", end["probe_accuracy"])
    schedule.save(tmp_path / "schedule.json")
    loaded = Schedule.load(tmp_path / "schedule.json")
    assert loaded == schedule and loaded.config == donor.config
    assert replay(loaded, shared).measure() == end
    plain = Trial(donor.config, shared)
    assert plain.advance(3) != end
    (tmp_path / "broken.json").write_text('{"format": 1, "changes": []}')
    with pytest.raises(ValueError, match=r"broken\.json: no schedule"):
        Schedule.load(tmp_path / "broken.json")


def test_a_population_leaves_open_nothing_but_weights() -> None:
    fixed = Range(1e-3, 1e-3)
    space = Space(
        recipe=("improved",), tasks=("contrastive+clustering",), weights=Weights(), representation_dim=(16,),
        projection_dim=(8,), reconstruction_hidden_dim=(8,), clusters=(4,), queue_batches=(0,),
        start_epoch=(0,), cluster_mode=("joint",), temperature=Range(0.3, 0.3), lr=fixed, weight_decay=fixed,
        global_batch=(24,), epochs=4,
    ).resolve({"video": 4, "audio": 4})  # fmt: skip
    assert check_space(space) == ("contrastive", "clustering")
    with pytest.raises(ValueError, match=r"'tasks.clustering.clusters' has several values"):
        check_space(dataclasses.replace(space, clusters=(4, 8)))
    with pytest.raises(ValueError, match="'tasks' has several values"):
        check_space(laptop().resolve({"video": 4, "audio": 4}))
    with pytest.raises(ValueError, match="two tasks or more"):
        check_space(dataclasses.replace(space, tasks=("clustering",)))
    choices = {"tasks": "contrastive+clustering", "tasks.contrastive.weight": 0.5, "tasks.clustering.weight": 2}
    assert weights_of(choices) == {"contrastive": 0.5, "clustering": 2.0}
