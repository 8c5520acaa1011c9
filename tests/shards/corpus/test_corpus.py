"""The rendered corpus: deterministic, decodable, labelled right; emotion moves face and voice; speakers differ.

What a clip shows and sounds like is measured on its pixels and samples, not on what the renderer meant to draw.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conclugen.common.atomic import hidden_beside
from shards.adapters import read_clips
from shards.corpus.__main__ import main
from shards.corpus.acting import FPS, Acting, act
from shards.corpus.emotions import ACTION_UNITS, EMOTIONS
from shards.corpus.face import Placing, draw_face
from shards.corpus.recording import write_mp4
from shards.corpus.sentences import syllables
from shards.corpus.speaker import Face, Speaker, draw_speaker
from shards.corpus.voice import RATE, synthesise
from shards.corpus.writing import ClipPlan, ClipRow, CorpusConfig, render, write_clip, write_corpus
from shards.media.audio import read_audio
from shards.media.faces import FaceFinder
from shards.media.frames import read_frames
from shards.packing.labels import LabelSpec

WHOLE = CorpusConfig(speakers=3, takes=1, silent=0, without_transcript=0, without_valence=0)
SIDE = 240


def plan(emotion: str, speaker: int = 0, take: int = 0, seed: int = 0) -> ClipPlan:
    return ClipPlan(replace(WHOLE, seed=seed), speaker, emotion, take)


def drawn(face: Face, units: dict[str, float] | None = None, opening: float = 0.0) -> np.ndarray:
    """The face alone, upright, large, on white."""
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    strengths = dict.fromkeys(ACTION_UNITS, 0.0) | (units or {})
    draw_face(picture, face, Placing((SIDE / 2, SIDE * 0.45), SIDE * 0.36, 0.0, 0.0), strengths, opening, 0.0, 0.0, 0.0)
    return picture


def plain_face(number: int = 3) -> Face:
    face = draw_speaker(np.random.default_rng(number), "x").face
    # Blue lips, green brows: parts that are found by their colour.
    return replace(
        face,
        skin=(230.0, 190.0, 160.0),
        glasses=False,
        beard=False,
        hairstyle="bald",
        lip=(0.0, 0.0, 255.0),
        hair=(0.0, 255.0, 0.0),
        rest={},
    )


def places(picture: np.ndarray, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the pixels where one channel outshines the others by far."""
    others = [c for c in range(3) if c != channel]
    value = picture.astype(int)
    y, x = np.nonzero(value[..., channel] > value[..., others].max(axis=-1) + 60)
    return x, y


def corner_lift(picture: np.ndarray) -> float:
    """How much higher the ends of the lips lie than their middle, in pixels."""
    x, y = places(picture, 2)
    left, right = x.min(), x.max()
    ends = np.concatenate([y[x <= left + 3], y[x >= right - 3]]).mean()
    return float(y[np.abs(x - (left + right) / 2) < 4].mean() - ends)


def brow_heights(picture: np.ndarray) -> tuple[float, float]:
    """(inner, outer) places of the brows' ends, y down."""
    x, y = places(picture, 1)
    aside = np.abs(x - SIDE / 2)
    return float(y[aside < aside.min() + 6].mean()), float(y[aside > aside.max() - 6].mean())


