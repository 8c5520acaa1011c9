"""Renders the corpus. A clip follows from the seed and its own place, so that clips can be made in any order."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from conclugen.common.atomic import remove_remnants_in, write_bytes, write_json, write_text
from conclugen.common.locks import folder_held
from shards.corpus import MARK
from shards.corpus.acting import FPS, act
from shards.corpus.emotions import EMOTIONS
from shards.corpus.recording import write_mp4
from shards.corpus.scene import draw_scene, film, record
from shards.corpus.sentences import draw_sentence
from shards.corpus.speaker import draw_speaker
from shards.corpus.voice import RATE, synthesise
from shards.media.libraries import cv2
from shards.output_folder import owned

VERSION = 1  # raise when the same seed gives another corpus
TABLE_NAME, DESCRIPTION_NAME, CLIPS_FOLDER = "clips.csv", "corpus.json", "clips"
_UNCERTAIN = 0.1  # deviation of the valence that was "annotated" from the acted one
_SHARES = ("silent", "without_transcript", "without_valence")


@dataclass(frozen=True)
class CorpusConfig:
    """A corpus of speakers x emotions x takes clips. silent, without_transcript, without_valence: shares of the clips
    that have no sound track, no transcript, no valence, as happens in real corpora."""

    speakers: int = 16
    takes: int = 4
    seed: int = 0
    silent: float = 0.03
    without_transcript: float = 0.04
    without_valence: float = 0.02

    def __post_init__(self) -> None:
        for name in ("speakers", "takes"):
            value = getattr(self, name)
            if not 1 <= value <= 1000:
                raise ValueError(f"{name} is {value}, expected 1 to 1000")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, expected a share of at least 0 and below 1")

    @property
    def clips(self) -> list[ClipPlan]:
        """All clips, speaker by speaker."""
        return [
            ClipPlan(self, speaker, emotion, take)
            for speaker in range(self.speakers)
            for emotion in EMOTIONS
            for take in range(self.takes)
        ]


@dataclass(frozen=True)
class ClipPlan:
    """One clip of a corpus: all that is needed to make it."""

    config: CorpusConfig
    speaker: int
    emotion: str
    take: int

    @property
    def speaker_name(self) -> str:
        return f"speaker-{self.speaker:03d}"

    @property
    def path(self) -> str:
        """Relative to the corpus's folder."""
        return f"{CLIPS_FOLDER}/{self.speaker_name}/{self.emotion}-{self.take:03d}.mp4"


@dataclass(frozen=True)
class ClipRow:
    """A row of the table. valence and transcript may be missing."""

    path: str
    speaker: str
    emotion: str
    valence: float | None
    transcript: str | None


@dataclass(frozen=True)
class RenderedClip:
    """pictures: (T, 160, 160, 3) uint8 RGB at 15 a second; samples: (N,) float32 at 16 kHz, or None; row: its labels;
    spoken: what is said, also where there is no transcript; intensity: of the emotion; apex: number of the picture that
    shows most of it."""

    pictures: np.ndarray
    samples: np.ndarray | None
    row: ClipRow
    spoken: str
    intensity: float
    apex: int


def render(plan: ClipPlan) -> RenderedClip:
    """Pictures, sound and labels of one clip: a pure function of its plan."""
    config = plan.config
    # Two streams: the speaker's own is the same for all of its clips.
    own = np.random.default_rng([config.seed, 1, plan.speaker])
    rng = np.random.default_rng([config.seed, 2, plan.speaker, list(EMOTIONS).index(plan.emotion), plan.take])
    speaker = draw_speaker(own, plan.speaker_name)
    sentence = draw_sentence(rng, plan.emotion)
    acting = act(rng, speaker, plan.emotion, sentence)
    scene = draw_scene(rng)
    silent, wordless, unrated = rng.random(3) < [getattr(config, name) for name in _SHARES]
    valence = float(np.clip(EMOTIONS[plan.emotion].valence * acting.intensity + rng.normal(0, _UNCERTAIN), -1, 1))
    pictures = film(rng, scene, speaker.face, acting)
    samples = None
    if not silent:
        count = round(acting.seconds * RATE)
        samples = record(rng, scene, synthesise(rng, acting.speech, speaker.voice, count))
    row = ClipRow(
        plan.path,
        plan.speaker_name,
        plan.emotion,
        None if unrated else round(valence, 3),
        None if wordless else sentence,
    )
    apex = int(np.argmax(acting.course * (1 - acting.eyes_closed)))
    return RenderedClip(pictures, samples, row, sentence, acting.intensity, apex)


def write_clip(folder: Path, plan: ClipPlan) -> ClipRow:
    """Render one clip and write its file."""
    # Small pictures: threads of OpenCV cost more than they gain, and processes share the cores already.
    cv2.setNumThreads(1)
    clip = render(plan)
    path = folder / plan.path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, clip.pictures, FPS, clip.samples, RATE)
    return clip.row


Writer = Callable[[Path, Sequence[ClipPlan]], Iterable[ClipRow]]


def one_by_one(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
    """Write clips in this process."""
    for plan in plans:
        yield write_clip(folder, plan)


def write_corpus(
    folder: Path, config: CorpusConfig | None = None, writer: Writer = one_by_one, overwrite: bool = False
) -> list[ClipRow]:
    """Write all clips, then `clips.csv` and, last, `corpus.json`; returns the table's rows.

    writer: writes the planned clips below the folder and gives each one's row, in any order: how a cluster or several
    processes take part. The same configuration gives the same bytes. Raises ValueError where the folder holds anything
    (unless it is a corpus, and `overwrite`) or another process renders there, and RuntimeError where the writer lost a
    clip.
    """
    config = config or CorpusConfig()
    folder = folder.absolute()
    with folder_held(folder, "a corpus is being rendered here", "another FOLDER"):
        _acquire(folder, overwrite)
        return _write(folder, config, writer)


def _write(folder: Path, config: CorpusConfig, writer: Writer) -> list[ClipRow]:
    plans = config.clips
    rows = sorted(writer(folder, plans), key=lambda row: row.path)
    if [row.path for row in rows] != sorted(plan.path for plan in plans):
        raise RuntimeError(f"{len(plans)} clips were planned, {len({row.path for row in rows})} of them were written")
    text = io.StringIO()
    table = csv.DictWriter(text, ["path", "speaker", "emotion", "valence", "transcript"], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    write_text(folder / TABLE_NAME, text.getvalue())
    said = {"corpus": "rendered talking faces", "version": VERSION, "clips": len(rows), **asdict(config)}
    write_json(folder / DESCRIPTION_NAME, said, indent=1, sort_keys=False)
    return rows


def _acquire(folder: Path, overwrite: bool) -> None:
    if owned(folder, MARK, "corpus"):
        if not overwrite:
            what = "a corpus already" if (folder / DESCRIPTION_NAME).is_file() else "a corpus that was not finished"
            raise ValueError(f"{folder} holds {what}; write it again with --overwrite, or name another folder")
        (folder / DESCRIPTION_NAME).unlink(missing_ok=True)
        (folder / TABLE_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder / CLIPS_FOLDER, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    remove_remnants_in(folder)
    write_bytes(folder / MARK, b"A rendered corpus (conclugen render), whole once corpus.json is there.\n")
