"""The published code's feature folders, clean and augmented, through to packed shards."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from shards import Manifest, Reader
from shards.__main__ import main as shards_main
from shards.adapters.author_features import COLUMNS, main


@pytest.mark.parametrize("version", [None, "aug3"])
def test_linked_and_packed(version: str | None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    stored = {}
    for name, (column, width) in COLUMNS.items():
        for split, key in (("train", "dia0_utt0"), ("train", "dia1_utt0"), ("test", "dia2_utt0")):
            if (column, key) == ("text", "dia1_utt0"):
                continue
            folder = tmp_path / "features" / (name if version is None else f"{name}_aug/{version}") / split
            folder.mkdir(parents=True, exist_ok=True)
            stored[column, key] = rng.normal(size=width).astype(np.float32)
            np.save(folder / f"{key}.npy", stored[column, key])
    arguments = [str(tmp_path / "features"), "--out", str(tmp_path / "linked")]
    assert main(arguments + ([] if version is None else ["--version", version])) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].replace("SHARDS", str(tmp_path / "shards")))
    assert command[:2] == ["conclugen", "pack"]
    assert shards_main([*command[1:], "--quiet", "--shuffle-seed", "none"]) == 0
    manifest = Manifest.open(tmp_path / "shards")
    reader = Reader(manifest)
    rows, keys = reader.read(0, 0, 3), reader.metadata(0)["key"].to_pylist()
    assert manifest.modalities["video"] == ("video_2d", "video_3d")
    for row, key in enumerate(keys):
        video = np.concatenate([stored["video_2d", key], stored["video_3d", key]])
        assert np.array_equal(rows.features["video"][row], video)
        assert rows.present["text"][row] == (("text", key) in stored)
    assert main(arguments) == 2


def test_links_are_all_there_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a start that was stopped left some of them, and the same command was refused: not empty."""
    folder = tmp_path / "features" / "texts_cropped" / "train"
    folder.mkdir(parents=True)
    for number in range(6):
        np.save(folder / f"{number}.npy", np.zeros(3, np.float32))
    arguments = [str(tmp_path / "features"), "--out", str(tmp_path / "linked")]
    link, made = Path.symlink_to, []

    def stopped(path: Path, target: Path) -> None:
        made.append(path)
        if len(made) == 4:
            raise KeyboardInterrupt
        link(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "symlink_to", stopped)
        assert main(arguments) == 130
    assert not (tmp_path / "linked").exists()
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"features", "linked"}
    assert len(list((tmp_path / "linked/text/train").iterdir())) == 6


def test_no_such_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--version", "aug1"]) == 2
    assert "texts_cropped_aug/aug1" in capsys.readouterr().err
