"""A speaker: a face and a voice that stay the same over all of its clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shards.corpus.emotions import ACTION_UNITS

Colour = tuple[float, float, float]  # RGB, 0 to 255

# From light to dark; each speaker's lies between two neighbours. Dark skin goes with dark or grey hair.
_SKINS = ((244, 214, 192), (232, 190, 160), (212, 160, 122), (172, 118, 82), (124, 80, 54), (92, 60, 42))
_HAIRS = ((168, 166, 164), (28, 24, 24), (62, 42, 30), (112, 74, 44), (186, 146, 88), (150, 74, 40))
_DARK_HAIRS = 3
_IRISES = ((84, 58, 36), (58, 42, 28), (92, 120, 150), (96, 128, 92))
HAIRSTYLES = ("short", "long", "bald", "fringe", "bun")


@dataclass(frozen=True)
class Face:
    """Lengths in units of half the head's height, from its centre, y down.

    width: half the head's; jaw: how square the lower half is (2 is an ellipse); eye_*, brow_*, nose_*, mouth_*: places
    and sizes; rest: action unit -> what the face does at rest (its owner looks a little stern, or glad, all the time).
    """

    width: float
    jaw: float
    eye_distance: float
    eye_height: float
    eye_size: float
    eye_opening: float
    brow_height: float
    brow_tilt: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip_thickness: float
    skin: Colour
    hair: Colour
    iris: Colour
    lip: Colour
    shirt: Colour
    hairstyle: str
    glasses: bool
    beard: bool
    rest: Mapping[str, float]


@dataclass(frozen=True)
class VoiceBox:
    """pitch: Hz; formants: factor of their frequencies (short tracts have high ones); rate: syllables a second; slope:
    dB an octave of the source; breath: share of noise."""

    pitch: float
    formants: float
    rate: float
    slope: float
    breath: float


@dataclass(frozen=True)
class Speaker:
    """expressive_face, expressive_voice: factors of what emotion does to either."""

    name: str
    face: Face
    voice: VoiceBox
    expressive_face: float
    expressive_voice: float


def draw_speaker(rng: np.random.Generator, name: str) -> Speaker:
    """A speaker, drawn."""
    pitch = float(np.exp(rng.uniform(np.log(95), np.log(225))))
    # Low voices belong to long vocal tracts, mostly.
    formants = 1.0 + 0.16 * np.log2(pitch / 146) + rng.normal(0, 0.03)
    voice = VoiceBox(pitch, float(formants), rng.uniform(5.0, 6.4), rng.uniform(-8.5, -6.0), rng.uniform(0.01, 0.06))
    return Speaker(name, _draw_face(rng), voice, rng.uniform(0.75, 1.2), rng.uniform(0.75, 1.2))


def _draw_face(rng: np.random.Generator) -> Face:
    shade = rng.uniform(0, len(_SKINS) - 1)
    skin = _between(_SKINS, shade)
    hairstyle = str(rng.choice(HAIRSTYLES))
    rest = {name: float(max(0.0, rng.normal(0, 0.08))) for name in ACTION_UNITS if name != "jaw_drop"}
    lip = tuple(0.62 * c + 0.38 * t for c, t in zip(skin, (188, 70, 78), strict=True))
    return Face(
        width=rng.uniform(0.68, 0.82),
        jaw=rng.uniform(2.0, 2.8),
        eye_distance=rng.uniform(0.28, 0.35),
        eye_height=rng.uniform(-0.14, -0.04),
        eye_size=rng.uniform(0.125, 0.165),
        eye_opening=rng.uniform(0.055, 0.085),
        brow_height=rng.uniform(0.15, 0.22),
        brow_tilt=rng.uniform(-0.03, 0.03),
        brow_thickness=rng.uniform(0.025, 0.06),
        nose_length=rng.uniform(0.30, 0.40),
        nose_width=rng.uniform(0.10, 0.16),
        mouth_height=rng.uniform(0.48, 0.56),
        mouth_width=rng.uniform(0.23, 0.32),
        lip_thickness=rng.uniform(0.035, 0.07),
        skin=skin,
        hair=_between(_HAIRS, rng.uniform(0, (_DARK_HAIRS if shade > 2 else len(_HAIRS)) - 1)),
        iris=_IRISES[int(rng.integers(len(_IRISES)))],
        lip=lip,  # type: ignore[arg-type]
        shirt=tuple(rng.uniform(30, 220, 3)),
        hairstyle=hairstyle,
        glasses=bool(rng.random() < 0.2),
        beard=bool(hairstyle in ("short", "bald") and rng.random() < 0.4),
        rest=rest,
    )


def _between(colours: tuple[Colour, ...], place: float) -> Colour:
    """The colour at a place of a list, 0 for the first one, mixed of its neighbours."""
    i = min(int(place), len(colours) - 2)
    a, b, share = colours[i], colours[i + 1], place - i
    return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))  # type: ignore[return-value]
