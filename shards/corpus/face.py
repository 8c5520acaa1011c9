"""Draws a face: where its parts lie for given action units, and the picture of it.

Places are in units of half the head's height from the head's centre, x right and y down, as the viewer sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shards.corpus.speaker import Colour, Face
from shards.media.libraries import cv2

_SHIFT = 4  # bits of a pixel's fraction that OpenCV draws with
_BENDS = np.linspace(-1, 1, 17)


@dataclass(frozen=True)
class Placing:
    """Where the head is in the picture. centre: (x, y) in pixels; scale: pixels of half its height; roll: radians;
    aside: how far it looks aside, in half heights by which the face's parts move within the head."""

    centre: tuple[float, float]
    scale: float
    roll: float
    aside: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) places to pixels."""
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        turned = np.asarray(points) @ np.array([[cos, sin], [-sin, cos]])
        placed: np.ndarray = turned * self.scale + self.centre
        return placed


@dataclass(frozen=True)
class Mouth:
    """Four curves of 17 points from the left to the right corner: outer and inner edges of the lips."""

    upper_outer: np.ndarray
    upper_inner: np.ndarray
    lower_inner: np.ndarray
    lower_outer: np.ndarray


def mouth(face: Face, units: Mapping[str, float], opening: float, rounding: float) -> Mouth:
    """The mouth for strengths of action units and what speech does to it, both 0 to 1."""
    pull, depress = units["lip_corner_puller"], units["lip_corner_depressor"]
    stretch, tight = units["lip_stretcher"], units["lip_tightener"]
    half = face.mouth_width * (1 + 0.30 * pull + 0.28 * stretch - 0.12 * tight - 0.28 * rounding)
    gap = np.clip(0.13 * opening + 0.26 * units["jaw_drop"] - 0.04 * tight, 0, 0.4)
    corner = face.mouth_height - 0.13 * pull + 0.12 * depress + 0.03 * stretch + 0.3 * gap
    middle = face.mouth_height + 0.02 * pull - 0.03 * depress
    thick = face.lip_thickness * (1 - 0.6 * tight) * (1 - 0.25 * pull)
    arch = 1 - np.abs(_BENDS) ** 2
    x = _BENDS * half
    upper_inner = corner + (middle - corner) * arch
    lower_inner = corner + (middle + gap - corner) * (1 - np.abs(_BENDS) ** 2.6)
    bow = 1 - 0.35 * np.exp(-((_BENDS / 0.18) ** 2))  # the dip in the middle of the upper lip
    rim = (1 - np.abs(_BENDS) ** 3) * thick
    return Mouth(
        np.stack([x, upper_inner - rim * bow], axis=1),
        np.stack([x, upper_inner], axis=1),
        np.stack([x, np.maximum(lower_inner, upper_inner)], axis=1),
        np.stack([x, np.maximum(lower_inner, upper_inner) + 1.25 * rim], axis=1),
    )


def brow(face: Face, units: Mapping[str, float], side: int) -> np.ndarray:
    """(5, 2) the middle line of a brow from its inner to its outer end; side: -1 left, 1 right."""
    inner, outer, lower = units["inner_brow_raiser"], units["outer_brow_raiser"], units["brow_lowerer"]
    share = np.linspace(0, 1, 5)
    arch = 0.035 * np.sin(np.pi * share)
    y = face.eye_height - face.brow_height - arch + face.brow_tilt * (share - 0.5)
    y = y - 0.12 * inner * (1 - share) ** 1.5 - 0.11 * outer * share + lower * (0.12 * (1 - share) + 0.02)
    # Brows come no nearer to the lids than the lids allow.
    y = np.minimum(y, face.eye_height - face.eye_opening - 0.03)
    x = face.eye_distance + face.eye_size * (-1.25 + 2.6 * share) - 0.05 * lower * (1 - share)
    return np.stack([side * x, y], axis=1)


def eye(face: Face, units: Mapping[str, float], closed: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(17, 2) upper and lower lid of an eye, from left to right."""
    raised = 1 + 0.75 * units["upper_lid_raiser"] - 0.40 * units["lid_tightener"] - 0.25 * units["cheek_raiser"]
    up = face.eye_opening * max(raised, 0.25) * (1 - closed)
    down = face.eye_opening * max(1 - 0.45 * units["lid_tightener"] - 0.6 * units["cheek_raiser"], 0.1) * (1 - closed)
    x = side * face.eye_distance + _BENDS * face.eye_size
    arch = np.sqrt(1 - _BENDS**2)
    sink = 0.02 * closed
    upper = np.stack([x, face.eye_height + sink - up * arch], axis=1)
    lower = np.stack([x, face.eye_height + sink + 0.85 * down * arch], axis=1)
    return upper, lower


