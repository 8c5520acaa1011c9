"""VoxCeleb2 (Chung et al. 2018), the part `dev`: pictures in mp4, sound beside it in m4a; no labels."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from shards.adapters.clip_set import Clip, ClipSet, Count
from shards.adapters.files import Files, folder_named

EXPECTED = 549_984


def read(source: Path) -> ClipSet:
    """Clips ID_VIDEO_NNNNN, grouped by speaker ID: those that are there both as picture and as sound.

    `source` holds `dev` or is it. Raises ValueError where there is no `mp4` folder.
    """
    root = source / "dev" if (source / "dev").is_dir() else source
    if not (root / "mp4").is_dir():
        root = (folder_named(source, "mp4") or source / "mp4").parent
    if not (root / "mp4").is_dir():
        raise ValueError(f"{source} has no folder dev/mp4, where VoxCeleb2 has its pictures")
    files = Files(root)
    pictures = files.find([".mp4"], "mp4")
    heard = files.find([".m4a"], "aac") if (root / "aac").is_dir() else []
    videos, sounds = ({_name(path): path for path in paths if _fits(path)} for paths in (pictures, heard))
    prefix = root.relative_to(source).as_posix()
    inside = "" if prefix == "." else f"{prefix}/"
    clips = [
        Clip("_".join(name), inside + videos[name], inside + sounds[name], group=name[0], split="dev")
        for name in sorted(videos)
        if name in sounds
    ]
    silent = [videos[name] for name in sorted(videos) if name not in sounds]
    unseen = [sounds[name] for name in sorted(sounds) if name not in videos]
    counts = [
        Count("clips with picture and sound", EXPECTED, len(clips)),
        Count("sound for each picture", len(videos), len(clips), [f"sound of {name}" for name in silent]),
        Count("picture for each sound", len(sounds), len(clips), [f"picture of {name}" for name in unseen]),
    ]
    left_out = {inside + path: "not ID/VIDEO/NNNNN" for path in (*pictures, *heard) if not _fits(path)}
    return ClipSet("VoxCeleb2", source, (), clips, files.rejected, counts, left_out)


def _fits(path: str) -> bool:
    """KIND/ID/VIDEO/NNNNN.SUFFIX"""
    return len(PurePosixPath(path).parts) == 4


def _name(path: str) -> tuple[str, str, str]:
    parts = PurePosixPath(path).parts
    return parts[1], parts[2], PurePosixPath(path).stem
