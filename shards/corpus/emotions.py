"""The acted emotions: what a face does, how a voice sounds, and how pleasant each is.

Faces are put together from action units (Ekman & Friesen 1978) by the prototypes of their EMFACS; voices follow the
directions that Juslin & Laukka 2003 found over many studies (level, pitch and its range, rate, spectral slope).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Names of the action units that are drawn, with their numbers in the Facial Action Coding System.
ACTION_UNITS = {
    "inner_brow_raiser": 1,
    "outer_brow_raiser": 2,
    "brow_lowerer": 4,
    "upper_lid_raiser": 5,
    "cheek_raiser": 6,
    "lid_tightener": 7,
    "lip_corner_puller": 12,
    "lip_corner_depressor": 15,
    "lip_stretcher": 20,
    "lip_tightener": 23,
    "jaw_drop": 26,
}


@dataclass(frozen=True)
class Voice:
    """How a voice departs from its speaker's neutral one at full intensity.

    pitch: octaves; melody: octaves of its range; level: dB; rate: log of the factor of syllables a second; slope: dB an
    octave (up is brighter); rise: octaves that the pitch gains from begin to end; tremor: octaves of a quick quiver.
    """

    pitch: float = 0.0
    melody: float = 0.0
    level: float = 0.0
    rate: float = 0.0
    slope: float = 0.0
    rise: float = 0.0
    tremor: float = 0.0


@dataclass(frozen=True)
class Emotion:
    """face: action unit -> strength at full intensity; valence: from -1 to 1."""

    valence: float
    face: Mapping[str, float] = field(default_factory=dict)
    voice: Voice = field(default_factory=Voice)


EMOTIONS: Mapping[str, Emotion] = {
    "angry": Emotion(
        -0.7,
        {"brow_lowerer": 1.0, "upper_lid_raiser": 0.4, "lid_tightener": 0.6, "lip_tightener": 0.9},
        Voice(pitch=0.30, melody=0.12, level=7.0, rate=0.12, slope=3.5, rise=-0.12),
    ),
    "fearful": Emotion(
        -0.6,
        {
            "inner_brow_raiser": 1.0,
            "outer_brow_raiser": 0.5,
            "brow_lowerer": 0.4,
            "upper_lid_raiser": 0.8,
            "lip_stretcher": 0.9,
            "jaw_drop": 0.3,
        },
        Voice(pitch=0.45, melody=-0.06, level=-1.0, rate=0.18, slope=0.5, tremor=0.05),
    ),
    "happy": Emotion(
        0.8,
        {"cheek_raiser": 0.9, "lip_corner_puller": 1.0, "jaw_drop": 0.15},
        Voice(pitch=0.30, melody=0.22, level=4.0, rate=0.08, slope=1.5, rise=0.08),
    ),
    "neutral": Emotion(0.1),
    "sad": Emotion(
        -0.5,
        {"inner_brow_raiser": 0.9, "brow_lowerer": 0.35, "lip_corner_depressor": 1.0, "lid_tightener": 0.25},
        Voice(pitch=-0.18, melody=-0.14, level=-6.0, rate=-0.22, slope=-3.5, rise=-0.12),
    ),
    "surprised": Emotion(
        0.3,
        {"inner_brow_raiser": 0.9, "outer_brow_raiser": 1.0, "upper_lid_raiser": 0.8, "jaw_drop": 0.8},
        Voice(pitch=0.42, melody=0.20, level=3.0, rate=-0.04, slope=0.5, rise=0.40),
    ),
}
