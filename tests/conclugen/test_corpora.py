"""What mixing corpora means for learning: standardisation, negatives, clusters and losses by corpus, against slow
versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import conclugen
from conclugen import Batch, Pretrainer, presets
from conclugen import export as exporting
from conclugen.config import PretrainConfig
from conclugen.corpora import CorporaConfig, by_corpus
from conclugen.latents import Latents, Presence
from conclugen.tasks.clustering import Clustering, ClusteringConfig
from conclugen.tasks.contrastive import FEWEST_MATES, Contrastive, ContrastiveConfig

G, WIDTHS = 24, {"video": 5, "audio": 4, "text": 3}
NAMES = ("own", "vox")


def config(corpora: dict[str, Any] | None = None, preset: str = "conclugen", **changes: Any) -> PretrainConfig:
    return presets.build(
        preset,
        "improved",
        model={"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 12},
        tasks={"clustering": {"clusters": 3, "queue_batches": 1, "start_epoch": 0}} if preset == "conclugen" else {},
        global_batch=G,
        precision="float64",
        corpora={"names": NAMES, **(corpora or {})},
        **changes,
    )


def batch(seed: int = 0, rows: int = G) -> Batch:
    """Two corpora on scales of their own; the first has no text."""
    rng = np.random.default_rng(seed)
    corpus = torch.tensor(rng.integers(0, 2, rows))
    scale = torch.where(corpus == 0, 1.0, 50.0).unsqueeze(1).double()
    features = {m: (torch.tensor(rng.standard_normal((rows, d))) + 3) * scale for m, d in WIDTHS.items()}
    present = {m: torch.tensor(rng.random(rows) > 0.1) for m in WIDTHS}
    present["text"] &= corpus == 1
    group = torch.tensor(rng.integers(0, 4, rows)) + 4 * corpus
    made = Batch(features, present, torch.arange(rows), {}, group, corpus)
    return Batch.of(made, dtype=torch.float64)


def moments(whole: Batch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    assert whole.corpus is not None
    found = {}
    for m in WIDTHS:
        for name, mask in (
            ("", whole.present[m]),
            *((n, whole.present[m] & (whole.corpus == i)) for i, n in enumerate(NAMES)),
        ):
            if mask.any():
                x = whole.features[m][mask].numpy()
                found[by_corpus(m, name) if name else m] = x.mean(0), x.std(0)
    return found


def pretrainer(corpora: dict[str, Any] | None = None, **changes: Any) -> Pretrainer:
    made = config(corpora, **changes)
    return Pretrainer(made, WIDTHS, steps_per_epoch=4, standardization=moments(batch()))


def test_rows_are_standardised_by_their_own_corpus() -> None:
    one, whole = pretrainer({"standardize": "corpus"}), batch()
    found = one.model.inputs(whole)
    assert whole.corpus is not None
    for m in WIDTHS:
        for i in range(2):
            rows = found[m][whole.present[m] & (whole.corpus == i)]
            if len(rows):
                assert torch.allclose(rows.mean(0), torch.zeros(WIDTHS[m]).double(), atol=1e-9)
                assert torch.allclose(rows.std(0, correction=0), torch.ones(WIDTHS[m]).double(), atol=1e-9)
    joint = pretrainer().model.inputs(whole)
    assert not torch.allclose(joint["audio"], found["audio"])
    # A row of no known corpus, and one of a corpus that lacks the modality: by the moments of all.
    alone = Batch(whole.features, whole.present, whole.row, corpus=torch.full((G,), -1))
    assert torch.equal(one.model.inputs(alone)["audio"], joint["audio"])
    text = one.model.standardized("text", whole.features["text"], torch.zeros(G, dtype=torch.int64))
    assert torch.equal(text, joint["text"])


def test_the_exported_model_standardises_by_corpus_too(tmp_path: Path) -> None:
    one, whole = pretrainer({"standardize": "corpus"}), batch()
    info = {"corpora": {n: {"rows": 12, "rows_seen": 48} for n in NAMES}}
    exporting.save(tmp_path / "model", one, info)
    model = conclugen.load(tmp_path / "model")
    assert model.corpora == NAMES and model.info["corpora"] == info["corpora"]
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "Corpora seen: own (48 rows, of 12 different ones), vox (48 rows, of 12 different ones)." in card
    expected = one.embed(whole)["audio"].numpy()
    for i, name in enumerate(NAMES):
        rows = (whole.corpus == i).numpy() & whole.present["audio"].numpy()
        found = model.embed({"audio": whole.features["audio"].numpy()[rows]}, "audio", corpus=name)
        assert np.allclose(found, expected[rows], atol=1e-12)
    joint = one.embed(Batch(whole.features, whole.present, whole.row))["audio"].numpy()
    there = whole.present["audio"].numpy()
    assert np.allclose(model.embed({"audio": whole.features["audio"].numpy()}, "audio")[there], joint[there])
    with pytest.raises(ValueError, match=r"corpus: unknown value 'voks' \(did you mean 'vox'"):
        model.embed({"audio": np.ones((1, 4))}, corpus="voks")


def slow_contrastive(
    z: torch.Tensor, whole: Batch, negatives: str, temperature: float
) -> tuple[float, dict[str, float]]:
    """Row by row: each is told from the rows of its corpus, or of its speaker where there are enough."""
    z, total, own = torch.nn.functional.normalize(z, dim=2), 0.0, dict.fromkeys(NAMES, 0.0)
    assert whole.corpus is not None and whole.group is not None
    names = list(WIDTHS)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        valid = (whole.present[names[a]] & whole.present[names[b]]).tolist()
        losses: dict[int, float] = {}
        for i in range(G):
            of_corpus = [j for j in range(G) if j != i and valid[j] and whole.corpus[j] == whole.corpus[i]]
            mates = [j for j in of_corpus if whole.group[j] == whole.group[i]]
            others = mates if negatives == "same_group" and len(mates) >= FEWEST_MATES else of_corpus
            if not valid[i] or not others:
                continue
            loss = 0.0
            for x, y in ((z[a], z[b]), (z[b], z[a])):
                logits = torch.stack([x[i] @ y[i], *(x[i] @ y[j] for j in others)]) / temperature
                loss -= float(logits.log_softmax(0)[0])
            losses[i] = loss
        total += sum(losses.values()) / max(1, len(losses))
        for c, name in enumerate(NAMES):
            mine = [loss for i, loss in losses.items() if whole.corpus[i] == c]
            own[name] += sum(mine) / max(1, len(mine))
    return total, own


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("negatives", ["all", "same_group"])
@pytest.mark.parametrize("block_rows", [None, 5])
def test_negatives_within_a_corpus_equal_a_slow_version(negatives: str, block_rows: int | None, alone: bool) -> None:
    whole = batch(3)
    if alone:  # one row of a corpus: it has nothing to be told from, and does not count
        row = int(torch.stack(list(whole.present.values())).all(0).nonzero()[0])
        assert whole.corpus is not None and not torch.stack(list(whole.present.values())).all()
        whole.corpus.fill_(1)[row] = 0
    z = torch.tensor(np.random.default_rng(1).standard_normal((3, G, 8)), requires_grad=True)
    task = Contrastive(
        ContrastiveConfig(margin=0.0, temperature=0.3, negatives=negatives, block_rows=block_rows), within_corpus=True
    )
    task.corpora = 2
    presence = Presence.asked(whole, tuple(WIDTHS), with_group=True)()
    loss = task(Latents(tuple(WIDTHS), {}, {}, z, presence, 0, 0))
    expected, own = slow_contrastive(z.detach(), whole, negatives, 0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    noted = task.take_noted()
    assert noted is not None and task.take_noted() is None
    by = (noted[:, 0] / noted[:, 1].clamp(min=1)).sum(0)
    assert by.tolist() == pytest.approx([own[name] for name in NAMES], rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda x: task(Latents(tuple(WIDTHS), {}, {}, x, presence, 0, 0)), z, atol=1e-6, fast_mode=True
    )


def test_clusters_within_a_corpus_are_those_of_its_rows_alone() -> None:
    """Centroids, labels and loss of each corpus equal those of a task that never sees the other's rows."""
    settings = ClusteringConfig(
        clusters=3,
        queue_batches=2,
        start_epoch=0,
        queue="rolling",
        kmeans_start="warm",
        score="cosine",
        temperature=0.1,
    )
    torch_rng = np.random.default_rng(0)
    apart, alone = (
        Clustering(settings, 8, G, 7, apart=2).double(),
        [Clustering(settings, 8, G, 7).double() for _ in NAMES],
    )
    weight = torch.tensor(torch_rng.standard_normal((3, 8)))
    for task in (apart, *alone):
        task.head.weight.data.copy_(weight)
        task.corpora = 2
    for step in range(4):
        whole = batch(step)
        z = torch.tensor(torch_rng.standard_normal((3, G, 8)))
        presence = Presence.asked(whole, tuple(WIDTHS))()
        loss = float(apart(Latents(tuple(WIDTHS), {}, {}, z, presence, step, 0)).detach())
        total, counts = 0.0, []
        for c, task in enumerate(alone):
            assert whole.corpus is not None
            only = Batch(
                whole.features,
                {m: x & (whole.corpus == c) for m, x in whole.present.items()},
                whole.row,
                corpus=whole.corpus,
            )
            seen = Presence.asked(only, tuple(WIDTHS))()
            counts.append(int(seen.all.any(0).sum()))
            total += counts[-1] * float(task(Latents(tuple(WIDTHS), {}, {}, z, seen, step, 0)))
            assert torch.equal(apart.centroids[3 * c : 3 * c + 3], task.centroids)
            assert torch.equal(apart.assigned[3 * c : 3 * c + 3], task.assigned)
        assert loss == pytest.approx(total / sum(counts), rel=1e-12)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_losses_by_corpus_add_up_to_the_losses(micro_batch: int | None) -> None:
    """With shares as weights where every row counts in every term, which reconstruction of one modality shows."""
    one = pretrainer({"clusters": "within"}, micro_batch=micro_batch)
    metrics = {name: float(value) for name, value in one.step(batch(2)).items()}
    whole = batch(2)
    assert whole.corpus is not None
    assert metrics["share/own"] == pytest.approx(float((whole.corpus == 0).double().mean()))
    assert metrics["share/own"] + metrics["share/vox"] == pytest.approx(1)
    for task in ("contrastive", "clustering", "reconstruction"):
        assert all(np.isfinite(metrics[f"loss/{task}/{name}"]) for name in NAMES)
    valid = torch.stack([whole.present[m] for m in WIDTHS]).any(0)
    rows = [int((valid & (whole.corpus == c)).sum()) for c in range(2)]
    mean = sum(n * metrics[f"loss/clustering/{name}"] for n, name in zip(rows, NAMES, strict=True)) / sum(rows)
    assert metrics["loss/clustering"] == pytest.approx(mean, rel=1e-12)


