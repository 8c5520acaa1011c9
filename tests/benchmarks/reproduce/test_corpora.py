"""Mixtures that `benchmarks.reproduce.corpora` judges: what each row has learned from, on small made corpora."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reproduce import corpora
from benchmarks.reproduce.corpora import Corpus, Run, config_of, section, store
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_cross_folds
from conclugen.presets import build

pytestmark = pytest.mark.slow


def made(name: str, modalities: dict[str, int], seed: int) -> Corpus:
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"s{i}" for i in range(6)], 12)
    label = np.tile([0, 1], 36)
    features = {
        m: (rng.normal(size=(72, width)) + 1.5 * label[:, None] * rng.normal(size=width)).astype(np.float32)
        for m, width in modalities.items()
    }
    target = Target("emotion", "class", label, ("calm", "angry"))
    protocol = Protocol(name, target, groups, group_cross_folds(groups, 2)).drawn((0.5, 1.0), 2, 1)
    design = Fold(0, np.flatnonzero(groups < "s4"), np.flatnonzero(groups >= "s4"))
    return Corpus(name, name.title(), features, groups, protocol, "accuracy", design)


def test_rows_learn_from_what_their_names_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dims = {"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 8}
    sizes = replace(corpora.SIZES, clusters=2, global_batch=12, epochs=1, **dims)
    monkeypatch.setattr(corpora, "SIZES", sizes)
    sets = {
        "ravdess": made("ravdess", {"functionals": 3, "units": 4}, 0),
        "meld": made("meld", {"units": 4, "text": 5}, 1),
    }
    learned: list[dict[str, tuple[str, float | None]]] = []
    plain = corpora.pretrained

    def watched(config, data, steps):  # type: ignore[no-untyped-def]
        learned.append({n: (s.view, s.weight) for n, s in data.sources.items()} | {"steps": steps})
        return plain(config, data, steps)

    monkeypatch.setattr(corpora, "pretrained", watched)
    stored = {name: store(tmp_path / name, corpus) for name, corpus in sets.items()}
    run = Run(tmp_path, stored, 2, 2)
    systems = run.systems("ravdess", [1])
    assert list(systems) == [
        *("raw, balanced", "untrained heads", "alone", "mixed", "searched", "alone, these columns", "unseen"),
    ]
    weights = run.searched("ravdess")
    for fold in ("fold-0", "fold-1"):
        assert {"ravdess": (fold, None), "steps": 8} in learned and {"ravdess": (fold, None), "steps": 0} in learned
        assert {"ravdess": (fold, None), "meld": ("everything", None), "steps": 8} in learned
        mixed = {"ravdess": (fold, weights["ravdess"]), "meld": ("everything", weights["meld"]), "steps": 8}
        assert mixed in learned
    assert learned.count({"meld": ("everything", None), "steps": 8}) == 1, "one model for equal mixtures"
    assert len(learned) == 2 * 4 + 1
    again = run.systems("ravdess", [1])
    assert len(learned) == 2 * 4 + 1 and all(
        np.array_equal(again[n].predicted[1.0], systems[n].predicted[1.0]) for n in again
    )
    text = section(sets["ravdess"], systems, ["units"])
    assert "`unseen` is judged on units" in text and "| mixed minus alone | " in text and "50% of labels" in text


def test_neighbours_in_the_ring_of_pairs_occur_together() -> None:
    names = [("ravdess", ("functionals", "units")), ("meld", ("units", "mel", "text")), ("mosi", ("text", "opensmile"))]
    config = config_of([made(name, dict.fromkeys(own, 2), 0) for name, own in names], 5)
    pairs = list(zip(config.modalities, config.modalities[1:], strict=False))
    assert all(any({a, b} <= set(own) for _, own in names) for a, b in pairs)
    assert config.corpora.names == ("meld", "mosi", "ravdess") and config.corpora.negatives == "within"
    assert config.seed == 5 and build("conclugen", "improved").tasks.active.keys() == config.tasks.active.keys()
