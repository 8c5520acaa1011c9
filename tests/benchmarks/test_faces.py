"""Where the rendered heads of `benchmarks.faces` are, and who is in which group."""

from __future__ import annotations

import numpy as np

from benchmarks.faces import found_by, groups_of, rendered
from shards.corpus.emotions import EMOTIONS
from shards.corpus.scene import SIDE


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
