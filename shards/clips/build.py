"""Builds one clip shard: every clip of the task ends in the shard or, by name and with the reason, in quarantine."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from conclugen.common.atomic import write_json
from shards.adapters.clip_set import Clip
from shards.adapters.files import shown
from shards.clips.plan import CLOCKS, OWNERSHIP, REPORTS, ShardTask
from shards.clips.writer import NewClip, write_clip_shard
from shards.format.index import INDEX_SUFFIX
from shards.format.manifest import TAR_SUFFIX
from shards.media.audio import read_audio
from shards.media.face_track import RULE
from shards.media.isolated import IsolatedPreparer
from shards.media.limits import MediaError
from shards.media.prepare import Prepared, Request, prepare
from shards.transcripts.recogniser import Recogniser, Transcript, create_recogniser

_LEAST_HOLE = 0.04  # seconds: a picture's length
_LONG_STAY = 0.25  # seconds: longer than any camera holds a picture


@dataclass
class ShardReport:
    """The outcome of a task's clips: clips_in = written + len(quarantined). content: digest of what the shard holds;
    counts: clips by what they have."""

    shard: str
    digest: str
    clips_in: int
    written: int = 0
    bytes: int = 0
    content: str = ""
    seconds: float = 0.0
    quarantined: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.written + len(self.quarantined)


def report_path(task: ShardTask) -> Path:
    return Path(task.out) / REPORTS / f"{task.name}.json"


def load_report(task: ShardTask) -> ShardReport | None:
    """The report of a finished shard of this very plan whose files are there; None where it must be built."""
    try:
        report = ShardReport(**json.loads(report_path(task).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    if report.digest != task.digest or not report.done == report.clips_in == len(task.clips):
        return None
    tar = Path(task.out) / f"{task.name}{TAR_SUFFIX}"
    index = Path(task.out) / f"{task.name}{INDEX_SUFFIX}"
    there = tar.is_file() and index.is_file() and tar.stat().st_size == report.bytes
    return report if there or not report.written else None


def build_shard(
    task: ShardTask, progress: Callable[[ShardReport], None] = lambda report: None, isolated: bool = True
) -> ShardReport:
    """Write the task's shard, its index and, last, its report. `progress` is called after every clip.

    isolated: whether clips are prepared in a process that can be killed (else in this one, which a hostile file may
    hang or crash). Raises ValueError for a recogniser that is not available, OSError where nothing can be written, and
    OwnershipLostError where the folder has become another build's.
    """
    began = time.monotonic()
    report = ShardReport(task.name, task.digest, len(task.clips))
    counts: Counter[str] = Counter()
    recogniser = _recogniser(
        task.options.recogniser, task.options.speech_model, task.options.grammar, task.options.device
    )
    with _preparer(task, isolated) as preparer:

        def clips() -> Iterator[NewClip]:
            for clip in task.clips:
                try:
                    ready = _new_clip(task, clip, preparer, recogniser)
                except MediaError as error:
                    report.quarantined.append(
                        {"key": clip.key, "source": shown(clip.video), "reason": error.reason, "message": str(error)}
                    )
                else:
                    report.written += 1
                    counts.update(_features(ready))
                    yield ready
                progress(report)
            OWNERSHIP.check(Path(task.out), task.digest)  # before the shard gets its name

        entry = write_clip_shard(task.out, task.name, task.schema, clips())
    if entry is not None:
        report.bytes, report.content = entry.bytes, entry.digest.hex()
    report.counts = dict(counts)
    report.seconds = round(time.monotonic() - began, 3)
    OWNERSHIP.check(Path(task.out), task.digest)
    write_json(report_path(task), asdict(report), indent=1, sort_keys=False)
    return report


@contextmanager
def _preparer(task: ShardTask, isolated: bool) -> Iterator[Callable[[Request], Prepared]]:
    if not isolated:
        yield prepare
        return
    with IsolatedPreparer(task.options.timeout, task.options.memory, Path(task.out) / CLOCKS) as child:
        yield child.prepare


@lru_cache(maxsize=1)
def _recogniser(backend: str | None, model: str | None, grammar: str | None, device: str) -> Recogniser | None:
    """One for each process: loading takes seconds."""
    return None if backend is None else create_recogniser(backend, model, grammar, device)


def _new_clip(
    task: ShardTask, clip: Clip, preparer: Callable[[Request], Prepared], recogniser: Recogniser | None
) -> NewClip:
    options, source = task.options, Path(task.source)
    _check_labels(task, clip)
    prepared = preparer(
        Request(
            str(source / clip.video),
            None if clip.audio is None else str(source / clip.audio),
            clip.start,
            clip.end,
            options.audio_rate,
            options.sound,
            options.faces != "off",
            options.limits,
            options.audio_length,
            face_finder=options.face_finder,
            face_weights=options.face_weights,
        )
    )
    face = prepared.details["face"]
    if options.faces == "drop" and face is None:
        raise MediaError("no_face", "no face was found")
    spoken = _transcript(clip, prepared, recogniser)
    text = spoken.text if spoken is not None else None
    interval = None if clip.start is None else [clip.start, clip.end]
    details = {
        **prepared.details,
        "source": {"video": clip.video, "audio": clip.audio, "interval": interval},
        "transcript": None if spoken is None else spoken.to_dict(),
    }
    meta = {
        **clip.meta,
        "split": clip.split,
        "source": clip.video,
        "transcript": None if spoken is None or text is None else spoken.source,
        "transcript_confidence": None if spoken is None or text is None else _level(spoken),
        "face": None if options.faces == "off" else "yes" if face is not None else "no",
        "seconds": f"{prepared.details['video']['seconds']:.3f}",
    }
    return NewClip(clip.key, prepared.video, prepared.sound, text, clip.labels, clip.group, meta, details)


def _level(transcript: Transcript) -> str:
    return "low" if transcript.low_confidence else "high"


def _check_labels(task: ShardTask, clip: Clip) -> None:
    for label in task.schema.labels:
        try:
            label.encode(clip.labels.get(label.name))
        except (ValueError, TypeError) as error:
            raise MediaError("bad_label", str(error)) from None


def _transcript(clip: Clip, prepared: Prepared, recogniser: Recogniser | None) -> Transcript | None:
    """The set's own, else what the recogniser hears, else None."""
    if clip.transcript is not None and clip.transcript.strip():
        return Transcript(clip.transcript.strip(), "own")
    if recogniser is None or prepared.sound is None:
        return None
    sound = read_audio(prepared.sound)
    return None if sound is None or not len(sound.samples) else recogniser(sound.samples)


