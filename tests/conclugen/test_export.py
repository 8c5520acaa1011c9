"""The exported model: the pretrainer's own representations, missing modalities, fusion, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import conclugen
from conclugen import Batch, Embedder, Pretrainer, export, storage
from conclugen.beside_raw import BesideRaw
from conclugen.export import ExportError
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config

N = 10


@pytest.fixture(scope="module", params=["paper", "improved"])
def trained(request: pytest.FixtureRequest) -> Pretrainer:
    pretrainer = fresh(small_config("conclugen", request.param))
    for step in range(4):
        pretrainer.step(rows(step))
    return pretrainer


@pytest.fixture(scope="module")
def embedder(trained: Pretrainer, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("export") / "model"
    export.save(folder, trained, {"data": "abc"})
    return conclugen.load(folder)


def features(missing: bool = False) -> dict[str, np.ndarray]:
    x = rows(77, N, 0.0).features
    if missing:
        x["audio"][[1, 4]] = np.nan
        x["video"][4, 2] = np.nan
    return x


def test_same_numbers_as_the_pretrainer(trained: Pretrainer, embedder: Embedder) -> None:
    batch = rows(77, N, 0.0)
    expected = trained.embed(batch)
    np.testing.assert_array_equal(
        embedder.embed(batch.features), np.concatenate([expected[m].numpy() for m in WIDTHS], axis=1)
    )
    np.testing.assert_array_equal(embedder.embed(batch.features, fusion="audio"), expected["audio"].numpy())
    tensors = {m: torch.from_numpy(x) for m, x in batch.features.items()}
    np.testing.assert_array_equal(embedder.embed(tensors), embedder.embed(batch.features))


def test_the_row_as_a_whole_is_exported_with_what_represents_it(tmp_path: Path) -> None:
    pretrainer = fresh(small_config("conclugen", tasks={"comm": {}}))
    for step in range(2):
        pretrainer.step(rows(step))
    export.save(tmp_path / "model", pretrainer)
    embedder = conclugen.load(tmp_path / "model")
    assert embedder.whole == ("comm",) and "comm" in embedder.fusions
    assert embedder.width("comm") == embedder.width("audio")
    batch = rows(77, N, 0.4)
    np.testing.assert_allclose(
        embedder.embed(batch, fusion="comm"), pretrainer.embed_jointly(batch)["comm"].numpy(), atol=1e-6
    )
    assert not (embedder.embed(batch, fusion="comm") == embedder.embed(batch, fusion="audio")).all()
    with pytest.raises(ValueError, match=r"fusion: .*'com' \(did you mean 'comm'\?\)"):
        embedder.embed(batch, fusion="com")


def test_what_it_is(trained: Pretrainer, embedder: Embedder) -> None:
    assert embedder.widths == WIDTHS
    assert embedder.info["preset"] == "conclugen" and embedder.info["steps"] == 4 and embedder.info["data"] == "abc"
    assert embedder.info["recipe"] == trained.config.recipe


def test_beside_raw_is_what_is_worked_out_by_hand(trained: Pretrainer, tmp_path: Path) -> None:
    """Means and deviations of training rows alone; halves of equal total variance; a missing modality is its mean."""
    train = rows(5, 40, 0.3)
    there = {m: np.asarray(x).copy() for m, x in train.present.items()}
    raw = {m: np.asarray(x) for m, x in train.features.items()}
    known = np.concatenate([trained.embed(train)[m].double().numpy() for m in WIDTHS], axis=1)
    export.save(tmp_path / "m", trained, beside_raw=BesideRaw.fit(known, raw, there))
    embedder = conclugen.load(tmp_path / "m")
    width, columns = known.shape[1], known.shape[1] + sum(WIDTHS.values())
    assert embedder.width("concat+raw") == columns and embedder.width() == width
    assert embedder.width("audio") == embedder.width("mean") == embedder.representation_dim

    def by_hand(vectors: np.ndarray, x: dict[str, np.ndarray], present: dict[str, np.ndarray]) -> np.ndarray:
        deviation = known.std(axis=0)
        parts = [
            (vectors - known.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1) * np.sqrt(columns / 2 / width)
        ]
        for m, d in WIDTHS.items():
            mean = raw[m][there[m]].astype(np.float64).mean(axis=0)
            filled = np.where(there[m][:, None], raw[m], mean)
            share = columns / 2 / len(WIDTHS) / d
            parts.append(np.where(present[m][:, None], x[m] - mean, 0) / filled.std(axis=0) * np.sqrt(share))
        return np.concatenate(parts, axis=1)

    missing = {m: np.where(there[m][:, None], raw[m], np.nan) for m in WIDTHS}
    made = embedder.embed(missing, "concat+raw")
    np.testing.assert_allclose(made, by_hand(known, raw, there), rtol=1e-3, atol=1e-4)
    spread = made.var(axis=0)
    dead = known.std(axis=0) <= 1e-9  # heads that end in ReLU may have columns of zeros
    np.testing.assert_allclose(spread[:width].sum(), columns / 2 * (1 - dead.mean()), rtol=1e-3)
    np.testing.assert_allclose(spread[width:].sum(), columns / 2, rtol=1e-3)
    other = features(missing=True)
    here = {m: ~np.isnan(x).any(axis=1) for m, x in other.items()}
    shifted = {m: x + 3 for m, x in other.items()}  # other rows change no scale
    expected = by_hand(embedder.embed(shifted).astype(np.float64), shifted, here)
    np.testing.assert_allclose(embedder.embed(shifted, "concat+raw"), expected, rtol=1e-3, atol=1e-3)
    alone = embedder.embed({"audio": shifted["audio"]}, "concat+raw")
    assert alone.shape == (N, columns) and (alone[:, width : width + WIDTHS["video"]] == 0).all()
    assert f"{width} + {columns - width} numbers" in (tmp_path / "m" / "MODEL_CARD.md").read_text()


def test_a_model_without_scales_says_how_to_get_them(embedder: Embedder) -> None:
    with pytest.raises(
        ValueError, match=r"'concat\+raw' needs scales of training rows.*conclugen pretrain of its run again"
    ):
        embedder.embed(features(), "concat+raw")
    assert "concat+raw" not in embedder.fusions


def test_missing_rows_are_zero_and_do_not_count_in_the_mean(embedder: Embedder) -> None:
    complete, missing = features(), features(missing=True)
    r = {m: embedder.embed(complete, fusion=m) for m in WIDTHS}
    expected_audio = r["audio"].copy()
    expected_audio[[1, 4]] = 0
    np.testing.assert_array_equal(embedder.embed(missing, fusion="audio"), expected_audio)
    mean = embedder.embed(missing, fusion="mean")
    np.testing.assert_allclose(mean[0], (r["video"][0] + r["audio"][0] + r["text"][0]) / 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean[1], (r["video"][1] + r["text"][1]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean[4], r["text"][4], rtol=1e-5, atol=1e-6)
    assert np.isfinite(embedder.embed(missing)).all()


@pytest.mark.parametrize("tensors", [False, True])
def test_a_batch_is_embedded_as_training_reads_it(trained: Pretrainer, embedder: Embedder, tensors: bool) -> None:
    """With missing rows, a modality that the model does not know, and rows of padding."""
    batch = rows(78, N, 0.4)
    batch.features["another"], batch.present["another"] = np.ones((N, 3), "f4"), np.ones(N, bool)
    assert not all(mask.all() for mask in batch.present.values())
    given = Batch.of(batch).padded(N + 2) if tensors else batch
    expected = trained.embed(given)
    np.testing.assert_array_equal(embedder.embed(given), np.concatenate([expected[m].numpy() for m in WIDTHS], axis=1))
    _, present = embedder.represent(given)
    np.testing.assert_array_equal(present["audio"][:N], batch.present["audio"])


def test_padding_of_a_batch_without_masks_is_missing(trained: Pretrainer, embedder: Embedder) -> None:
    batch = rows(79, N, 0.0)
    batch.present, batch.row[2:4] = {}, -1
    expected = trained.embed(batch)["audio"].numpy()
    np.testing.assert_array_equal(embedder.embed(batch, fusion="audio"), expected)
    assert (expected[2:4] == 0).all() and (expected[4] != 0).any()


def test_what_is_neither_features_nor_a_batch_is_named(embedder: Embedder) -> None:
    with pytest.raises(
        TypeError, match=r"found ndarray, expected a mapping such as \{'video': array of shape \(rows, 6"
    ):
        embedder.embed(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="found vidio, expected one or more of video, audio, text"):
        embedder.embed(SimpleNamespace(features={"vidio": np.zeros((2, 6))}, present={}))
    with pytest.raises(ValueError, match=r"present\['video'\]: found shape \(3,\), expected \(2,\)"):
        embedder.embed(SimpleNamespace(features={"video": np.zeros((2, 6))}, present={"video": np.ones(3, bool)}))


@pytest.mark.parametrize("absent", [{"audio": None}, {}])
def test_a_modality_that_is_missing_everywhere(embedder: Embedder, absent: dict[str, None]) -> None:
    x = features()
    given = {"video": x["video"], "text": x["text"], **absent}
    joined = embedder.embed(given)
    assert joined.shape == (N, 48)
    assert (joined[:, 16:32] == 0).all()
    np.testing.assert_array_equal(joined[:, :16], embedder.embed(x, fusion="video"))


def test_more_rows_than_one_chunk(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = embedder.embed(features(missing=True))
    monkeypatch.setattr(export, "_CHUNK_ROWS", 3)
    np.testing.assert_allclose(embedder.embed(features(missing=True)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "fusion", "words"),
    [
        ({"vidio": np.zeros((2, 6))}, "concat", "'vidio'.*did you mean 'video'"),
        ({"video": np.zeros((2, 7))}, "concat", r"'video'.*\(2, 7\).*\(rows, 6\)"),
        ({"video": np.zeros((2, 6)), "text": np.zeros((3, 4))}, "concat", "equally many rows"),
        ({"video": None}, "concat", "no modality"),
        ({"video": np.zeros((2, 6))}, "conkat", "fusion.*'conkat'.*did you mean 'concat'"),
    ],
)
def test_refusals(embedder: Embedder, x: dict[str, np.ndarray], fusion: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        embedder.embed(x, fusion=fusion)


def test_a_damaged_export_is_refused(trained: Pretrainer, tmp_path: Path) -> None:
    export.save(tmp_path / "m", trained)
    assert "Regulation 2024/1689" in (tmp_path / "m" / "MODEL_CARD.md").read_text()
    path = tmp_path / "m" / export.TENSORS
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ExportError, match="digest"):
        conclugen.load(tmp_path / "m")
    with pytest.raises(ExportError, match="can't be read"):
        conclugen.load(tmp_path / "nowhere")


def test_a_model_of_double_precision_keeps_it(tmp_path: Path) -> None:
    pretrainer = fresh(small_config("conclugen", precision="float64"))
    pretrainer.step(rows(0))
    export.save(tmp_path / "m", pretrainer)
    x = rows(77, N, 0.0)
    expected, found = pretrainer.embed(x), conclugen.load(tmp_path / "m").embed(x)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.concatenate([expected[m].numpy() for m in WIDTHS], axis=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"representation_dim": 10**6}}, "(?s)do not fit config.json.*size mismatch"),
        ({"model": {"representation_dim": 10**15}}, "config.json: "),
        ({"info": []}, r"config.json: info is \[\], expected a mapping"),
        ({"widths": {"video": -6}}, "config.json: "),
        ({"widths": {"video": None}}, "config.json: "),
    ],
)
def test_a_document_that_claims_what_can_t_be_is_refused_by_name(
    trained: Pretrainer, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """And at once: heads of a million squared numbers are never made."""
    export.save(tmp_path / "m", trained)
    path = tmp_path / "m" / export.DOCUMENT
    document = json.loads(path.read_text())
    document["config"]["model"] |= change.get("model", {})
    changed = document | {name: x for name, x in change.items() if name != "model"}
    path.write_text(storage.document_text(changed))
    with pytest.raises(ExportError, match=words):
        conclugen.load(tmp_path / "m")


def test_a_flipped_bit_of_the_document_is_found(trained: Pretrainer, tmp_path: Path) -> None:
    """The threshold at which inputs are clipped, say: with another digit it is as good a number."""
    export.save(tmp_path / "m", trained)
    path = tmp_path / "m" / export.DOCUMENT
    content = path.read_bytes()
    for field in (b'"representation_activation": "', b'"steps": ', b'"precision": "'):
        changed = bytearray(content)
        changed[content.index(field) + len(field)] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ExportError, match=r"config\.json: says something else than what was sealed"):
            conclugen.load(tmp_path / "m")


def test_only_the_heads_are_exported(trained: Pretrainer, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    export.save(tmp_path / "m", trained)
    assert {name.split(".")[0] for name in load_file(tmp_path / "m" / export.TENSORS)} <= {"heads", "standardize"}
