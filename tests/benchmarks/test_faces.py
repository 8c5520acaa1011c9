"""Where the rendered heads of `benchmarks.faces` are, who is in which group, and which pictures count as loud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.faces import found_by, groups_of, moments, rendered
from shards.corpus.emotions import EMOTIONS
from shards.corpus.scene import SIDE
from tests.shards.media.make_media import make_video, sine


def test_heads_are_where_the_skin_is() -> None:
    """The cheeks beside the nose have the speaker's colour, which the picture's corners have not."""
    clips = rendered(3, 1)
    assert len(clips) == 3 * len(EMOTIONS)
    apart = []
    for clip in clips:
        (x, y, half), skin = clip.head[0], np.array(clip.speaker.face.skin)
        tone = [clip.pictures[0][round(y + 0.2 * half), round(x + side * 0.35 * half)] for side in (-1, 1)]
        corner = clip.pictures[0][2, 2]
        near, far = (np.abs(c / np.mean(c) - skin / skin.mean()).max() for c in (np.mean(tone, axis=0), corner))
        apart.append(far - near)
        assert near < 0.3 and clip.faces.shape == (1, 224, 224, 3)

        def at(_: object, shift: float, x: float = x, y: float = y, half: float = half) -> np.ndarray:
            middle = np.array([x + shift * half, y]) / SIDE
            return np.concatenate([middle - 0.1, middle + 0.1])[None]

        assert found_by(lambda p: at(p, 0.3), clip).all() and not found_by(lambda p: at(p, 1.2), clip).any()
        assert not found_by(lambda p: np.empty((0, 4)), clip).any()
    assert np.mean(apart) > 0
    members = groups_of(clips)
    assert members["all"].all() and (members["beard"] != members["no beard"]).all()
    skins = np.stack([members[f"{name} skin"] for name in ("light", "medium", "dark")])
    assert (skins.sum(axis=0) == 1).all()


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])  # samples that are packed and samples in planes
def test_loud_is_what_the_sound_says_at_the_pictures_time(tmp_path: Path, codec: str) -> None:
    """Silence and then a tone in one of two channels: the pictures of the second half are the loud ones."""
    sound = np.concatenate([np.zeros((2, 44_100), np.float32), sine(1, 44_100, 2)], axis=1)
    path = make_video(tmp_path / "a.mkv", 50, sound=sound, sound_codec=codec)
    found = moments(path, lambda _: np.array([[0.6, 0.6, 0.95, 0.95]]))
    assert found.faces.shape == (10, 224, 224, 3)
    assert found.loud.tolist() == [False] * 5 + [True] * 5
    assert found.faces[3].max() < 120, "the square is around the box, far from the bright quarter"


def test_clips_without_sound_or_faces_are_named(tmp_path: Path) -> None:
    silent = make_video(tmp_path / "silent.mp4", 10)
    with pytest.raises(ValueError, match=r"silent\.mp4: no sound"):
        moments(silent, lambda _: np.array([[0.6, 0.6, 0.95, 0.95]]))
    heard = make_video(tmp_path / "heard.mp4", 10, sound=sine(0.4, 44_100, 1))
    with pytest.raises(ValueError, match=r"heard\.mp4: no face found"):
        moments(heard, lambda _: np.empty((0, 4)))
