"""Nearest names and durations."""

import math

import pytest

from conclugen.common.durations import clock
from conclugen.common.names import closest, did_you_mean, nearest


def test_the_nearest_name() -> None:
    assert closest("vidoe", ["video", "audio"]) == "video"
    assert closest("EMOTION", ["emotion", "Speaker"]) == "emotion"
    assert closest("speeker", ["emotion", "Speaker"]) == "Speaker"
    assert closest("zzz", ["video"]) is None and closest("x", []) is None
    assert closest(7, [8, 77]) == "77"


def test_words_about_an_unknown_name() -> None:
    assert nearest("vidoe", ["video"]) == " (did you mean 'video'?)"
    assert nearest("zzz", ["video"]) == ""
    assert did_you_mean("vidoe", ["video", "audio"]) == "allowed: video, audio; did you mean 'video'?"
    assert did_you_mean("x", []) == "allowed: none"
    many = did_you_mean("n24", (f"n{i}" for i in range(25)))
    assert many.startswith("allowed: n0, n1, ") and many.endswith("n19 and 5 more; did you mean 'n24'?")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "00:00:00"),
        (59.6, "00:01:00"),
        (2460, "00:41:00"),
        (360_000.4, "100:00:00"),
        (math.inf, "--:--:--"),
        (math.nan, "--:--:--"),
        (-1, "--:--:--"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert clock(seconds) == words
