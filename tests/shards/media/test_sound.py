"""Sound: any rate, any channels, to 16 kHz mono; its bytes; mel bands against a slow transform."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from shards.media.audio import Sound, _Heard, _places, _sound, encode_audio, read_audio
from shards.media.limits import Limits, MediaError
from shards.media.mel import mel_bands, min_max
from shards.media.prepare import Request, prepare
from tests.campaigns.media_matrix import read_wav
from tests.shards.media.make_media import make_sound, make_video, sine
from tests.shards.media.timed_media import RATE, Recipe, make, shown, sound, steady, time_heard


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


@pytest.mark.parametrize("codec", ["pcm_s16le", "adpcm_ima_wav", "adpcm_ms"])
def test_an_interval_of_compressed_sound_in_wav(codec: str, tmp_path: Path) -> None:
    """A packet of ADPCM holds several frames, of which the first alone has a time; seeks land seconds beside it."""
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE, layout="mono")
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        samples = (sound(0.0, 30.0) * 32767).astype(np.int16)
        for at in range(0, len(samples) - size, size):
            frame = av.AudioFrame.from_ndarray(samples[None, at : at + size], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for start, end in ((0.0, 2.0), (3.0, 5.0), (24.3, 26.0)):
        part = read_audio(path, start=start, end=end)
        assert part is not None and part.seconds == pytest.approx(end - start, abs=1e-3)
        for at in (0.02, 0.7, 1.4):
            assert time_heard(part.samples, part.rate, at) == pytest.approx(start + at, abs=5e-3)


def test_packets_that_the_decoder_does_not_take_are_counted_as_damaged(tmp_path: Path) -> None:
    """NUT with FLAC ends in an empty packet, which is refused with another error than damage is."""
    path = make(tmp_path / "a.nut", Recipe(steady(50), [(0.0, 2.0)], sound_codec="flac"))
    whole = read_audio(path)
    assert whole is not None and time_heard(whole.samples, whole.rate, 1.0) == pytest.approx(1.0, abs=5e-3)


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


def stretches(path: Path, *sounds: tuple[float, float], codec: str = "pcm_s16le") -> Path:
    """A video of 8 s with sound where it is told, each sample saying at which time it lies."""
    return make(path, Recipe(steady(200), sounds, sound_codec=codec, options={"preset": "ultrafast"}))


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mkv", "libopus"), ("mp4", "aac"), ("ts", "mp2")])
def test_a_hole_is_silence_and_nothing_shifts(suffix: str, codec: str, tmp_path: Path) -> None:
    path = stretches(tmp_path / f"a.{suffix}", (0.0, 2.0), (3.5, 4.5), codec=codec)
    for start, end in ((None, None), (1.0, 5.0)):
        heard = read_audio(path, start=start, end=end)
        assert heard is not None and heard.holes == pytest.approx(1.5, abs=0.06)
        for time in (1.2, 1.7, 3.7, 4.5):
            assert time_heard(heard.samples, heard.rate, time - (start or 0)) == pytest.approx(time, abs=0.025)
        for time in (2.2, 3.2):
            assert time_heard(heard.samples, heard.rate, time - (start or 0)) == "silence"
    clip = prepare(Request(str(path), faces=False, sound="wav"))
    assert clip.details["audio"]["holes"] == pytest.approx(1.5, abs=0.06)
    assert clip.details["audio"]["seconds"] == pytest.approx(8.0, abs=0.03)


def test_an_interval_that_ends_in_a_hole_or_lies_in_one(tmp_path: Path) -> None:
    path = stretches(tmp_path / "a.mkv", (0.0, 2.0), (5.0, 3.0))
    for start, end, holes in ((1.0, 4.0, 2.0), (2.4, 4.4, 2.0), (4.0, 7.0, 0.0)):
        clip = prepare(Request(str(path), None, start, end, faces=False, sound="wav"))
        assert clip.sound is not None
        samples, rate = read_wav(clip.sound)
        assert len(samples) == round((end - start) * rate)
        assert clip.details["audio"]["holes"] == pytest.approx(holes, abs=0.02)
        assert clip.details["audio"]["padded"] == 0
        for at in (0.1, 1.3):
            time = start + at
            right = "silence" if 2 <= time < 5 else pytest.approx(time, abs=0.012)
            assert time_heard(samples, rate, at) == right
    # After its end there is no hole.
    with pytest.raises(MediaError) as caught:
        prepare(Request(str(stretches(tmp_path / "b.mkv", (0.0, 2.0))), None, 1.0, 4.0, faces=False))
    assert caught.value.reason == "audio_length"


def test_many_short_holes_do_not_add_up(tmp_path: Path) -> None:
    """A packet of 20 ms lost out of every ten: after 7 s nothing is late."""
    lost = [(at / 5, 0.18) for at in range(40)]
    heard = read_audio(stretches(tmp_path / "a.mkv", *lost))
    assert heard is not None and heard.holes == pytest.approx(0.78, abs=0.06)
    for time in (0.6, 3.0, 7.2):
        assert time_heard(heard.samples, heard.rate, time) == pytest.approx(time, abs=0.012)


def test_an_overlap_is_cut() -> None:
    """The second stretch is stamped 0.4 s before the first one ends: what was heard first stays."""
    rate = 8000
    first, second = sound(0.0, 3.0, rate), sound(2.6, 2.0, rate)
    blocks = [(0.0, first), (2.6, second)]
    pieces: list[tuple[Fraction | None, np.ndarray]] = [
        (Fraction(begin).limit_denominator(10) + Fraction(at, rate), block[at : at + 160])
        for begin, block in blocks
        for at in range(0, len(block), 160)
    ]
    heard = _sound(_Heard(rate, Fraction(0), True, pieces=pieces), rate, Fraction(0), None, None, 10.0, {})
    assert heard.overlaps == pytest.approx(0.4) and not heard.holes
    assert heard.samples == pytest.approx(sound(0.0, 4.6, rate), abs=1e-4)


def jittered(rng: np.random.Generator, most: float) -> list[tuple[Fraction | None, np.ndarray]]:
    """Pieces of 20 ms whose stamps are wrong by up to so many seconds."""
    return [
        (
            Fraction(k, 50) + Fraction(float(rng.uniform(-most, most))).limit_denominator(10**6),
            np.full(160, k, np.float32),
        )
        for k in range(100)
    ]


def test_jitter_of_time_stamps_leaves_the_sound_whole() -> None:
    pieces = jittered(np.random.default_rng(3), 0.008)
    pieces[0] = (Fraction(0), pieces[0][1])
    places = _places(_Heard(8000, Fraction(0), True, pieces=pieces), Fraction(0))
    assert places == [160 * k for k in range(100)]
    # A shift of 12 ms that stays is no jitter, also amid jitter: it is placed where it began, give or take a piece.
    late = [(time + Fraction(12, 1000) if k >= 40 else time, block) for k, (time, block) in
            enumerate(jittered(np.random.default_rng(4), 0.004))]  # fmt: skip
    places = _places(_Heard(8000, Fraction(0), True, pieces=late), Fraction(0))
    assert places[:38] == [160 * k for k in range(38)]
    assert np.array(places[45:]) == pytest.approx(160 * np.arange(45, 100) + 96, abs=48)


LAYOUTS = {
    "mono": 1, "stereo": 2, "3.0": 3, "quad": 4, "4.0": 4, "5.0": 5, "5.1": 6, "5.1(side)": 6, "6.1": 7, "7.1": 8,
}  # fmt: skip


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_down_mix_has_the_levels_of_ffmpeg(layout: str, tmp_path: Path) -> None:
    """Each channel alone at its own frequency: what comes of it is what `ffmpeg -ac 1` makes of it."""
    count, rate = LAYOUTS[layout], 16_000
    t = np.arange(rate) / rate
    planes = np.stack([0.1 * np.sin(2 * np.pi * (300 + 200 * k) * t) for k in range(count)]).astype(np.float32)
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("pcm_f32le", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(planes.T.reshape(1, -1).copy(), format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    heard = read_audio(path)
    # Two channels are averaged: as the program does for 16 bit, where a voice on both keeps its level.
    form = ["-c:a", "pcm_f32le"] if count > 2 else ["-c:a", "pcm_s16le"]
    form += [] if count > 2 else ["-af", "aresample=rematrix_maxval=1"]
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-ac", "1", *form, str(tmp_path / "b.wav")]
    subprocess.run(command, check=True)
    expected = read_audio(tmp_path / "b.wav")
    assert heard is not None and expected is not None
    assert heard.samples[200:-200] == pytest.approx(expected.samples[200:-200], abs=2e-4)
    centre = {"5.0": 2, "5.1": 2, "5.1(side)": 2, "6.1": 2, "7.1": 2}.get(layout)
    if centre is not None:
        spectrum = np.abs(np.fft.rfft(heard.samples)) * 2 / rate
        assert spectrum[300 + 200 * centre] == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("layout", ["7.1", "hexadecagonal"])
def test_eight_channels_and_more_in_planes(layout: str, tmp_path: Path) -> None:
    """AAC and FLAC decode to planes, of which PyAV itself counts one too many."""
    channels, rate = (8, 48_000) if layout == "7.1" else (16, 48_000)
    planes = np.tile(sine(1.0, rate, 1), (channels, 1))
    codec = "aac" if channels == 8 else "pcm_s16le"
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(planes.T.reshape(1, -1).copy(), format="flt", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        stream.codec_context.open()
        form = stream.codec_context.format.name
        for part in av.AudioResampler(form, layout, rate, frame_size=1024).resample(frame):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    heard = read_audio(path)
    assert heard is not None
    spectrum = np.abs(np.fft.rfft(heard.samples[:15_000] * np.hanning(15_000)))
    assert spectrum.argmax() * 16_000 / 15_000 == pytest.approx(440, abs=2)


def test_speech_in_the_centre_of_a_coded_film_keeps_its_level(tmp_path: Path) -> None:
    rate = 48_000
    planes = np.zeros((6, 2 * rate), np.float32)
    planes[2] = sine(2.0, rate, 1)[0]
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("ac3", rate=rate, layout="5.1")
        stream.bit_rate = 448_000
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="5.1")
        frame.sample_rate, frame.pts = rate, 0
        for part in av.AudioResampler("fltp", "5.1(side)", rate, frame_size=1536).resample(frame):
            part.pts = part.pts or 0
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    heard = read_audio(tmp_path / "a.mkv")
    assert heard is not None
    assert np.sqrt((heard.samples[4000:28_000] ** 2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("seconds", [1.2, 1.9, 2.0, 2.02, 2.1, 2.9])
@pytest.mark.parametrize("mode", ["refuse", "pad", "cut"])
def test_sound_of_another_length_is_refused_padded_or_cut(mode: str, seconds: float, tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", Recipe(steady(50), [(0.0, seconds)], sound_codec="pcm_s16le"))
    request = Request(str(path), faces=False, sound="wav", audio_length=mode)
    if mode == "refuse" and abs(seconds - 2) > 0.6:
        with pytest.raises(MediaError) as caught:
            prepare(request)
        assert caught.value.reason == "audio_length"
        # The limits are the user's.
        assert prepare(replace(request, limits=Limits(audio_gap_seconds=0.9))).details["audio"]["seconds"] == 2
        return
    clip = prepare(request)
    assert clip.sound is not None
    samples, rate = read_wav(clip.sound)
    shorter = mode == "cut" and seconds < 1.95
    length = seconds if shorter else 2.0
    pictures = shown(clip.video)
    assert [number for _, number in pictures] == list(range(math.ceil(length * 25 - 1e-6)))
    assert len(samples) / rate == pytest.approx(length, abs=0.021)
    assert clip.details["video"]["seconds"] == pytest.approx(len(samples) / rate, abs=1e-3)
    details = clip.details["audio"]
    assert details["padded"] == pytest.approx(2 - seconds if seconds < 1.95 and not shorter else 0, abs=0.021)
    assert details["cut"] == pytest.approx(seconds - 2 if seconds > 2.05 else 0, abs=0.021)
    assert clip.details["taken"]["picture_cut"] == pytest.approx(2 - seconds if shorter else 0, abs=0.021)
    assert time_heard(samples, rate, 0.9) == pytest.approx(0.9, abs=0.01)
    if seconds == 1.2 and mode == "pad":
        assert time_heard(samples, rate, 1.5) == "silence"


def test_unknown_way_to_treat_sound_of_another_length() -> None:
    with pytest.raises(ValueError, match="allowed: refuse, pad, cut"):
        Request("a.mp4", audio_length="stretch")