def _features(clip: NewClip) -> list[str]:
    """Names under which a written clip is counted; a clip may have several."""
    video, audio, taken = clip.details["video"], clip.details["audio"], clip.details["taken"]
    names = [
        "copied" if video["copied"] else "encoded again",
        "with sound" if clip.sound is not None else "without sound",
    ]
    told = {
        "sound padded with silence to the picture's end": audio and audio["padded"],
        "sound cut at the picture's end": audio and audio["cut"],
        "picture cut at the sound's end": taken["picture_cut"],
        "holes in the sound filled with silence": audio and audio["holes"] > _LEAST_HOLE,
        "overlaps in the sound cut": audio and audio["overlaps"] > _LEAST_HOLE,
        f"a picture that stays for more than {_LONG_STAY:g} s": video["longest_stay"] > _LONG_STAY,
        "deinterlaced": taken["deinterlaced"],
        "one of several sound tracks taken": taken["audio"] and taken["audio"]["of"] > 1,
        "one of several picture tracks taken": taken["video"]["of"] > 1,
    }
    names += [name for name, holds in told.items() if holds]
    if clip.meta["face"] is not None:
        names += _faces(clip.details["face"])
    if clip.text is None:
        names.append("without transcript")
    elif clip.meta["transcript"] == "own":
        names.append("transcript of the set")
    else:
        level = " (low confidence)" if clip.meta["transcript_confidence"] == "low" else ""
        names.append(f"transcript by {clip.meta['transcript']}{level}")
    return names


def _faces(face: Mapping[str, Any] | None) -> list[str]:
    if face is None:
        return ["no face, whole frames"]
    names = ["with a face"]
    if face["cuts"]:
        names.append("of several shots (faces are tracked within each)")
    if face["others"]:
        names.append(f"with further faces ({RULE})")
    if face["seen"] < 1:
        names.append("with pictures in which the face was not found")
    return names
