"""Rendered clips whose face and voice act emotions that have nothing to do with each other.

Two emotions are drawn for each clip, one of the face and one of the voice. So there are three labels: what the face
alone tells, what the voice alone tells, and whether they match, which neither tells and no sum of what they tell does:
expression in both together only, as irony is. What is said fits no emotion. Speakers, light, background and noise are
those of the rendered corpus (`shards.corpus`); frozen encoders see the square around the head, as crops of a built
corpus do, and hear the sound as it was made, so what the codecs of a real corpus lose is left out.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conclugen.encoders import registry
from conclugen.fields import choose, require
from shards.corpus.emotions import EMOTIONS
from tuning.controlled.factors import Rows

if TYPE_CHECKING:
    from conclugen.encoders import Encoder, Takes
    from shards.corpus.acting import Acting

FACE, VOICE, BOTH = "face", "voice", "both"


@dataclass(frozen=True)
class RenderedConfig:
    """What is rendered, and which frozen encoders see and hear it.

    Attributes:
        emotions: Two of the corpus; a face and a voice act one of them each.
        speakers: Speakers; a third of them, at least two, are for testing.
        clips: Clips of each speaker.
        video: Encoder of pictures. One of objects in general tells nothing of a drawn face's expression
            (`efficientnet-lite0`: 0.50 where chance is 0.50); one made for faces does (0.89).
        audio: Encoder of sound.
        weights: Encoder -> file or package that its weights are read from, where they are not installed.
    """

    emotions: tuple[str, ...] = ("happy", "sad")
    speakers: int = 18
    clips: int = 40
    video: str = "face-expression"
    audio: str = "prosody"
    weights: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for emotion in self.emotions:
            choose("rendered.emotions", emotion, EMOTIONS)
        require(len(set(self.emotions)) == 2, "rendered.emotions", self.emotions, "two different ones")
        require(self.speakers >= 6, "rendered.speakers", self.speakers, "6 or more: some train, others test")
        require(self.clips >= 2, "rendered.clips", self.clips, "2 or more")
        for name in self.weights:
            choose("rendered.weights", name, list(self.widths.values()))

    @property
    def widths(self) -> dict[str, str]:
        """Modality -> its encoder."""
        return {"video": self.video, "audio": self.audio}

    @property
    def content(self) -> dict[str, Any]:
        """What decides the features: an encoder takes its published weights, wherever they lie."""
        return {name: value for name, value in asdict(self).items() if name != "weights"}

    @property
    def columns(self) -> tuple[str, ...]:
        """There are no facts about the clean clip."""
        return ()

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Label -> its classes."""
        return {FACE: self.emotions, VOICE: self.emotions, BOTH: ("clash", "match")}

    @property
    def meanings(self) -> dict[str, str]:
        """What a label is, for the page."""
        return {
            FACE: "the emotion that the face acts, and the voice does not tell",
            VOICE: "the emotion that the voice acts, and the face does not tell",
            BOTH: "whether face and voice act the same one; a linear probe of representations side by side can't tell",
        }

    @property
    def test_speakers(self) -> int:
        return max(2, self.speakers // 3)


def draw(config: RenderedConfig, seed: int, processes: int = 1) -> Rows:
    """speakers x clips rows, those of a speaker one after the other; the same for the same configuration and seed."""
    speakers = range(config.speakers)
    if processes == 1:
        parts = [_of_speaker(config, seed, speaker) for speaker in speakers]
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            arguments = itertools.repeat(config), itertools.repeat(seed), speakers
            parts = list(pool.map(_of_speaker, *arguments))
    features = {m: np.concatenate([part[m] for part in parts]) for m in config.widths}
    acted = np.concatenate([_acted(config, seed, speaker) for speaker in speakers])
    labels = {FACE: acted[:, 0], VOICE: acted[:, 1], BOTH: (acted[:, 0] == acted[:, 1]).astype(np.int64)}
    return Rows(features, labels, np.repeat(np.arange(config.speakers), config.clips))


def _acted(config: RenderedConfig, seed: int, speaker: int) -> NDArray[np.int64]:
    """(clips, 2): numbers of the emotions of face and voice."""
    return np.random.default_rng([seed, 3, speaker]).integers(2, size=(config.clips, 2))


def _of_speaker(config: RenderedConfig, seed: int, speaker: int) -> Mapping[str, NDArray[np.float32]]:
    """Features of a speaker's clips, modality -> (clips, D)."""
    import torch
    from threadpoolctl import threadpool_limits

    from shards.media.libraries import cv2

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            encoders = {m: registry.create(name, config.weights.get(name)) for m, name in config.widths.items()}
            acted = _acted(config, seed, speaker)
            made = [_encoded(config, encoders, (seed, speaker, clip), acted[clip]) for clip in range(config.clips)]
    finally:
        torch.set_num_threads(threads)
    return {modality: np.stack([features[modality] for features in made]) for modality in encoders}


def _encoded(
    config: RenderedConfig, encoders: Mapping[str, Encoder], place: tuple[int, int, int], acted: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Features of one clip, modality -> (D,)."""
    from shards.corpus.acting import act
    from shards.corpus.scene import draw_scene, record
    from shards.corpus.sentences import draw_sentence
    from shards.corpus.speaker import draw_speaker
    from shards.corpus.voice import RATE, synthesise

    seed, number, clip = place
    speaker = draw_speaker(np.random.default_rng([seed, 1, number]), str(number))
    rng = np.random.default_rng([seed, 4, number, clip])
    face, voice = (config.emotions[which] for which in acted)
    acting = act(rng, speaker, face, draw_sentence(rng, "neutral"), voice)
    scene = draw_scene(rng)
    samples = record(rng, scene, synthesise(rng, acting.speech, speaker.voice, round(acting.seconds * RATE)))
    found = {}
    for modality, encoder in encoders.items():
        takes = encoder.info.takes
        value: Any = samples
        if takes.kind == "frames":
            value = _pictures(rng, speaker.face, scene, acting, takes)
        elif takes.kind != "wave" or takes.rate != RATE:
            raise ValueError(
                f"rendered.{modality}: encoder {encoder.info.name!r} takes {takes.key}, expected frames, or sound at "
                f"{RATE} Hz"
            )
        found[modality] = encoder.encode([value])[0]
    return found


def _pictures(rng: np.random.Generator, face: Any, scene: Any, acting: Acting, takes: Takes) -> NDArray[np.uint8]:
    """(T, H, W, 3): the face in those pictures of a clip that an encoder takes, from its begin to its end; others are
    not drawn."""
    from shards.corpus.acting import FPS
    from shards.corpus.scene import faces, film, heads

    count = len(acting.times)
    chosen = acting.at(np.linspace(0, count - 1, max(1, int(count * min(takes.rate, FPS) / FPS))).round().astype(int))
    assert takes.size is not None
    return faces(film(rng, scene, face, chosen), heads(scene, chosen), takes.size)
