"""Objectives: measured rightly on representations whose answer is known, and never on test groups."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score
from sklearn.preprocessing import StandardScaler

from conclugen import Batch
from conclugen.evaluation.config import LAYERS_WEIGHED, MeasureConfig
from conclugen.evaluation.probe import fit_classes
from conclugen.evaluation.solvers import LayerBlock
from ray_jobs.extraction.plan import recipe_of
from ray_jobs.run_config import DataConfig
from shards import Manifest, Rows, View
from tests.feature_corpus import write_corpus
from tuning.sweep.objective import CONFUSION, OBJECTIVES, Judge, direction, refuse_test_rows, without_confusion

MODALITIES = ("video", "audio", "text")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder, speakers=9, takes=6)
    return DataConfig(folder=str(folder), label="emotion")


@pytest.fixture(scope="module")
def manifest(data: DataConfig) -> Manifest:
    return Manifest.open(data.folder)


@pytest.fixture(scope="module")
def judge(data: DataConfig, manifest: Manifest) -> Judge:
    return Judge.open(data, manifest, MODALITIES, MeasureConfig(clusters=4, strengths=(1.0,)))


class Fake:
    """A pretrainer whose representation of a row is whatever a function says."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, of: Callable[[Batch, str], torch.Tensor], modalities: tuple[str, ...] = MODALITIES) -> None:
        self.config = SimpleNamespace(modalities=modalities, seed=3)
        self._of = of

    def embed(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = Batch.of(rows, dtype=torch.float64)
        return {m: self._of(batch, m) * batch.present[m].unsqueeze(1) for m in self.config.modalities}

    def project(self, rows: Any) -> dict[str, torch.Tensor]:
        return {}


def measure(
    judge: Judge, of: Callable[[Batch, str], torch.Tensor], modalities: tuple[str, ...] = MODALITIES
) -> dict[str, float]:
    return judge.measure(Fake(of, modalities))  # type: ignore[arg-type]


def test_the_probe_is_the_logistic_regression_of_another_library(judge: Judge) -> None:
    """Raw audio as the representation; C weighs the sum of the rows' losses against half of the squared weights in
    both, and nothing pulls at the bias."""
    found = measure(judge, lambda batch, m: batch.features[m], ("audio",))
    assert judge.train is not None and judge.labelled is not None

    def rows(part: Rows) -> np.ndarray:
        return np.where(part.present["audio"][:, None], part.features["audio"], 0).astype(np.float64)

    train, test = (x.rows.present["audio"] for x in (judge.train, judge.labelled))
    scaler = StandardScaler().fit(rows(judge.train.rows)[train])
    model = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8)
    model.fit(scaler.transform(rows(judge.train.rows)[train]), judge.train.target[train])
    predicted = model.predict(scaler.transform(rows(judge.labelled.rows)[test]))
    target = judge.labelled.target[test]
    scores = {
        "probe_accuracy": accuracy_score(target, predicted),
        "probe_uar": balanced_accuracy_score(target, predicted),
        "probe_macro_f1": f1_score(target, predicted, average="macro"),
    }
    assert {name: found[name] for name in scores} == pytest.approx(scores, abs=1e-9)


