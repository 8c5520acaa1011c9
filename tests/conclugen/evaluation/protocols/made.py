"""Small made-up people: two modalities, three classes, a class mean and a person's own offset in every column."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.protocols.base import Material, ProtocolOptions, System

CLASSES = ("calm", "happy", "sad")
WIDTHS = {"video": 4, "audio": 6}
PEOPLE, EACH = 12, 15


def people(seed: int = 0, offset: float = 1.0, separation: float = 1.2) -> tuple[dict[str, NDArray], NDArray, NDArray]:
    """Modality -> (N, D), classes (N,) and persons (N,)."""
    g = np.random.default_rng(seed)
    person = np.repeat(np.arange(PEOPLE), EACH)
    y = np.tile(np.arange(EACH) % 3, PEOPLE)
    features = {}
    for name, width in WIDTHS.items():
        means, own = g.normal(size=(3, width)) * separation, g.normal(size=(PEOPLE, width)) * offset
        features[name] = means[y] + own[person] + g.normal(size=(len(y), width))
    return features, y, person


def same(arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    return dict(arrays)


def rotated(arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """A learned representation that is not raw: columns mixed, squashed."""
    g = np.random.default_rng(5)
    return {name: np.tanh(x @ g.normal(size=(x.shape[1], 5)) / 2) for name, x in arrays.items()}


def raw(name: str = "raw", arrange: Callable[..., Blocks] = Blocks.plain) -> System:
    return System(name, same, {m: m for m in WIDTHS}, arrange, frozenset(WIDTHS))


def learned(name: str = "pretrained") -> System:
    return System(name, rotated, {m: m for m in WIDTHS}, Blocks.plain, parameters=50)


def material(seed: int = 0, folds: int = 2, offset: float = 1.0, **options: object) -> Material:
    features, y, person = people(seed, offset)
    tested = [person % 4 == k for k in range(folds)]
    everyone = tuple(Fold(k, np.flatnonzero(~mask), np.flatnonzero(mask)) for k, mask in enumerate(tested))
    protocol = Protocol("made", Target("emotion", "class", y, CLASSES), person, everyone)
    settings = ProtocolOptions(**{"draws": 2, "resamples": 200, **options})  # type: ignore[arg-type]
    return Material(protocol, features, (learned(), raw(), raw("raw balanced", Blocks.balanced)), options=settings)
