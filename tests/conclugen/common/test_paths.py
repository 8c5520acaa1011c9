"""Paths that users give."""

from __future__ import annotations

from pathlib import Path

import pytest

from conclugen.common import paths


def test_a_path_holds_in_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert paths.absolute("a/b", "output") == tmp_path / "a/b"
    assert paths.absolute(Path(), "output") == tmp_path
    assert paths.absolute("~/a", "output") == tmp_path / "home/a"
    assert paths.absolute("a/~nobody-here", "output") == tmp_path / "a/~nobody-here"
    assert paths.absolute("/a", "output") == Path("/a")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "output: must name a file or folder, got ''"),
        ("a\0b", r"output: must name a file or folder, got 'a\\x00b'"),
        ("~nobody-here", "output: '~nobody-here': there is no home folder ~nobody-here; write the whole path"),
        (Path("~nobody-here/a"), "output: '~nobody-here/a': there is no home folder ~nobody-here; write the whole"),
    ],
)
def test_a_path_that_names_nothing(place: str | Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        paths.absolute(place, "output")
    assert "\n" not in str(caught.value)
