"""Sound: any rate, any channels, to 16 kHz mono; its bytes; mel bands against a slow transform."""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from shards.media.audio import Sound, encode_audio, read_audio
from shards.media.limits import Limits, MediaError
from shards.media.mel import mel_bands, min_max
from tests.shards.media.make_media import make_sound, make_video, sine


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels(rate: int, channels: int, tmp_path: Path) -> None:
    """A sine keeps its frequency and length; of two channels, one silent, it has half the amplitude."""
    sound = read_audio(make_sound(tmp_path / "a.wav", sine(1.5, rate, channels), rate))
    assert sound is not None and sound.rate == 16_000 and sound.samples.dtype == np.float32
    assert sound.seconds == pytest.approx(1.5, abs=0.002)
    middle = sound.samples[4000:20_000]
    peak = np.abs(np.fft.rfft(middle)).argmax()
    assert peak == pytest.approx(440 * len(middle) / 16_000, abs=1)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2) / channels, rel=0.01)


def test_own_rate_is_kept_when_asked(tmp_path: Path) -> None:
    expected = sine(1.0, 48_000, 1)[0]
    sound = read_audio(make_sound(tmp_path / "a.wav", expected[None], 48_000), rate=None)
    assert sound is not None and sound.rate == 48_000
    assert sound.samples == pytest.approx(expected, abs=2 / 32768)


def test_video_without_sound_has_none(tmp_path: Path) -> None:
    assert read_audio(make_video(tmp_path / "a.mp4", 10)) is None


def test_interval_is_that_of_the_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 3 * 44_100)).astype(np.float32)
    path = make_video(tmp_path / "a.mp4", 75, sound=noise)
    whole, part = read_audio(path, rate=None), read_audio(path, rate=None, start=1.0, end=2.0, origin=Fraction(0))
    assert whole is not None and part is not None and len(part.samples) == 44_100
    assert np.array_equal(part.samples[100:-100], whole.samples[44_200:88_100])


def test_sound_that_begins_late_is_silent_before(tmp_path: Path) -> None:
    path = make_sound(tmp_path / "a.wav", sine(2.0, 16_000, 1), 16_000)
    part = read_audio(path, start=0.0, end=1.0, origin=Fraction(-1, 2))
    assert part is not None and len(part.samples) == 16_000
    assert not part.samples[:7990].any() and np.abs(part.samples[8100:]).max() > 0.4


def test_longer_than_allowed(tmp_path: Path) -> None:
    path = make_sound(tmp_path / "a.wav", sine(4.0, 16_000, 1), 16_000)
    with pytest.raises(MediaError) as caught:
        read_audio(path, limits=Limits(max_seconds=2.0))
    assert caught.value.reason == "too_long"


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_stored_bytes_are_lossless_and_reproducible(kind: str) -> None:
    samples = np.random.default_rng(1).normal(0, 0.2, 16_123).astype(np.float32)
    data = encode_audio(Sound(samples, 16_000), kind)
    again = read_audio(data)
    assert again is not None
    assert np.array_equal(np.rint(again.samples * 32768), np.clip(np.rint(samples * 32768), -32768, 32767))
    assert encode_audio(Sound(samples, 16_000), kind) == data
    if kind == "wav":
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
            assert file.getnframes() == len(samples)


def test_unknown_sound_format() -> None:
    with pytest.raises(ValueError, match="allowed: flac, wav"):
        encode_audio(Sound(np.zeros(10, np.float32), 16_000), "mp3")


def slow_mel(samples: np.ndarray) -> np.ndarray:
    """Short-time power spectra times triangular filters on the HTK mel scale, one frame and one band at a time."""
    padded = np.pad(samples.astype(np.float64), 1024, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = [padded[at : at + 2048] * window for at in range(0, len(padded) - 2047, 160)]
    power = np.array([np.abs(np.fft.rfft(frame)) ** 2 for frame in frames])
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130) / 2595) - 1)
    frequencies = np.linspace(0, 8000, 1025)
    bands = np.zeros((128, len(frames)))
    for band in range(128):
        low, centre, high = edges[band : band + 3]
        rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
        bands[band] = power @ np.maximum(0, np.minimum(rising, falling))
    return bands


@pytest.mark.parametrize("length", [4000, 16_000, 16_159])
def test_mel_bands_are_those_of_the_slow_transform(length: int) -> None:
    samples = np.random.default_rng(2).normal(0, 0.1, length).astype(np.float32)
    expected = slow_mel(samples)
    bands = mel_bands(samples)
    assert bands.shape == expected.shape == (128, 1 + length // 160)
    assert bands == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_mel_of_very_short_sound_and_of_none() -> None:
    assert mel_bands(np.ones(10, np.float32)).shape == (128, 7)
    with pytest.raises(ValueError, match="at least one sample"):
        mel_bands(np.empty(0, np.float32))


def test_min_max() -> None:
    values = np.array([[2.0, 4.0], [6.0, 10.0]])
    assert min_max(values) == pytest.approx(np.array([[0, 0.25], [0.5, 1.0]]), abs=1e-8)
    assert not min_max(np.full((3, 3), 7.0)).any()
