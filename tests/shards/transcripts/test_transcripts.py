"""Recognised speech: the error rate against a slow definition, pocketsphinx on GRID, a Whisper of random weights."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.word_error_rate import main, word_error_rate, word_errors, words
from shards.adapters.grid import sentence
from shards.clips.reader import ClipManifest, ClipSchema
from shards.clips.writer import NewClip, write_clip_shard
from shards.media.audio import read_audio
from shards.transcripts.recogniser import Transcript, create_recogniser


def slow_distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Levenshtein's recursion as it is defined."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))


_SENTENCES = st.lists(st.sampled_from(["a", "b", "c"]), max_size=8).map(tuple)


@settings(max_examples=200, deadline=None)
@given(_SENTENCES, _SENTENCES)
def test_word_errors_are_the_levenshtein_distance(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    assert word_errors(a, b) == slow_distance(a, b)


def test_word_error_rate() -> None:
    assert words("It\u2019s FINE, isn't it?") == ["it's", "fine", "isn't", "it"]
    # One wrong of four, all three missing, one too many of one: (1 + 3 + 1) / (4 + 3 + 1).
    pairs = [("a b c d", "a b x d"), ("a b c", None), ("a", "a, b")]
    assert word_error_rate(pairs) == pytest.approx(5 / 8)
    with pytest.raises(ValueError, match="nothing to compare"):
        word_error_rate([("", "a")])


def test_unknown_backends_models_and_grammars(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'whisper'"):
        create_recogniser("wisper")
    with pytest.raises(ValueError, match="one model only"):
        create_recogniser("pocketsphinx", "large")
    with pytest.raises(ValueError, match="expected grid or a JSGF file"):
        create_recogniser("pocketsphinx", grammar=str(tmp_path / "none.jsgf"))
    (tmp_path / "a.jsgf").write_text("no grammar at all")
    with pytest.raises(ValueError, match="not a JSGF grammar"):
        create_recogniser("pocketsphinx", grammar=str(tmp_path / "a.jsgf"))
    with pytest.raises(ValueError, match="only pocketsphinx takes one"):
        create_recogniser("whisper", grammar="grid")


def test_pocketsphinx_with_a_grammar(real_data: Path) -> None:
    recogniser = create_recogniser("pocketsphinx", grammar="grid")
    pairs, results = [], []
    for code in ("bbaf2n", "lwbsza", "swwp2s"):
        sound = read_audio(real_data / "clips" / f"grid_{code}.mpg")
        assert sound is not None
        results.append(recogniser(sound.samples))
        pairs.append((" ".join(sentence(code)), results[-1].text))
        assert recogniser(sound.samples) == results[-1]  # whatever was recognised before
    assert word_error_rate(pairs) <= 0.1
    assert all(
        not r.low_confidence and r.source == "pocketsphinx+grid" and 0 < (r.confidence or 0) <= 1 for r in results
    )


def test_silence_has_no_transcript() -> None:
    result = create_recogniser("pocketsphinx", grammar="grid")(np.zeros(0, np.float32))
    assert result.text is None and result.low_confidence


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pocketsphinx_free_speech_is_bad_and_says_so(real_data: Path) -> None:
    recogniser = create_recogniser("pocketsphinx")
    pairs = []
    for path in sorted((real_data / "clips").glob("grid_*.mpg")):
        sound = read_audio(path)
        assert sound is not None
        result = recogniser(sound.samples)
        assert result.low_confidence
        pairs.append((" ".join(sentence(path.stem.removeprefix("grid_"))), result.text))
    rate = word_error_rate(pairs)
    print(f"pocketsphinx, free speech, GRID: {rate:.1%}")
    assert 0.3 < rate < 1.2


def random_whisper(folder: Path) -> Path:
    """A Whisper of two tiny layers with RANDOM weights and a made-up vocabulary: it says nothing true."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    tokens = special + [chr(c) for c in range(33, 127)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    features = transformers.WhisperFeatureExtractor(feature_size=16)
    transformers.WhisperProcessor(features, tokenizer).save_pretrained(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_target_positions=32, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 20
    model.generation_config.forced_decoder_ids = None
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def test_whisper_of_random_weights_runs_and_is_not_trusted(tmp_path: Path) -> None:
    recogniser = create_recogniser("whisper", str(random_whisper(tmp_path / "random_whisper")))
    result = recogniser(np.random.default_rng(0).normal(0, 0.1, 40 * 16_000).astype(np.float32))
    assert result.source == "whisper:random_whisper" and result.low_confidence
    assert result.confidence is not None and 0 <= result.confidence < 0.37


def test_whisper_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=f"--speech-model {tmp_path}: no speech-to-text model"):
        create_recogniser("whisper", str(tmp_path))
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        create_recogniser("whisper", str(tmp_path / "nowhere"))
    asked = []

    def refused(self: object, name: str, **options: object) -> None:
        asked.append(name)
        raise RuntimeError("connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)
    with pytest.raises(
        ValueError, match=r"nobody/nothing' cannot be loaded: the hub .*: connection refused.*--speech-model"
    ):
        create_recogniser("whisper", "nobody/nothing")
    assert asked == ["nobody/nothing"]  # once, and by nobody else: the loaders would try for minutes


def test_rate_of_clips_whose_words_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Seconds of sound tell the clips apart; those with words of a recogniser, or without sound, are no measure."""
    words = [("a b c d", "own", 1), ("a b c", "own", 2), ("told", "whisper:base", 3), ("silent", "own", 0)]
    clips = []
    for number, (text, source, seconds) in enumerate(words):
        sound = io.BytesIO()
        with wave.open(sound, "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16_000 * seconds))
        meta = {"split": "train", "source": f"{number}.mp4", "seconds": "1.000"}
        details = {"video": {"seconds": 1.0}, "transcript": {"source": source}, "face": None}
        clips.append(
            NewClip(f"c{number}", b"video", sound.getvalue() if seconds else None, text, {}, None, meta, details)
        )
    entry = write_clip_shard(tmp_path, "clips-0", ClipSchema("wav", (), grouped=False), clips)
    assert entry is not None
    ClipManifest.assemble(tmp_path, [entry])
    asked = []

    def heard(name: str, model: str | None, grammar: str | None) -> Callable[[np.ndarray], Transcript]:
        asked.append((name, model, grammar))
        said = {1: "a b x d", 2: None}
        return lambda samples: Transcript(said[round(len(samples) / 16_000)], name)

    monkeypatch.setattr("benchmarks.word_error_rate.create_recogniser", heard)
    assert main([str(tmp_path), "--grammar", "grid"]) == 0
    assert asked == [("pocketsphinx", None, None), ("pocketsphinx", None, "grid")]
    out = capsys.readouterr().out
    assert "c0: said 'a b c d', heard 'a b x d'" in out and "c1: said 'a b c', heard None" in out
    assert "pocketsphinx, free speech: word error rate 57.1% on 2 clips" in out  # 1 of 4 wrong, 3 of 3 missing
    assert main(["--data", str(tmp_path), "--limit", "1"]) == 0
    assert "word error rate 25.0% on 1 clips" in capsys.readouterr().out


def test_rate_of_a_folder_without_known_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no manifest" in capsys.readouterr().err
    assert main([str(tmp_path), "--limit", "0"]) == 2
    assert capsys.readouterr().err == "error: --limit: must be at least 1, got 0\n"
