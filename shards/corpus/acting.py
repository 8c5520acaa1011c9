"""What a speaker does in one clip, over time: the course of the emotion, the face, the head and the speech."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shards.corpus.emotions import ACTION_UNITS, EMOTIONS
from shards.corpus.sentences import Syllable, syllables
from shards.corpus.speaker import Speaker

FPS = 15
CONTROL = 200  # values a second of the tracks that steer the voice
# Formants in Hz (Peterson & Barney 1952, men), and how far the vowel opens and rounds the mouth.
_VOWELS = {
    "a": ((730, 1090, 2440), 1.0, 0.0),
    "e": ((530, 1840, 2480), 0.6, 0.0),
    "i": ((390, 1990, 2550), 0.35, 0.0),
    "o": ((570, 840, 2410), 0.7, 0.7),
    "u": ((300, 870, 2240), 0.4, 1.0),
}
_VOWELS["y"] = _VOWELS["i"]
_FRICATIVES = frozenset("cfhjsvxz")
_CLOSURES = frozenset("bmp")  # lips meet
_PAUSE = 0.03  # seconds between words
_SLUR = 0.03  # seconds over which formants glide
_CROSSTALK = 0.12  # deviation of the strength of each channel from the emotion's own


@dataclass(frozen=True)
class Speech:
    """Tracks of CONTROL values a second. voicing: 0 to 1; pitch: Hz; level: dB; formants: (3, n) Hz; slope: dB an
    octave of the source; friction: 0 to 1, of a hiss; opening, rounding: 0 to 1, of the mouth."""

    voicing: np.ndarray
    pitch: np.ndarray
    level: np.ndarray
    formants: np.ndarray
    slope: np.ndarray
    friction: np.ndarray
    opening: np.ndarray
    rounding: np.ndarray


@dataclass(frozen=True)
class Acting:
    """One clip. times: (T,) seconds of its pictures; units: action unit -> (T,) strength; opening, rounding: (T,) of
    the mouth by speech; eyes_closed: (T,); shift: (T, 2) of the head in its half heights; turn: (T, 2) roll in radians,
    and how far it looks aside; course: (T,) of the emotion, 0 to 1; intensity: of the clip."""

    seconds: float
    times: np.ndarray
    units: Mapping[str, np.ndarray]
    opening: np.ndarray
    rounding: np.ndarray
    eyes_closed: np.ndarray
    shift: np.ndarray
    turn: np.ndarray
    course: np.ndarray
    intensity: float
    speech: Speech

    def at(self, index: np.ndarray) -> Acting:
        """The same clip at some of its pictures alone; index: their numbers."""
        return replace(
            self,
            units={name: course[index] for name, course in self.units.items()},
            **{name: getattr(self, name)[index] for name in _OF_PICTURES},
        )


_OF_PICTURES = ("times", "opening", "rounding", "eyes_closed", "shift", "turn", "course")


def act(rng: np.random.Generator, speaker: Speaker, emotion: str, sentence: str, voice: str | None = None) -> Acting:
    """Play a sentence with an emotion; the clip is as long as the sentence, with a moment before and after it. voice:
    the emotion that is heard, where it is another one than that which is seen."""
    heard = emotion if voice is None else voice
    intensity = float(rng.uniform(0.6, 1.25))
    strength_face, strength_voice = (max(0.1, intensity + rng.normal(0, _CROSSTALK)) for _ in range(2))
    strength_face *= speaker.expressive_face
    strength_voice *= speaker.expressive_voice

    lead, tail = rng.uniform(0.1, 0.25, 2)
    rate = speaker.voice.rate * np.exp(EMOTIONS[heard].voice.rate * strength_voice + rng.normal(0, 0.06))
    spoken = _Timing.of(sentence, float(rate), float(lead), rng)
    seconds = np.ceil((spoken.end + tail) * FPS) / FPS
    times = np.arange(round(seconds * FPS)) / FPS
    ticks = np.arange(round(seconds * CONTROL)) / CONTROL
    onset, offset = rng.uniform(-0.12, 0.3), rng.uniform(0.8, 1.1) * seconds

    def course(at: np.ndarray) -> np.ndarray:
        return _ramp(at, onset, 0.35) * (1 - 0.7 * _ramp(at, offset - 0.4, 0.4))

    speech = _speech(rng, speaker, heard, strength_voice * course(ticks), spoken, ticks)
    swell = course(times)
    units = {}
    for name in ACTION_UNITS:
        jitter = 0.05 * _slow(rng, times, 0.5)
        own = EMOTIONS[emotion].face.get(name, 0.0) * strength_face * rng.uniform(0.8, 1.2)
        units[name] = np.clip(speaker.face.rest.get(name, 0.0) + own * swell + jitter, 0, 1.3)
    return Acting(
        float(seconds),
        times,
        units,
        np.interp(times, ticks, speech.opening),
        np.interp(times, ticks, speech.rounding),
        _blinks(rng, times),
        np.stack([0.05 * _slow(rng, times, 0.8), 0.03 * _slow(rng, times, 0.5)], axis=1),
        np.stack([0.06 * _slow(rng, times, 0.8), 0.5 * _slow(rng, times, 1.0)], axis=1),
        swell,
        intensity,
        speech,
    )


@dataclass(frozen=True)
class _Timing:
    """begin, length: seconds of each syllable; end: of the last one."""

    syllables: list[Syllable]
    begin: np.ndarray
    length: np.ndarray

    @property
    def end(self) -> float:
        return float(self.begin[-1] + self.length[-1])

    @classmethod
    def of(cls, sentence: str, rate: float, lead: float, rng: np.random.Generator) -> _Timing:
        parts = syllables(sentence)
        length = np.exp(rng.normal(0, 0.15, len(parts))) / rate
        length[-1] *= 1.4  # the last syllable of a sentence is drawn out
        gaps = np.array([_PAUSE if part.first and i else 0.0 for i, part in enumerate(parts)])
        begin = lead + np.cumsum(gaps) + np.concatenate([[0.0], np.cumsum(length)[:-1]])
        return cls(parts, begin, length)


def _speech(
    rng: np.random.Generator, speaker: Speaker, emotion: str, strength: np.ndarray, spoken: _Timing, ticks: np.ndarray
) -> Speech:
    how, box = EMOTIONS[emotion].voice, speaker.voice
    voicing, friction, opening, rounding = (np.zeros_like(ticks) for _ in range(4))
    accent = np.zeros_like(ticks)
    centres, targets = [], []
    for part, begin, length in zip(spoken.syllables, spoken.begin, spoken.length, strict=True):
        place = (ticks - begin) / length
        inside = (place >= 0) & (place < 1)
        hump = np.where(inside, np.sin(np.pi * np.clip(place, 0, 1)), 0)
        formants, open_, round_ = _VOWELS[part.vowel]
        centres.append(begin + 0.5 * length)
        targets.append(formants)
        voicing = np.maximum(voicing, hump**0.5)
        opening = np.maximum(opening, open_ * hump ** (1.5 if set(part.consonant) & _CLOSURES else 0.8))
        rounding = np.maximum(rounding, round_ * hump)
        accent += rng.normal(0.3, 0.7) * hump
        if set(part.consonant) & _FRICATIVES:
            hiss = np.exp(-(((ticks - begin) / 0.035) ** 2))
            friction = np.maximum(friction, hiss)
            voicing = voicing * (1 - 0.9 * hiss)
    share = np.clip((ticks - spoken.begin[0]) / (spoken.end - spoken.begin[0]), 0, 1)
    octaves = (
        rng.normal(0, 0.05)
        + how.pitch * strength
        + np.maximum(0.12 + how.melody * strength, 0.02) * accent
        + (-0.15 + how.rise * strength) * share
        + how.tremor * strength * np.sin(2 * np.pi * 6.5 * ticks + rng.uniform(0, 2 * np.pi))
        + 0.01 * _slow(rng, ticks, 0.05)
    )
    wanted = np.stack([np.interp(ticks, centres, [t[i] for t in targets]) for i in range(3)])
    return Speech(
        voicing,
        np.clip(box.pitch * 2**octaves, 60, 480),
        how.level * strength + rng.normal(0, 1.5) + 1.5 * _slow(rng, ticks, 0.3),
        _smooth(wanted, _SLUR * CONTROL) * box.formants,
        box.slope + how.slope * strength + rng.normal(0, 0.5),
        friction,
        _smooth(opening, 0.02 * CONTROL),
        _smooth(rounding, 0.03 * CONTROL),
    )


def _ramp(at: np.ndarray, begin: float, length: float) -> np.ndarray:
    """From 0 to 1 over `length`, by half a cosine."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip((at - begin) / length, 0, 1))


def _slow(rng: np.random.Generator, at: np.ndarray, seconds: float) -> np.ndarray:
    """A smooth random course of about unit deviation that wanders within `seconds`; `at` is evenly spaced."""
    knots = np.arange(at[0] - 2 * seconds, at[-1] + 3 * seconds, seconds)
    fine = np.linspace(knots[0], knots[-1], 8 * len(knots))
    course = _smooth(np.interp(fine, knots, rng.standard_normal(len(knots))), 4)
    return np.interp(at, fine, course) * 1.3


def _smooth(values: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian over the last axis, in steps; the ends are held."""
    reach = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(reach, reach)], mode="edge")
    rows = padded.reshape(-1, padded.shape[-1])
    return np.stack([np.convolve(row, weights, "valid") for row in rows]).reshape(values.shape)


def _blinks(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """(T,) how far the eyes are closed: about a blink in three seconds."""
    at, closed = rng.uniform(0.2, 3.0), np.zeros_like(times)
    while at < times[-1]:
        closed = np.maximum(closed, np.clip(1 - np.abs(times - at) / 0.1, 0, 1))
        at += rng.uniform(1.5, 4.0)
    return closed
