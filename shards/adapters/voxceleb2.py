"""VoxCeleb2 (Chung et al. 2018): pictures in mp4, sound beside it in m4a; no labels.

The archives of the part `dev` unzip as `dev/mp4` and `dev/aac`, those of the part `test` as `mp4` and `aac` without a
folder of their own; people put both below folders of names such as `vox2_test_mp4`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files, file_named
from shards.names import decode_text

# Of the part `dev`, what the method was published with; of the part `test`, all there is.
EXPECTED, EXPECTED_TEST = 549_984, 36_237
TEST_SPEAKERS = 118  # the part `dev` has 5,994
BIBTEX = """@inproceedings{chung2018voxceleb2,
  title = {{VoxCeleb2}: Deep Speaker Recognition},
  author = {Chung, Joon Son and Nagrani, Arsha and Zisserman, Andrew},
  booktitle = {Interspeech},
  pages = {1086--1090},
  year = {2018},
}"""
DEV, TEST = "dev", "test"
_SPEAKER = re.compile(r"id\d{5}")
_PART = re.compile(r"(?:vox(?:celeb)?2?[_-])?(dev|train|test)(?:[_-](?:mp4|aac|video|audio)s?)?", re.IGNORECASE)
_KINDS = {"mp4": ".mp4", "aac": ".m4a"}
_META = "vox2_meta.csv"
_DEPTH = 4


def read(source: Path) -> ClipSet:
    """Clips ID_VIDEO_NNNNN, grouped by speaker ID, split `dev` or `test`.

    A clip is there where it is both picture and sound; where a part has no folder `aac` at all, the pictures' own sound
    is taken. The part is what the official list `vox2_meta.csv` says of the speaker, where it is in `source`; else what
    a folder above `mp4` is named after; else `test`, for only its archives unzip without a folder, unless there are
    more speakers than the part has. Raises ValueError where there is no folder `mp4` of speakers.
    """
    roots = {kind: sorted(_folders(source, kind)) for kind in _KINDS}
    if not roots["mp4"]:
        raise ValueError(
            f"{source} has no folder mp4 with folders of speakers in it (dev/mp4/id00012, or mp4/id00017 of the test "
            "part); join and unzip the archives of VoxCeleb2 there"
        )
    listed = _parts_of_speakers(source)
    files = Files(source)
    videos: dict[tuple[str, ...], str] = {}
    sounds: dict[tuple[str, ...], str] = {}
    left_out: dict[str, str] = {}
    how: list[str] = []
    for kind, found in (("mp4", videos), ("aac", sounds)):
        for root in roots[kind]:
            inside = root.relative_to(source).as_posix()
            paths = files.find([_KINDS[kind]], inside)
            by_folder = _part_of_folder(source, root, paths, how)
            for path in paths:
                name = _name(path, inside)
                if name is None:
                    left_out[path] = "not ID/VIDEO/NNNNN"
                elif found.setdefault((listed.get(name[0], by_folder), *name), path) != path:
                    left_out[path] = "there twice"
    clips, counts = [], []
    for part in (DEV, TEST):
        pictures = {name for name in videos if name[0] == part}
        heard = {name for name in sounds if name[0] == part}
        if not pictures and not heard:
            continue
        if not heard:
            how.append(f"{part}: no folder aac, so the sound is that of the mp4 files")
        both = sorted(pictures & heard if heard else pictures)
        clips += [Clip("_".join(n[1:]), videos[n], sounds.get(n), group=n[1], split=part) for n in both]
        counts.append(Count(f"{part}: clips with picture and sound", _expected(part), len(both)))
        if heard:
            silent = [f"sound of {videos[name]}" for name in sorted(pictures - heard)]
            unseen = [f"picture of {sounds[name]}" for name in sorted(heard - pictures)]
            counts.append(Count(f"{part}: sound for each picture", len(pictures), len(both), silent))
            counts.append(Count(f"{part}: picture for each sound", len(heard), len(both), unseen))
    clips.sort(key=lambda clip: clip.key)
    return ClipSet("VoxCeleb2", source, (), clips, files.rejected, counts, left_out, how=how)


def _expected(part: str) -> int:
    return EXPECTED if part == DEV else EXPECTED_TEST


def _folders(folder: Path, name: str, depth: int = _DEPTH) -> Iterator[Path]:
    """Folders of that name at or below `folder` which hold speakers; nothing is looked for below speakers."""
    if folder.name == name and any(True for _ in _speakers(folder)):
        yield folder
        return
    if depth == 0:
        return
    for child in _below(folder):
        if not _SPEAKER.fullmatch(child.name):
            yield from _folders(child, name, depth - 1)


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []


def _speakers(folder: Path) -> Iterator[str]:
    return (child.name for child in _below(folder) if _SPEAKER.fullmatch(child.name))


def _part_of_folder(source: Path, root: Path, paths: list[str], how: list[str]) -> str:
    """The part of a folder of speakers: the nearest name above it says so (up to `source`), else their number."""
    for folder in root.parents:
        match = _PART.fullmatch(folder.name)
        if match is not None:
            return TEST if match[1].lower() == TEST else DEV
        if folder == source:
            break
    speakers = {part for path in paths for part in PurePosixPath(path).parts if _SPEAKER.fullmatch(part)}
    part = TEST if len(speakers) <= TEST_SPEAKERS else DEV
    shown = root.relative_to(source).as_posix()
    how.append(f"{shown} is taken for the part {part}: no folder above it says dev or test ({len(speakers)} speakers)")
    return part


def _parts_of_speakers(source: Path) -> dict[str, str]:
    """Speaker -> part, by the official list; nothing without it."""
    path = file_named(source, _META)
    if path is None:
        return {}
    parts = {}
    for line in decode_text(path.read_bytes())[0].splitlines():
        fields = [field.strip() for field in re.split(r"[,\t]", line)]
        if _SPEAKER.fullmatch(fields[0]) and fields[-1] in (DEV, TEST):
            parts[fields[0]] = fields[-1]
    return parts


def _name(path: str, inside: str) -> tuple[str, str, str] | None:
    """(ID, VIDEO, NNNNN) of a path, None where it has another form."""
    parts = PurePosixPath(path).relative_to(inside).parts
    return (parts[0], parts[1], PurePosixPath(path).stem) if len(parts) == 3 else None
