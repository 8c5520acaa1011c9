"""What differs from clip to clip and says nothing of the emotion: camera, light, background, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.corpus.acting import Acting
from shards.corpus.face import Placing, draw_face
from shards.corpus.speaker import Colour, Face
from shards.media.libraries import cv2

SIDE = 160  # pixels of the square picture
_OVERSAMPLING = 2  # drawn so much larger, then averaged: smooth edges at any place
_AROUND = 1.4  # of half the head's height: half the side of the square around a face


@dataclass(frozen=True)
class Scene:
    """zoom: half the head's height as a share of the picture's; centre, drift: shares; tilt: radians; wall: colours
    above and below; thing: (left, top, right, bottom) shares of what is behind; light: (x, y) its gradient over the
    picture; exposure: factor of it; warmth: factors of R, G, B; grain: deviation of the picture's noise, in grey
    levels; blur: pixels; volume: dB of all sound; hum: dB of the background noise against the voice's 0 dB; rumble: its
    share of low noise, 0 to 1."""

    zoom: float
    centre: tuple[float, float]
    drift: tuple[float, float]
    tilt: float
    wall: tuple[Colour, Colour]
    thing: tuple[float, float, float, float]
    thing_colour: Colour
    light: tuple[float, float]
    exposure: float
    warmth: Colour
    grain: float
    blur: float
    volume: float
    hum: float
    rumble: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene, drawn."""
    left, top = rng.uniform(-0.2, 0.9), rng.uniform(-0.2, 0.6)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    warm = rng.normal(0, 0.05)
    return Scene(
        zoom=rng.uniform(0.27, 0.35),
        centre=(0.5 + rng.uniform(-0.07, 0.07), 0.46 + rng.uniform(-0.04, 0.04)),
        drift=(rng.normal(0, 0.015), rng.normal(0, 0.015)),
        tilt=rng.normal(0, 0.05),
        wall=(_muted(rng), _muted(rng)),
        thing=(left, top, left + rng.uniform(0.15, 0.5), top + rng.uniform(0.15, 0.6)),
        thing_colour=_muted(rng),
        light=(strength * np.cos(angle), strength * np.sin(angle)),
        exposure=float(np.exp(rng.normal(0, 0.14))),
        warmth=(1 + warm, 1.0, 1 - warm),
        grain=rng.uniform(1, 6),
        blur=rng.uniform(0.0, 0.8),
        volume=rng.uniform(-9, 3),
        hum=rng.uniform(-36, -12),
        rumble=rng.uniform(0, 1),
    )


def film(rng: np.random.Generator, scene: Scene, face: Face, acting: Acting) -> np.ndarray:
    """(T, 160, 160, 3) uint8 RGB: the clip's pictures."""
    large = SIDE * _OVERSAMPLING
    behind = _background(scene, large)
    lamp = _lamp(scene)
    pictures = np.empty((len(acting.times), SIDE, SIDE, 3), np.uint8)
    for i, time in enumerate(acting.times):
        picture = behind.copy()
        share = time / max(acting.seconds, 1e-9)
        place = Placing(
            (
                large * (scene.centre[0] + scene.drift[0] * share + scene.zoom * acting.shift[i, 0]),
                large * (scene.centre[1] + scene.drift[1] * share + scene.zoom * acting.shift[i, 1]),
            ),
            large * scene.zoom,
            scene.tilt + acting.turn[i, 0],
            0.08 * acting.turn[i, 1],
        )
        units = {name: float(course[i]) for name, course in acting.units.items()}
        draw_face(
            picture,
            face,
            place,
            units,
            float(acting.opening[i]),
            float(acting.rounding[i]),
            float(acting.eyes_closed[i]),
            float(0.4 * acting.turn[i, 1]),
        )
        small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        small *= lamp * _relief(place, face)[..., None]
        if scene.blur > 0.25:
            small = cv2.GaussianBlur(small, (0, 0), scene.blur)
        # Grain of a sensor: the same in all three colours, drawn again for each picture.
        small += scene.grain * rng.standard_normal((SIDE, SIDE, 1), np.float32)
        pictures[i] = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    return pictures