def test_raw_rows_are_what_scikit_learn_makes_of_raw_features(judge: Judge) -> None:
    """Each modality standardised on the training rows that have it, zero where missing; balanced by its width."""
    judge = dataclasses.replace(judge, config=MeasureConfig(baselines=("raw", "raw_balanced", "shrinkage_lda")))
    train, held = judge.train, judge.labelled
    assert train is not None and held is not None
    blocks = []
    for m in train.rows.features:
        there = train.rows.present[m]
        scaler = StandardScaler().fit(train.rows.features[m][there].astype(np.float64))
        parts = [
            np.where(x.present[m][:, None], scaler.transform(x.features[m].astype(np.float64)), 0)
            for x in (train.rows, held.rows)
        ]
        blocks.append(np.concatenate(parts))
    count, columns = len(train.target), sum(b.shape[1] for b in blocks)
    weighed = {
        "raw": np.hstack([b / b[:count].std(axis=0) for b in blocks]),
        "raw balanced": np.hstack(
            [b / b[:count].std(axis=0) * np.sqrt(columns / len(blocks) / b.shape[1]) for b in blocks]
        ),
    }
    found = judge.rows_beside()
    assert set(found) == {("raw", "probe"), ("raw balanced", "probe"), ("raw balanced", "shrinkage_lda")}
    for name, x in weighed.items():
        model = LogisticRegression(C=1e-2, max_iter=5000, tol=1e-8).fit(x[:count], train.target)
        assert found[name, "probe"]["probe_accuracy"] == pytest.approx(model.score(x[count:], held.target), abs=1e-9)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(weighed["raw balanced"][:count], train.target)
    predicted = lda.predict(weighed["raw balanced"][count:])
    expected = {
        "probe_accuracy": accuracy_score(held.target, predicted),
        "probe_uar": balanced_accuracy_score(held.target, predicted),
        "probe_macro_f1": f1_score(held.target, predicted, average="macro"),
    }
    lda_row = found["raw balanced", "shrinkage_lda"]
    assert {name: lda_row[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    recalls = recall_score(held.target, predicted, average=None)
    taken = confusion_matrix(held.target, predicted)
    assert [lda_row[f"probe_recall/{name}"] for name in judge.classes] == pytest.approx(list(recalls))
    counts = [[lda_row.get(f"{CONFUSION}{i}/{j}", 0) for j in range(len(taken))] for i in range(len(taken))]
    np.testing.assert_array_equal(counts, taken)
    constant = dataclasses.replace(judge, config=MeasureConfig(baselines=("constant",))).rows_beside()
    frequent = np.bincount(train.target).argmax()
    assert list(constant) == [("majority", "majority")]
    assert constant["majority", "majority"]["probe_accuracy"] == pytest.approx((held.target == frequent).mean())
    assert dataclasses.replace(judge, train=None).rows_beside() == {}


def test_layers_of_an_encoder_are_weighed_in_a_row_of_their_own(
    judge: Judge, data: DataConfig, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = manifest.schema.column("audio").width
    made = {"name": "x@layers=all", "column": "audio", "modality": "audio", "width": width, "stored_layers": width}
    told = {"features": {"encoders": [made], "crop": "follow", "low_confidence": False}}
    monkeypatch.setattr("ray_jobs.extraction.plan.recipe_of", lambda info: recipe_of(told))
    config = MeasureConfig(baselines=("raw",), strengths=(1.0,))
    layered = Judge.open(data, manifest, MODALITIES, config)
    assert layered.layers == {"audio": [LayerBlock("audio", 0, width, 1)]}
    found = layered.rows_beside()
    assert set(found) == {("raw", "probe"), (LAYERS_WEIGHED, "probe")}
    train, held = layered.train, layered.labelled
    assert train is not None and held is not None
    raw = layered._raw(train, held, MODALITIES)
    start = sum(raw[m].shape[1] for m in MODALITIES[: MODALITIES.index("audio")])
    X, count = np.concatenate([raw[m] for m in MODALITIES], axis=1), len(train.target)
    layers = [LayerBlock("audio", start, width, 1)]
    probe = fit_classes(X[:count], train.target, train.group, len(layered.classes), strengths=[1.0], layers=layers)
    accuracy = (probe.predict(X[count:]) == held.target).mean()
    assert found[LAYERS_WEIGHED, "probe"]["probe_accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_a_trial_at_its_end_is_judged_beside_raw_features_as_an_ablation_does(judge: Judge) -> None:
    """Half of the variance to the representation, half to the raw modalities alike, by scikit-learn."""
    train, held = judge.train, judge.labelled
    assert train is not None and held is not None
    modalities = ("audio", "video")

    def of(batch: Batch, m: str) -> torch.Tensor:
        return batch.features[m][:, :4] ** 2

    early, found = (judge.measure(Fake(of, modalities), ended) for ended in (False, True))  # type: ignore[arg-type]
    assert {name: found[name] for name in early} == early
    more = set(found) - set(early)
    assert all(name.startswith(("with_raw/probe_", CONFUSION)) for name in more)
    there = np.any([train.rows.present[m] for m in modalities], axis=0)
    seen = np.any([held.rows.present[m] for m in modalities], axis=0)
    count = len(train.target)
    heads, raw = [], []
    for m in modalities:
        x = np.concatenate([rows.rows.features[m] for rows in (train, held)]).astype(np.float64)
        has = np.concatenate([rows.rows.present[m] for rows in (train, held)])
        heads.append(np.where(has[:, None], x[:, :4] ** 2, 0))
        scaler = StandardScaler().fit(x[:count][has[:count]])
        raw.append(np.where(has[:, None], scaler.transform(x), 0))

    def share(block: np.ndarray, weight: float, columns: int) -> np.ndarray:
        own = StandardScaler().fit(block[:count][there]).transform(block)
        return own * np.sqrt(weight * columns / block.shape[1])

    columns = sum(b.shape[1] for b in (*heads, *raw))
    whole = np.hstack([share(np.hstack(heads), 0.5, columns), *(share(b, 0.25, columns) for b in raw)])
    model = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(whole[:count][there], train.target[there])
    accuracy = model.score(whole[count:][seen], held.target[seen])
    assert found["with_raw/probe_accuracy"] == pytest.approx(accuracy, abs=1e-9)
    rest, groups = without_confusion(found, judge.classes)
    assert set(rest) == {name for name in found if not name.startswith(CONFUSION)}
    tested = np.bincount(held.target[seen], minlength=len(judge.classes))
    assert groups["class_rows"] == {name: float(n) for name, n in zip(judge.classes, tested, strict=True)}
    for name, rows in groups["class_rows"].items():
        right = groups[f"confusion/{name}"].get(name, 0.0)
        assert rest[f"probe_recall/{name}"] == pytest.approx(right / rows)


def test_measures_of_known_representations(judge: Judge) -> None:
    same = measure(judge, lambda batch, m: torch.ones(batch.rows, 6, dtype=torch.float64))
    assert same["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert same["alignment"] == pytest.approx(0, abs=1e-12)
    assert same["uniformity"] == pytest.approx(0, abs=1e-6)
    assert same["recall@1"] == 0  # ties count against it
    assert same["probe_uar"] == pytest.approx(0.2, abs=0.05)

    generator = np.random.default_rng(0)
    table = torch.from_numpy(generator.standard_normal((4000, 32)))
    matched = measure(judge, lambda batch, m: table[batch.row])
    assert matched["recall@1"] == matched["recall@10"] == 1 and matched["alignment"] == pytest.approx(0, abs=1e-9)
    strangers = {m: torch.from_numpy(generator.standard_normal((4000, 32))) for m in MODALITIES}
    lost = measure(judge, lambda batch, m: strangers[m][batch.row])
    assert lost["recall@1"] < 0.05 and lost["alignment"] == pytest.approx(2, abs=0.1)
    assert lost["alignment_uniformity"] == lost["alignment"] + lost["uniformity"]
    pairs = [lost[f"recall@10/{pair}"] for pair in ("video-audio", "video-text", "audio-text")]
    assert lost["recall@10"] == pytest.approx(sum(pairs) / 3)


def test_cluster_usage_is_the_perplexity_of_the_shares(judge: Judge) -> None:
    corners = torch.eye(4, dtype=torch.float64)
    spread = measure(judge, lambda batch, m: corners[batch.row % 4], ("text",))
    lumped = measure(judge, lambda batch, m: corners[torch.zeros_like(batch.row)], ("text",))
    present = judge.validation.present["text"]
    share = np.bincount(judge.validation.row[present] % 4, minlength=4) / present.sum()
    perplexity = np.exp(-(share * np.log(share)).sum())
    assert spread["cluster_usage"] <= perplexity / 4 + 1e-9 and spread["cluster_usage"] > 0.45
    assert lumped["cluster_usage"] == pytest.approx(0.25)


def test_every_objective_is_measured_and_one_without_labels_too(
    judge: Judge, data: DataConfig, manifest: Manifest
) -> None:
    found = measure(judge, lambda batch, m: batch.features[m][:, :8])
    assert set(OBJECTIVES) <= set(found)
    bare = Judge.open(dataclasses.replace(data, label=None), manifest, MODALITIES, MeasureConfig(clusters=4))
    unlabelled = measure(bare, lambda batch, m: batch.features[m][:, :8])
    recalls = {f"probe_recall/{name}" for name in judge.classes}
    assert set(found) - set(unlabelled) == {"probe_accuracy", "probe_uar", "probe_macro_f1"} | recalls
    assert found["probe_uar"] == pytest.approx(np.mean([found[name] for name in recalls]))
    with pytest.raises(ValueError, match=r"'probe_uar' needs labels; give data.label"):
        bare.check_objective("probe_uar", [3])
    with pytest.raises(ValueError, match=r"'probe_acuracy' is measured by no trial \(did you mean 'probe_accuracy'"):
        judge.check_objective("probe_acuracy", [3])
    with pytest.raises(ValueError, match="has trials with one only"):
        judge.check_objective("recall@5", [2, 1])
    judge.check_objective("effective_rank", [1])
    assert (direction("recall@1"), direction("alignment")) == ("max", "min")


def test_test_groups_are_never_touched(data: DataConfig, manifest: Manifest) -> None:
    def opened(**changes: Any) -> Judge:
        config = changes.pop("measure", MeasureConfig())
        return Judge.open(dataclasses.replace(data, **changes), manifest, MODALITIES, config)

    with pytest.raises(ValueError, match=r"data.validation_view: 'test' is a test view"):
        opened(validation_view="test")
    with pytest.raises(ValueError, match=r"data.validation_view: 'valid' is a test view"):
        opened(measure=MeasureConfig(test_views=("valid",)))
    with pytest.raises(ValueError, match=r"data.view: 'everything' overlaps the test view 'test' in \d+ rows"):
        opened(view="everything")
    with pytest.raises(ValueError, match=r"'train' and .*'train': 6 of 6 values of 'group' .*180 of the 180 test rows"):
        opened(validation_view="train")
    with pytest.raises(ValueError, match="none given; a search needs held-out rows"):
        opened(validation_view=None)
    with pytest.raises(ValueError, match=r"did you mean 'emotion'"):
        opened(label="emoton")
    with pytest.raises(ValueError, match=r"'valence' is continuous; a probe's objective needs a class label"):
        opened(label="valence")


def test_other_rows_of_a_tested_speaker_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("leak") / "shards"
    manifest = write_corpus(folder, speakers=6, takes=2)
    inside = View.open(manifest, "test")
    chosen = np.concatenate([inside.mask(shard) for shard in range(len(inside.counts))])
    rows = np.flatnonzero(chosen)
    chosen[rows[::2]] = False
    View.where(manifest, chosen, "half-test").save()
    other = np.zeros_like(chosen)
    other[rows[::2]] = True
    View.where(manifest, other, "leaky").save()
    (folder / "views" / "test.parquet").unlink()
    with pytest.raises(
        ValueError,
        match=r"data.validation_view: 'leaky' shares \d+ group\(s\) of 'group' with the test view 'half-test'",
    ):
        refuse_test_rows(manifest, {"data.view": "train", "data.validation_view": "leaky"})
    refuse_test_rows(manifest, {"data.view": "train", "data.validation_view": "valid"})