def test_a_corpus_without_rows_in_a_batch_has_no_loss() -> None:
    whole = batch()
    only = Batch(whole.features, whole.present, whole.row, corpus=torch.ones(G, dtype=torch.int64))
    metrics = pretrainer().step(only)
    assert float(metrics["share/own"]) == 0 and np.isnan(float(metrics["loss/contrastive/own"]))
    assert float(metrics["loss/contrastive/vox"]) == pytest.approx(float(metrics["loss/contrastive"]), rel=1e-12)


def test_state_goes_on_exactly_and_names_other_corpora() -> None:
    choices = {"standardize": "corpus", "negatives": "within", "clusters": "within"}
    one, two = pretrainer(choices), pretrainer(choices)
    for step in range(3):
        one.step(batch(step))
    tensors, meta = one.state()
    two.load_state({name: x.clone() for name, x in tensors.items()}, meta)
    for step in range(3, 6):
        a, b = one.step(batch(step)), two.step(batch(step))
        assert all(torch.equal(a[name], b[name]) or (a[name].isnan() and b[name].isnan()) for name in a)
    with pytest.raises(ValueError, match=r"corpora\.negatives: saved 'within', now 'across'"):
        pretrainer({**choices, "negatives": "across"}).load_state(tensors, meta)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="batch corpus: found none, expected numbers of own, vox"):
        whole = batch()
        pretrainer().step(Batch(whole.features, whole.present, whole.row))
    plain = config({"names": ()}, preset="contrast_only")
    with pytest.raises(ValueError, match="batch corpus: found a corpus of each row, expected none"):
        Pretrainer(plain, WIDTHS, 4, moments(batch())).step(batch())
    with pytest.raises(ValueError, match=r"corpora\.names: found \('b', 'a'\)"):
        CorporaConfig(names=("b", "a"))
    with pytest.raises(ValueError, match=r"corpora\.negatives: found 'within' with task 'simclr'"):
        config({"negatives": "within"}, preset="simclr", modalities=("video",))