def pitch_of(samples: np.ndarray) -> float:
    """Median fundamental in Hz over loud 50 ms windows, by the plain autocorrelation."""
    size, found = RATE // 20, []
    windows = [samples[start : start + size] for start in range(0, len(samples) - size, size // 2)]
    loud = np.quantile([(w**2).mean() for w in windows], 0.6)
    for window in windows:
        if (window**2).mean() < loud:
            continue
        w = window - window.mean()
        correlation = np.correlate(w, w, "full")[size - 1 :] / (np.arange(size, 0, -1))
        low, high = RATE // 500, RATE // 65
        best = correlation[low:high].max()
        lag = low + int(np.argmax(correlation[low:high] > 0.85 * best))
        while correlation[lag + 1] > correlation[lag]:
            lag += 1
        found.append(RATE / lag)
    return float(np.median(found))


# ---- the same seed, the same corpus -------------------------------------------------------------------------------


def test_same_plan_same_clip_and_every_part_of_it_counts(tmp_path: Path) -> None:
    first, again = render(plan("happy")), render(plan("happy"))
    assert np.array_equal(first.pictures, again.pictures)
    assert first.samples is not None and again.samples is not None and np.array_equal(first.samples, again.samples)
    assert first.row == again.row
    for other in (plan("happy", take=1), plan("happy", speaker=1), plan("happy", seed=1), plan("sad")):
        clip = render(other)
        same = clip.pictures.shape == first.pictures.shape and np.array_equal(clip.pictures, first.pictures)
        assert not same
    for folder in ("a", "b"):
        write_clip(tmp_path / folder, plan("happy"))
    files = [(tmp_path / folder / plan("happy").path).read_bytes() for folder in ("a", "b")]
    assert files[0] == files[1]


def test_a_corpus_is_the_same_in_any_order(tmp_path: Path) -> None:
    config = CorpusConfig(speakers=1, takes=1, seed=4)

    def backwards(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
        for item in reversed(plans):
            yield write_clip(folder, item)

    write_corpus(tmp_path / "one", config)
    write_corpus(tmp_path / "two", config, backwards)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == len(EMOTIONS) + 3
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


# ---- real files ---------------------------------------------------------------------------------------------------


def test_files_decode_to_what_was_rendered(tmp_path: Path) -> None:
    clip = render(plan("surprised"))
    path = tmp_path / "clip.mp4"
    write_mp4(path, clip.pictures, FPS, clip.samples, RATE)
    frames = read_frames(path, [FPS])[FPS]
    assert frames.pixels.shape == clip.pictures.shape
    np.testing.assert_allclose(np.diff(frames.times), 1 / FPS, atol=1e-3)
    error = frames.pixels.astype(float) - clip.pictures
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30  # dB
    sound = read_audio(path)
    assert sound is not None and clip.samples is not None and sound.rate == RATE
    assert abs(sound.seconds - len(clip.samples) / RATE) < 0.1
    count = min(len(sound.samples), len(clip.samples))
    assert np.corrcoef(sound.samples[:count], clip.samples[:count])[0, 1] > 0.95  # and none of it is late


def test_silent_clips_have_no_sound_track(tmp_path: Path) -> None:
    silent = ClipPlan(replace(WHOLE, silent=0.999), 0, "angry", 0)
    row = write_clip(tmp_path, silent)
    assert render(silent).samples is None
    assert read_audio(tmp_path / row.path) is None
    assert len(read_frames(tmp_path / row.path, [1])[1]) >= 2


def test_faces_are_found_by_the_detector() -> None:
    """Not of all speakers: the default detector misses a few dark or bearded faces (see the model card)."""
    found = []
    for speaker in range(8):
        pictures = render(plan("neutral", speaker)).pictures
        finder = FaceFinder()
        found.append(np.mean([len(finder(pictures[i])) > 0 for i in (3, 9, 15, 21)]))
    assert np.mean(found) > 0.7


# ---- labels -------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_folder_adapter_reads(tmp_path: Path) -> None:
    config = CorpusConfig(speakers=2, takes=2, seed=2, silent=0, without_transcript=0.3, without_valence=0.3)

    def empty_files(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
        for item in plans:
            path = folder / item.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"-")
            yield render(item).row

    rows = write_corpus(tmp_path / "c", config, empty_files)
    labels = (
        LabelSpec("emotion", ("emotion",), "class", tuple(EMOTIONS)),
        LabelSpec("valence", ("valence",), "continuous"),
    )
    clips = read_clips(
        "folder",
        tmp_path / "c",
        table=tmp_path / "c/clips.csv",
        fields={"group": "speaker", "text": "transcript"},
        labels=labels,
    )
    assert len(clips.clips) == 24 and clips.complete and not clips.rejected
    by_path = {row.path: row for row in rows}
    for clip in clips.clips:
        row = by_path[clip.video]
        assert (clip.group, clip.transcript) == (row.speaker, row.transcript)
        assert list(EMOTIONS)[clip.labels["emotion"]] == row.emotion == Path(clip.video).name.split("-")[0]
        value = clip.labels["valence"]
        assert (value is None or np.isnan(value)) if row.valence is None else np.isclose(float(value), row.valence)
    assert {row.emotion for row in rows} == set(EMOTIONS)
    for name in ("transcript", "valence"):
        assert 0 < sum(getattr(row, name) is None for row in rows) < 24
    said = json.loads((tmp_path / "c/corpus.json").read_text())
    assert (said["clips"], said["seed"], said["speakers"]) == (24, 2, 2)
    means = {
        name: np.mean([r.valence for r in rows if r.emotion == name and r.valence is not None]) for name in EMOTIONS
    }
    assert means["happy"] > 0.3 > -0.2 > means["angry"]


def test_sentences_have_their_syllables() -> None:
    assert [s.vowel for s in syllables("leave the old piano alone")] == ["e", "e", "o", "i", "o", "a", "o"]
    assert [s.consonant for s in syllables("stop my coat")] == ["st", "m", "c"]
    with pytest.raises(ValueError, match="no syllable"):
        syllables("1234 ...")


# ---- what the emotion does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_emotions_move_the_parts_of_the_face(number: int) -> None:
    face = plain_face(number)
    rest = drawn(face)
    acted = {name: drawn(face, dict(emotion.face)) for name, emotion in EMOTIONS.items()}
    assert corner_lift(acted["happy"]) > corner_lift(rest) + 6
    assert corner_lift(acted["sad"]) < corner_lift(rest) - 6
    inner, outer = brow_heights(rest)
    angry, sad, surprised = (brow_heights(acted[name]) for name in ("angry", "sad", "surprised"))
    assert angry[0] > inner + 4  # lowered within
    assert sad[0] < inner - 2 and sad[0] - sad[1] < inner - outer - 2  # raised within, oblique
    assert surprised[0] < inner - 4 and surprised[1] < outer - 4  # raised as a whole
    assert whites(acted["surprised"]) > 1.2 * whites(rest)


def whites(picture: np.ndarray) -> int:
    """Pixels of the white of the eyes: nearly white, above the mouth, within the head."""
    part = picture[int(SIDE * 0.30) : int(SIDE * 0.52), int(SIDE * 0.28) : int(SIDE * 0.72)].astype(int)
    return int(((part.min(axis=-1) > 215) & (part.max(axis=-1) < 250)).sum())


def test_speech_opens_the_mouth_and_is_heard_at_that_time() -> None:
    face = plain_face()

    def dark(opening: float) -> int:
        picture = drawn(face, opening=opening).astype(int)
        return int((np.abs(picture - (52, 16, 20)).max(axis=-1) < 12).sum())

    assert dark(1.0) > dark(0.5) > dark(0.0)
    correlations = []
    for number in range(4):
        acting, speaker = played(number, "neutral")
        voice = synthesise(np.random.default_rng(0), acting.speech, speaker.voice, round(acting.seconds * RATE))
        blocks = voice[: len(acting.times) * (RATE // FPS)].reshape(len(acting.times), -1)
        correlations.append(np.corrcoef(np.sqrt((blocks**2).mean(axis=1)), acting.opening)[0, 1])
    assert np.mean(correlations) > 0.4


def played(number: int, emotion: str) -> tuple[Acting, Speaker]:
    speaker = draw_speaker(np.random.default_rng([7, number]), "x")
    return act(np.random.default_rng([8, number]), speaker, emotion, "they moved the old piano on Monday"), speaker


def test_emotion_swells_up_and_dies_down() -> None:
    for number in range(5):
        acting, _ = played(number, "happy")
        assert acting.course[0] < 0.3 < 0.95 < acting.course.max()
        smile = acting.units["lip_corner_puller"]
        assert smile[np.argmax(acting.course)] > smile[0]
    ends = [played(number, "happy")[0].course for number in range(10)]
    assert np.mean([course[-1] < course.max() - 0.1 for course in ends]) > 0.3  # some clips end before the emotion does
    strengths = [played(number, "happy")[0].intensity for number in range(10)]
    assert max(strengths) > 1.5 * min(strengths)


def test_emotion_is_heard_in_pitch_level_and_rate() -> None:
    """Angry against sad, the same sentence by the same speaker, measured on the samples."""
    pitch, level, length = [], [], []
    for number in range(5):
        measured = []
        for emotion in ("angry", "sad"):
            acting, speaker = played(number, emotion)
            voice = synthesise(np.random.default_rng(0), acting.speech, speaker.voice, round(acting.seconds * RATE))
            measured.append((pitch_of(voice), np.sqrt((voice**2).mean()), acting.seconds))
        (angry, sad) = measured
        pitch.append(np.log2(angry[0] / sad[0]))
        level.append(20 * np.log10(angry[1] / sad[1]))
        length.append(angry[2] / sad[2])
    assert np.mean(pitch) > 0.2 and np.mean(level) > 5 and np.mean(length) < 0.95
    assert min(pitch) > 0  # the draws of both are the same but for the emotion


def test_the_pitch_is_the_speakers_own() -> None:
    """The measure used above finds the pitch that was asked for; speakers' voices lie far apart."""
    found, asked = [], []
    for number in range(8):
        acting, speaker = played(number, "neutral")
        voice = synthesise(np.random.default_rng(0), acting.speech, speaker.voice, round(acting.seconds * RATE))
        found.append(pitch_of(voice))
        asked.append(np.median(acting.speech.pitch[acting.speech.voicing > 0.5]))
    np.testing.assert_allclose(np.log2(found), np.log2(asked), atol=0.15)
    assert max(found) > 1.4 * min(found)


def test_speakers_stay_themselves_and_differ() -> None:
    """Colour of the face (middle of the picture): less spread over a speaker's clips than over speakers."""

    def colour(speaker: int, take: int) -> np.ndarray:
        picture = render(plan("neutral", speaker, take)).pictures[0]
        patch = picture[66:84, 70:90].reshape(-1, 3).astype(float).mean(axis=0)
        return patch / patch.sum()  # light makes it brighter, not browner

    seen = np.array([[colour(speaker, take) for take in range(2)] for speaker in range(5)])
    within = np.abs(seen[:, 0] - seen[:, 1]).mean()
    between = np.mean([np.abs(seen[i].mean(0) - seen[j].mean(0)).mean() for i in range(5) for j in range(i)])
    assert between > within
    names = {render(plan("neutral", speaker)).row.speaker for speaker in range(2)}
    assert names == {"speaker-000", "speaker-001"}


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speakers": 0}, "speakers is 0, expected 1 to 1000"),
        ({"takes": 1001}, "takes is 1001"),
        ({"seed": -1}, "seed is -1"),
        ({"silent": 1.0}, "silent is 1.0, expected a share"),
        ({"without_transcript": float("nan")}, "without_transcript is nan"),
    ],
)
def test_bad_numbers_are_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**values)


def test_folders_that_hold_something_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("mine")
    small = ["--speakers", "1", "--takes", "1", "--processes", "1"]
    assert main([str(tmp_path / "precious"), *small, "--overwrite"]) == 2
    assert "is not empty and has no corpus in it" in capsys.readouterr().err
    assert (tmp_path / "precious/thesis.txt").read_text() == "mine"
    assert main([str(tmp_path / "precious/thesis.txt"), *small]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main([str(tmp_path / "new"), "--speakers", "0"]) == 2
    assert "speakers is 0" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main([str(tmp_path / "new"), *small]) == 0
    assert "6 clips of 1 speakers" in capsys.readouterr().out
    assert main([str(tmp_path / "new"), *small]) == 2
    assert "--overwrite" in capsys.readouterr().err


def full_disk(folder: Path, plan: ClipPlan) -> ClipRow:
    """In place of `write_clip`, also in other processes."""
    if plan.path == CorpusConfig(20, 5).clips[0].path:
        raise OSError(28, "No space left on device")
    time.sleep(0.02)
    (folder / f"{plan.path.replace('/', '-')}.tried").touch()
    return ClipRow(plan.path, plan.speaker_name, plan.emotion, None, None)


def test_an_error_does_not_wait_for_the_whole_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.corpus.processes.write_clip", full_disk)
    assert main([str(tmp_path / "c"), "--speakers", "20", "--takes", "5", "--processes", "2"]) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert len(list((tmp_path / "c").glob("*.tried"))) < len(CorpusConfig(20, 5).clips) / 2


def test_a_lost_clip_is_no_corpus(tmp_path: Path) -> None:
    def forgetful(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
        for item in plans[1:]:
            yield ClipRow(item.path, item.speaker_name, item.emotion, None, None)

    with pytest.raises(RuntimeError, match="18 clips were planned, 17 of them"):
        write_corpus(tmp_path / "c", WHOLE, forgetful)
    assert not (tmp_path / "c/corpus.json").exists()
    with pytest.raises(ValueError, match="a corpus that was not finished; write it again with --overwrite"):
        write_corpus(tmp_path / "c", WHOLE)
    for name in ("corpus.json", "clips.csv", ".conclugen-corpus"):  # as a kill leaves them
        hidden_beside(tmp_path / "c" / name).write_text("half")
    assert len(write_corpus(tmp_path / "c", replace(WHOLE, speakers=1), overwrite=True)) == len(EMOTIONS)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        ".conclugen-corpus",
        "clips",
        "clips.csv",
        "corpus.json",
    }


def test_pictures_that_cannot_be_encoded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sizes"):
        write_mp4(tmp_path / "x.mp4", np.zeros((3, 31, 32, 3), np.uint8), FPS, None, RATE)
    with pytest.raises(ValueError, match="expected"):
        write_mp4(tmp_path / "x.mp4", np.zeros((3, 32, 32), np.uint8), FPS, None, RATE)
    assert not list(tmp_path.iterdir())
