"""Nearest names, names of files, and durations."""

import math
import random
from pathlib import Path

import pytest

from conclugen.common.names import closest, did_you_mean, file_name, nearest
from conclugen.common.screen import clock


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


def test_file_names_are_no_paths_and_one_for_each_text(tmp_path: Path) -> None:
    """Texts that some rule would make equal, and its results, given as texts again; each name can be written."""
    rng = random.Random(0)
    texts = {"".join(rng.choices("ab./\\ $-é\u0301#\0\n", k=rng.randrange(6))) for _ in range(1500)}
    texts |= {"..", ".", "", "a/../b", "/etc/passwd", "x" * 80, "x" * 81, "x" * 300, "-rf", "con", "é", "e\u0301"}
    texts |= {file_name(text) for text in texts}
    named = {text: file_name(text) for text in texts}
    assert len(set(named.values())) == len(texts) > 1500
    for text in sorted(texts)[:50]:
        (tmp_path / named[text]).write_text(text)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == sorted(texts)[:50]
    assert all(len(name) <= 91 and Path(name).name == name and name[0] not in ".-" for name in named.values())
    assert file_name("faces_v2.1+x=3") == "faces_v2.1+x=3"
