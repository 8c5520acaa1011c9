"""Features of known factors: what modalities share, what one alone has, what only their combination tells.

Each row is a clip of a speaker. Its factors are drawn independently of each other:

- shared: a vector that every modality sees;
- unique to m, for each modality m: a vector that no other one sees;
- synergy: a sign in the first modality and a sign in the second; the label is their product. Either alone says nothing
  of it, and no sum of what the modalities say does (exclusive or);
- cluster: one of several points, whose place every modality sees with a spread around it;
- speaker: a vector that is the same in all rows of a speaker and seen by every modality; the label is a trait, the sign
  of its first number, so that it can be asked of speakers never met.

A modality sees its factors z through a random map, a tanh, and a second random map, with noise on top:
x_m = tanh(gain z A_m) B_m + noise, all columns of equal variance. The last modality m has a column `clean_m` beside it,
the same without noise, as signal processing might measure it on a clean clip: tasks may tell it, and none learns from
it. The label of a vector is the quadrant of its first two numbers: four equally likely classes, which a linear probe of
the vector itself tells almost exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen.fields import finite, require

QUADRANTS = ("low low", "low high", "high low", "high high")
SIGNS = ("minus", "plus")
SHARED, SYNERGY, CLUSTER, SPEAKER = "shared", "synergy", "cluster", "speaker"
_GAIN = 1.5


@dataclass(frozen=True)
class FactorsConfig:
    """What the rows are made of; a factor of 0 dimensions (clusters, for `clusters`) is left out.

    Attributes:
        widths: Modality -> number of its features.
        speakers: Speakers; a third of them, at least two, are for testing.
        clips: Rows of each speaker.
        shared: Dimensions of what all modalities see.
        unique: Dimensions of what each modality alone sees.
        synergy: Whether the first two modalities have a sign each whose product is a label.
        synergy_size: Size of these signs; the numbers of the other factors have a standard deviation of 1.
        clusters: Points of the clustered factor.
        cluster_dimensions: Dimensions in which these points lie.
        cluster_spread: Standard deviation around a point, whose own numbers have 1.
        speaker: Dimensions of what is the same in all rows of a speaker.
        speaker_size: Standard deviation of these dimensions; those of the other factors have 1.
        noise: Standard deviation of the noise on each feature, whose signal has 1.
    """

    widths: dict[str, int] = field(default_factory=lambda: {"video": 48, "audio": 32})
    speakers: int = 24
    clips: int = 100
    shared: int = 4
    unique: int = 4
    synergy: bool = True
    synergy_size: float = 2.0
    clusters: int = 6
    cluster_dimensions: int = 4
    cluster_spread: float = 0.5
    speaker: int = 4
    speaker_size: float = 1.5
    noise: float = 1.0

    def __post_init__(self) -> None:
        for name in self.widths:
            require(name.isidentifier(), "factors.widths", name, "letters, digits and _ only")
        need = self.seen_dimensions
        require(len(self.widths) >= 2, "factors.widths", self.widths, "two modalities or more: they share factors")
        require(self.speakers >= 6, "factors.speakers", self.speakers, "6 or more: some train, others test")
        require(self.clips >= 2, "factors.clips", self.clips, "2 or more")
        for name in ("shared", "unique"):
            value = getattr(self, name)
            require(value == 0 or value >= 2, f"factors.{name}", value, "0, or 2 or more: a label needs two dimensions")
        require(self.clusters == 0 or self.clusters >= 2, "factors.clusters", self.clusters, "0, or 2 or more")
        if self.clusters:
            require(self.cluster_dimensions >= 1, "factors.cluster_dimensions", self.cluster_dimensions, "1 or more")
        require(self.speaker >= 0, "factors.speaker", self.speaker, "0 or more")
        for name in ("synergy_size", "cluster_spread", "speaker_size", "noise"):
            value = getattr(self, name)
            require(finite(value) and value >= 0, f"factors.{name}", value, "a number of 0 or more")
        for place, (name, width) in enumerate(self.widths.items()):
            seen = need + (1 if self.synergy and place < 2 else 0)
            require(width >= seen, f"factors.widths.{name}", width, f"{seen} or more, the dimensions of its factors")
        require(need > 0 or self.synergy, "factors", "none", "one at least: shared, unique, synergy, clusters, speaker")

    @property
    def seen_dimensions(self) -> int:
        """Dimensions of the factors that each modality sees, signs of the synergy apart."""
        return self.shared + self.unique + (self.cluster_dimensions if self.clusters else 0) + self.speaker

    @property
    def content(self) -> dict[str, Any]:
        """What decides the features."""
        return asdict(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """Facts about the clean clip, which are not learned from."""
        return (f"clean_{list(self.widths)[-1]}",)

    @property
    def meanings(self) -> dict[str, str]:
        """What a label is, for the page."""
        return {
            SHARED: "seen by every modality",
            **{unique_to(m): f"seen by {m} alone" for m in self.widths},
            SYNERGY: "product of a sign in the first and a sign in the second modality; a linear probe of "
            "representations side by side can't tell it",
            CLUSTER: "a point in which all modalities agree",
            SPEAKER: "a trait of the speaker, asked of speakers never met",
        }

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Label -> its classes."""
        found: dict[str, tuple[str, ...]] = {}
        if self.shared:
            found[SHARED] = QUADRANTS
        if self.unique:
            found |= {unique_to(m): QUADRANTS for m in self.widths}
        if self.synergy:
            found[SYNERGY] = SIGNS
        if self.clusters:
            found[CLUSTER] = tuple(f"c{k}" for k in range(self.clusters))
        if self.speaker:
            found[SPEAKER] = SIGNS
        return found

    @property
    def test_speakers(self) -> int:
        return max(2, self.speakers // 3)


def unique_to(modality: str) -> str:
    """The label of what a modality alone sees."""
    return f"unique_{modality}"


@dataclass(frozen=True)
class Rows:
    """features: modality, or column to be told -> (N, D) float32; labels: label -> (N,) number of the class; speaker
    (N,)."""

    features: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]
    speaker: NDArray[np.int64]


