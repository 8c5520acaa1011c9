"""A seed gives the corpus that it gave before, in numbers kept by hand: where they change, `VERSION` is raised."""

from __future__ import annotations

import numpy as np
import pytest

from shards.corpus.writing import VERSION, CorpusConfig, render

# Speaker/emotion: pictures, their mean colour and deviation; samples, their level and mean step; valence, apex.
RECORDED = {
    "speaker-000/angry": (33, [122.41, 111.1, 108.19], 49.01, 35200, 0.0409738934, 0.0078054005, -0.83, 6),
    "speaker-001/fearful": (33, [133.86, 140.27, 152.89], 63.08, 35200, 0.0211751034, 0.0050434678, -0.478, 4),
    "speaker-002/happy": (25, [193.42, 158.4, 145.71], 38.84, 26667, 0.0292200019, 0.0050857011, 0.491, 9),
    "speaker-003/neutral": (28, [182.99, 182.03, 172.78], 45.36, 29867, 0.0351853207, 0.0067535315, 0.052, 7),
    "speaker-004/sad": (35, [129.22, 90.28, 87.66], 62.82, 37333, 0.0145007725, 0.0021707035, -0.396, 10),
    "speaker-005/surprised": (32, [139.65, 133.69, 100.18], 51.38, 34133, 0.0231014254, 0.0034319094, 0.114, 8),
}


def test_clips_of_a_seed_are_those_of_this_version() -> None:
    plans = CorpusConfig(speakers=6, takes=1, seed=3, silent=0, without_transcript=0, without_valence=0).clips[::7]
    found = {}
    for plan in plans:
        clip = render(plan)
        assert clip.samples is not None
        pixels, samples = clip.pictures.astype(np.float64), clip.samples.astype(np.float64)
        name = plan.path.removeprefix("clips/").removesuffix("-000.mp4")
        # Another OpenCV may draw an edge otherwise: a tenth of a grey level. Sound is arithmetic.
        found[name] = (
            len(pixels),
            pytest.approx(pixels.mean((0, 1, 2)).tolist(), abs=0.1),
            pytest.approx(pixels.std(), abs=0.1),
            len(samples),
            pytest.approx(np.sqrt((samples**2).mean()), abs=1e-8),
            pytest.approx(np.abs(np.diff(samples)).mean(), abs=1e-8),
            clip.row.valence,
            clip.apex,
        )
    assert VERSION == 1 and found == RECORDED