def outline(face: Face, jaw_drop: float) -> np.ndarray:
    """(64, 2) the head: an ellipse above, squarer below (a superellipse), longer where the jaw drops."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    below = y > 0
    power = np.where(below, 2 / face.jaw, 1.0)
    points = np.stack([np.sign(x) * np.abs(x) ** power, np.sign(y) * np.abs(y) ** power], axis=1)
    # Narrower towards the chin.
    points[:, 0] *= face.width * np.where(below, 1 - 0.22 * np.clip(y, 0, 1) ** 2, 1.0)
    points[:, 1] *= np.where(below, 1 + 0.10 * jaw_drop, 1.0)
    return points


def draw_face(
    picture: np.ndarray,
    face: Face,
    place: Placing,
    units: Mapping[str, float],
    opening: float,
    rounding: float,
    closed: float,
    gaze: float,
) -> None:
    """Draw head, hair, neck and shoulders into an (H, W, 3) uint8 RGB picture, in place."""
    pen = _Pen(picture, place)
    dark, darker = _shade(face.skin, 0.86), _shade(face.skin, 0.66)
    head = outline(face, units["jaw_drop"])
    _behind(pen, face)
    pen.fill(_rectangle(-0.32, 0.6, 0.32, 1.5), dark)
    pen.fill(_shoulders(), face.shirt)
    pen.fill(np.array([[-0.34, 1.15], [0.34, 1.15], [0.0, 1.55]]), dark)
    for side in (-1, 1):
        pen.ellipse((side * face.width * 0.99, 0.02), (0.10, 0.17), dark)
    pen.fill(head, face.skin)
    if face.beard:
        _beard(pen, face, head)

    inside = _Pen(picture, Placing(tuple(place(np.array([[place.aside, 0.0]]))[0]), place.scale, place.roll, 0.0))
    _folds(inside, face, units, dark, darker)
    _hair(pen, face)
    for side in (-1, 1):
        _eye(inside, face, units, closed, gaze, side)
        _brow(inside, face, units, side)
    _nose(inside, face, dark, darker)
    _mouth(inside, face, units, opening, rounding)
    if face.glasses:
        _glasses(inside, face)


class _Pen:
    """Draws in places of the head."""

    def __init__(self, picture: np.ndarray, place: Placing):
        self._picture, self._place = picture, place

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        return np.rint(self._place(points) * (1 << _SHIFT)).astype(np.int32)

    def fill(self, points: np.ndarray, colour: Colour) -> None:
        cv2.fillPoly(self._picture, [self._pixels(points)], _rgb(colour), cv2.LINE_AA, _SHIFT)

    def line(self, points: np.ndarray, colour: Colour, width: float) -> None:
        pixels = max(1, round(width * self._place.scale))
        cv2.polylines(self._picture, [self._pixels(points)], False, _rgb(colour), pixels, cv2.LINE_AA, _SHIFT)

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], colour: Colour) -> None:
        angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        self.fill(np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], 1), colour)

    def ring(self, centre: tuple[float, float], radius: float, colour: Colour, width: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 33)
        self.line(np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], 1), colour, width)


def _eye(pen: _Pen, face: Face, units: Mapping[str, float], closed: float, gaze: float, side: int) -> None:
    upper, lower = eye(face, units, closed, side)
    centre = (side * face.eye_distance, face.eye_height)
    pen.ellipse(centre, (face.eye_size * 1.35, face.eye_opening * 1.9), _shade(face.skin, 0.88))
    pen.fill(np.concatenate([upper, lower[::-1]]), (240, 238, 234))
    radius = face.eye_size * 0.52
    for size, colour in ((radius, face.iris), (radius * 0.5, (12, 10, 10))):
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        x = centre[0] + gaze * face.eye_size * 0.4 + size * np.cos(angle)
        y = centre[1] + size * np.sin(angle)
        y = np.clip(y, np.interp(x, upper[:, 0], upper[:, 1]), np.interp(x, lower[:, 0], lower[:, 1]))
        pen.fill(np.stack([x, y], axis=1), colour)
    pen.line(upper, (40, 28, 26), 0.028)
    pen.line(lower, _shade(face.skin, 0.6), 0.012)


def _brow(pen: _Pen, face: Face, units: Mapping[str, float], side: int) -> None:
    line = brow(face, units, side)
    half = face.brow_thickness * np.array([0.9, 1.0, 0.9, 0.7, 0.3])[:, None] * np.array([0.0, 1.0])
    # Brows are darker than the hair, and than the skin.
    hair = tuple(min(0.6 * h, 0.55 * s) for h, s in zip(face.hair, face.skin, strict=True))
    pen.fill(np.concatenate([line - half, (line + half)[::-1]]), hair)  # type: ignore[arg-type]


def _nose(pen: _Pen, face: Face, dark: Colour, darker: Colour) -> None:
    top, tip = face.eye_height + 0.02, face.eye_height + face.nose_length
    wide = face.nose_width
    pen.line(np.array([[0.055, top], [0.07, tip - 0.1], [wide * 0.75, tip - 0.03]]), dark, 0.03)
    pen.fill(np.array([[-0.03, top], [0.03, top], [0.05, tip - 0.04], [-0.05, tip - 0.04]]), _shade(face.skin, 1.06))
    pen.line(np.array([[-wide, tip - 0.02], [-wide * 0.6, tip + 0.025], [0, tip + 0.035], [wide * 0.6, tip + 0.025],
                       [wide, tip - 0.02]]), dark, 0.03)  # fmt: skip
    for side in (-1, 1):
        pen.ellipse((side * wide * 0.5, tip + 0.005), (0.032, 0.018), _shade(darker, 0.6))


def _folds(pen: _Pen, face: Face, units: Mapping[str, float], dark: Colour, darker: Colour) -> None:
    """Furrows of the brow, lines of the forehead, and the folds from nose to mouth."""
    tip = face.eye_height + face.nose_length
    smile = max(units["lip_corner_puller"], units["cheek_raiser"], 0.6 * units["lip_stretcher"])
    for side in (-1, 1):
        reach = face.mouth_width * (1.25 + 0.3 * smile)
        ends = np.array([[side * face.nose_width * 1.2, tip - 0.04], [side * reach, face.mouth_height - 0.06]])
        pen.line(ends, _mix(face.skin, darker, 0.25 + 0.6 * min(smile, 1)), 0.02)
        furrow = min(units["brow_lowerer"], 1.0)
        if furrow > 0.15:
            at = face.eye_height - face.brow_height + 0.03
            pen.line(
                np.array([[side * 0.06, at - 0.08], [side * 0.045, at + 0.06]]), _mix(face.skin, darker, furrow), 0.02
            )
    raised = min(max(units["inner_brow_raiser"], units["outer_brow_raiser"]), 1.0)
    if raised > 0.2:
        for level in (0.36, 0.44):
            x = np.linspace(-0.3, 0.3, 7)
            line = np.stack([x, face.eye_height - level - 0.02 * np.cos(4 * x)], axis=1)
            pen.line(line, _mix(face.skin, dark, raised), 0.016)


def _mouth(pen: _Pen, face: Face, units: Mapping[str, float], opening: float, rounding: float) -> None:
    m = mouth(face, units, opening, rounding)
    pen.fill(np.concatenate([m.upper_outer, m.lower_outer[::-1]]), face.lip)
    gap = float((m.lower_inner[:, 1] - m.upper_inner[:, 1]).max())
    pen.fill(np.concatenate([m.upper_inner, m.lower_inner[::-1]]), (52, 16, 20))
    if gap > 0.05:
        below = m.upper_inner + (m.lower_inner - m.upper_inner) * min(0.45, 0.07 / gap)
        pen.fill(np.concatenate([m.upper_inner, below[::-1]])[2:-2], (232, 228, 220))
    pen.line(m.upper_inner, _shade(face.lip, 0.5), 0.022)
    base = m.lower_outer[5:12] + np.array([0.0, 0.05])
    pen.line(base, _shade(face.skin, 0.8), 0.02)


def _beard(pen: _Pen, face: Face, head: np.ndarray) -> None:
    lower = head[(head[:, 1] > 0.28)]
    lower = lower[np.argsort(lower[:, 0])]
    inner = lower * np.array([0.70, 1.0]) + np.array([0.0, -0.30])
    pen.fill(np.concatenate([lower, inner[::-1]]), _mix(face.skin, face.hair, 0.75))


def _behind(pen: _Pen, face: Face) -> None:
    """Hair that lies behind the head."""
    wide = face.width
    if face.hairstyle in ("long", "fringe"):
        pen.ellipse((0, -0.16), (wide * 1.26, 0.98), face.hair)
        pen.fill(
            np.array([[-wide * 1.26, -0.2], [wide * 1.26, -0.2], [wide * 1.2, 1.15], [-wide * 1.2, 1.15]]), face.hair
        )
    elif face.hairstyle == "bun":
        pen.ellipse((0, -1.08), (0.32, 0.26), face.hair)
        pen.ellipse((0, -0.12), (wide * 1.08, 1.0), face.hair)
    elif face.hairstyle == "short":
        pen.ellipse((0, -0.18), (wide * 1.10, 0.95), face.hair)


def _hair(pen: _Pen, face: Face) -> None:
    """Hair over the forehead."""
    if face.hairstyle == "bald":
        return
    low = {"short": -0.58, "long": -0.55, "bun": -0.66, "fringe": -0.36}[face.hairstyle]
    angle = np.linspace(np.pi * 1.06, np.pi * 1.94, 21)
    top = np.stack([face.width * 1.05 * np.cos(angle), 1.04 * np.sin(angle) + 0.02], axis=1)
    x = np.linspace(face.width * 0.98, -face.width * 0.98, 21)
    bend = 0.10 if face.hairstyle == "fringe" else 0.38
    line = np.stack([x, low + bend * (x / face.width) ** 2], axis=1)
    pen.fill(np.concatenate([top, line]), face.hair)
    pen.line(top[4:-9] * np.array([0.86, 0.9]), _shade(face.hair, 1.25), 0.03)


def _glasses(pen: _Pen, face: Face) -> None:
    colour = (38, 36, 40)
    for side in (-1, 1):
        pen.ring((side * face.eye_distance, face.eye_height + 0.01), face.eye_size * 1.45, colour, 0.025)
    inner = face.eye_distance - face.eye_size * 1.45
    pen.line(np.array([[-inner, face.eye_height], [inner, face.eye_height]]), colour, 0.025)


def _rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _shoulders() -> np.ndarray:
    angle = np.linspace(np.pi, 2 * np.pi, 25)
    return np.stack([1.35 * np.cos(angle), 2.25 + 1.05 * np.sin(angle)], axis=1)


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255.0, c * factor) for c in colour)  # type: ignore[return-value]


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _rgb(colour: Colour) -> tuple[int, int, int]:
    return tuple(round(c) for c in colour)  # type: ignore[return-value]