def draw(config: FactorsConfig, seed: int) -> Rows:
    """speakers x clips rows, those of a speaker one after the other; the same for the same configuration and seed."""
    rng = np.random.default_rng([seed, 1])
    rows = config.speakers * config.clips
    speaker = np.repeat(np.arange(config.speakers), config.clips)
    seen: dict[str, list[NDArray[np.float64]]] = {m: [] for m in config.widths}
    labels: dict[str, NDArray[np.int64]] = {}

    def shown(values: NDArray[np.float64], to: tuple[str, ...] = tuple(config.widths)) -> None:
        for modality in to:
            seen[modality].append(values)

    if config.shared:
        shown(shared := rng.standard_normal((rows, config.shared)))
        labels[SHARED] = _quadrant(shared)
    for modality in config.widths if config.unique else ():
        shown(own := rng.standard_normal((rows, config.unique)), (modality,))
        labels[unique_to(modality)] = _quadrant(own)
    if config.synergy:
        signs = rng.choice([-1.0, 1.0], (2, rows, 1))
        for modality, sign in zip(config.widths, signs, strict=False):
            shown(config.synergy_size * sign, (modality,))
        labels[SYNERGY] = (signs.prod(axis=0)[:, 0] > 0).astype(np.int64)
    if config.clusters:
        points = rng.standard_normal((config.clusters, config.cluster_dimensions))
        which = rng.integers(config.clusters, size=rows)
        shown(points[which] + config.cluster_spread * rng.standard_normal((rows, config.cluster_dimensions)))
        labels[CLUSTER] = which
    if config.speaker:
        who = _balanced_signs(config, rng) * np.abs(rng.standard_normal((config.speakers, config.speaker)))
        shown(config.speaker_size * who[speaker])
        labels[SPEAKER] = (who[speaker, 0] > 0).astype(np.int64)
    features: dict[str, NDArray[np.float32]] = {}
    for modality, width in config.widths.items():
        signal = _mixed(rng, np.concatenate(seen[modality], axis=1), width)
        features[modality] = (signal + config.noise * rng.standard_normal(signal.shape)).astype(np.float32)
    clean = dict.fromkeys(config.columns, signal.astype(np.float32))
    return Rows(features | clean, labels, speaker)


def _quadrant(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return 2 * (values[:, 0] > 0).astype(np.int64) + (values[:, 1] > 0)


def _balanced_signs(config: FactorsConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Of each speaker's numbers; in the first, half of the training and half of the test speakers have either sign."""
    signs = rng.choice([-1.0, 1.0], (config.speakers, config.speaker))
    for part in (slice(0, config.test_speakers), slice(config.test_speakers, config.speakers)):
        count = len(signs[part])
        signs[part, 0] = rng.permutation(np.where(np.arange(count) < count // 2, -1.0, 1.0))
    return signs


def _mixed(rng: np.random.Generator, z: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """tanh(gain z A) B: (N, d) to (N, width), columns of mean 0 and variance 1; A's have length 1, B is orthogonal."""
    spread = z.std(axis=0)
    scaled = z / np.sqrt(np.mean(spread**2) * z.shape[1]) if spread.any() else z
    first = rng.standard_normal((z.shape[1], width))
    second = np.linalg.qr(rng.standard_normal((width, width)))[0]
    signal = np.tanh(_GAIN * scaled @ first) @ second
    deviation = signal.std(axis=0)
    scaled_signal: NDArray[np.float64] = (signal - signal.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return scaled_signal