def heads(scene: Scene, acting: Acting) -> np.ndarray:
    """(T, 3): where `film` draws the head: x and y of its middle and half its height, in pixels."""
    share = acting.times / max(acting.seconds, 1e-9)
    middle = np.array(scene.centre) + np.array(scene.drift) * share[:, None] + scene.zoom * acting.shift
    return np.column_stack([SIDE * middle, np.full(len(acting.times), SIDE * scene.zoom)])


def faces(pictures: np.ndarray, head: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, height, width, 3): the square around each head, scaled to `size`; beyond the picture its edge continues."""
    found = []
    for picture, (x, y, half) in zip(pictures, head, strict=True):
        side = round(2 * _AROUND * half)
        padded = cv2.copyMakeBorder(picture, side, side, side, side, cv2.BORDER_REPLICATE)
        left, top = round(x - side / 2) + side, round(y - side / 2) + side
        found.append(cv2.resize(padded[top : top + side, left : left + side], size[::-1]))
    return np.stack(found)


def record(rng: np.random.Generator, scene: Scene, voice: np.ndarray) -> np.ndarray:
    """(N,) float32 in [-1, 1]: the voice as the scene's microphone hears it."""
    white = rng.standard_normal(voice.size)
    # A leaky sum of white noise is a rumble.
    low = np.convolve(white, 0.97 ** np.arange(200), "full")[: voice.size] * np.sqrt(1 - 0.97**2)
    noise = (1 - scene.rumble) * white + scene.rumble * low
    noise *= 0.05 * 10 ** (scene.hum / 20) / np.sqrt((noise**2).mean())
    heard = (voice + noise) * 10 ** (scene.volume / 20)
    # Soft clipping, as of an overdriven input.
    return np.tanh(heard).astype(np.float32)


def _muted(rng: np.random.Generator) -> Colour:
    """A colour of rooms: a grey, tinted a little."""
    return tuple(np.clip(rng.uniform(50, 215) + rng.normal(0, 22, 3), 15, 240).tolist())


def _background(scene: Scene, side: int) -> np.ndarray:
    """A wall between two colours, with a thing before it, out of focus."""
    first, second = (np.array(colour) for colour in scene.wall)
    down = np.linspace(0, 1, side)[:, None, None]
    picture = np.broadcast_to((1 - down) * first + down * second, (side, side, 3)).copy()
    left, top, right, bottom = (round(edge * side) for edge in scene.thing)
    cv2.rectangle(picture, (left, top), (right, bottom), scene.thing_colour, -1)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), side / 40), 0, 255).astype(np.uint8)


def _lamp(scene: Scene) -> np.ndarray:
    """(160, 160, 3) float32 factors of the light."""
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    falloff = 1 + scene.light[0] * across[None, :] + scene.light[1] * across[:, None]
    return (scene.exposure * falloff[..., None] * np.array(scene.warmth)).astype(np.float32)


def _relief(place: Placing, face: Face) -> np.ndarray:
    """(160, 160) float32 factors: a face is not flat; its sides and the sockets of the eyes lie darker."""
    half = SIDE // 2
    scale = half / (SIDE * _OVERSAMPLING)
    relief = np.full((half, half), 255, np.uint8)
    pixels = place.scale * scale

    def at(x: float, y: float) -> tuple[int, int]:
        (point,) = place(np.array([[x + place.aside, y]])) * scale
        return round(point[0]), round(point[1])

    edge = max(1, round(0.2 * pixels))
    size = (round(face.width * pixels), round(pixels))
    cv2.ellipse(relief, at(0, 0), size, float(np.degrees(place.roll)), 0, 360, 205, edge)
    for side in (-1, 1):
        socket = (max(1, round(0.2 * pixels)), max(1, round(0.11 * pixels)))
        cv2.ellipse(relief, at(side * face.eye_distance, face.eye_height - 0.03), socket, 0, 0, 360, 190, -1)
        cheek = (max(1, round(0.14 * pixels)), max(1, round(0.1 * pixels)))
        cv2.ellipse(relief, at(side * 0.34, face.eye_height + 0.34), cheek, 0, 0, 360, 255, -1)
    soft = cv2.GaussianBlur(relief, (0, 0), 0.09 * pixels)
    grown = cv2.resize(soft, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    factors: np.ndarray = grown.astype(np.float32) / 255
    return factors
