"""Sound at a wanted sample rate, mixed to one channel, as float32; and as FLAC or WAV bytes.

Each sample lies where its time stamp says: a hole between stamps is silence, an overlap is cut.
"""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from shards.media.libraries import av
from shards.media.limits import Limits, MediaError
from shards.media.probe import Source, audio_stream, exact, open_media, seek, start_of, steps_back, taken

SPEECH_RATE = 16_000
FORMATS = ("flac", "wav")
_AHEAD = 1  # seconds before an interval at which reading begins: decoders (MP3, AAC, Opus) are exact after a while
_WARM_UP = Fraction(1, 5)  # seconds that they must have read at least, where there are any
_MARGIN = 0.05  # seconds around an interval that the resampling filter looks at
# With eight planes and more PyAV (18.1) reads a ninth one that isn't there.
_MOST_PLANES = 8
# Time stamps jitter by rounding and by the recorder's scheduling: a hole or an overlap is one that is long, or stays.
_JUMP = 0.04  # seconds, at once
_SHIFT = 0.005  # seconds, if it stays
_STAYS = 0.15  # seconds


@dataclass(frozen=True)
class Sound:
    """samples: (N,) float32 in about [-1, 1]; rate in Hz; offset: seconds by which it begins after the wanted origin (0
    for an interval, which is silent until the sound begins); holes, overlaps: seconds filled with silence and cut out;
    track: which stream it is (`shards.media.probe.taken`)."""

    samples: np.ndarray
    rate: int
    offset: float = 0.0
    holes: float = 0.0
    overlaps: float = 0.0
    track: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_audio(
    source: Source,
    rate: int | None = SPEECH_RATE,
    *,
    start: float | Fraction | None = None,
    end: float | Fraction | None = None,
    origin: Fraction | None = None,
    limits: Limits | None = None,
) -> Sound | None:
    """The sound in [start, end) seconds, mixed to mono, at `rate` Hz (None: its own); None where there is none.

    start and end count from `origin`, a time on the file's own clock; None: from the file's start
    (`shards.media.probe.start_of`), so that a sound file beside a video has the same zero. Without an end it reaches as
    far as the file; it ends early where the sound does. Raises MediaError for sound that can't be decoded or is longer
    than allowed.
    """
    limits = limits or Limits()
    first, last = _seconds(start), _seconds(end)
    allowed = limits.max_seconds * (1 + limits.audio_gap_share) + limits.audio_gap_seconds
    longest = allowed if last is None else min(allowed, float(last - (first or 0)))
    number = 0
    while True:
        with open_media(source, limits) as container:
            stream = audio_stream(container)
            if stream is None:
                return None
            stream.codec_context.thread_count = 1
            zero = start_of(container) if origin is None else origin
            begin = None if first is None else zero + first
            steps: tuple[Fraction | None, ...] = (None,)
            if begin is not None:
                steps = steps_back(container, begin - start_of(container) - _AHEAD)
            back = steps[number]
            if back is not None and begin is not None and not seek(container, stream, begin - _AHEAD - back):
                number = len(steps) - 1
                continue
            _check_rate(rate or stream.codec_context.sample_rate)
            limits.check_bytes(longest * max(rate or 0, stream.codec_context.sample_rate) * 4, "the sound")
            stop = None if last is None else zero + last
            heard = _hear(container, stream, begin, stop, longest, limits, from_begin=back is None)
            if back is not None and begin is not None and not (heard.first and heard.first <= begin - _WARM_UP):
                number += 1
                continue
            if not heard.pieces and not heard.goes_on:
                nothing = np.empty(0, np.float32)
                return (
                    Sound(nothing, rate or stream.codec_context.sample_rate, track=taken(stream)) if heard.any else None
                )
            return _sound(heard, rate or heard.rate, zero, first, last, longest, taken(stream))


def _seconds(time: float | Fraction | None) -> Fraction | None:
    return exact(time) if isinstance(time, float | int) else time


def _check_rate(rate: int) -> None:
    if not 1000 <= rate <= 768_000:
        raise MediaError("audio_damaged", f"the sample rate is {rate} Hz")


@dataclass
class _Heard:
    """Decoded sound. pieces: (time on the file's clock or None, (n,) float32 mono at `rate`); first: time of the first
    decoded sample, also of what was not kept; any: whether anything was decoded; goes_on: whether there is sound after
    the interval, so that what is missing before it is a hole."""

    rate: int = 0
    first: Fraction | None = None
    any: bool = False
    goes_on: bool = False
    pieces: list[tuple[Fraction | None, np.ndarray]] = field(default_factory=list)


def _hear(
    container: Any,
    stream: Any,
    begin: Fraction | None,
    stop: Fraction | None,
    longest: float,
    limits: Limits,
    from_begin: bool,
) -> _Heard:
    """Decode from the file's position; keep what lies between begin and stop, and a little around it."""
    heard = _Heard()
    count = good = bad = 0
    follows: Fraction | None = None  # when a frame is heard that has no time of its own: ADPCM packets hold several
    for packet in _packets(container, stream):
        if packet is None:
            bad += 1
            continue
        try:
            frames = packet.decode()
            good += 1
        except av.error.EOFError:
            break
        except (av.error.InvalidDataError, av.error.ArgumentError):
            # A seek may land amid a packet, and what decoders are given first may need what lies before it.
            bad += heard.any or from_begin
            continue
        for frame in frames:
            heard.rate = heard.rate or frame.sample_rate
            time = follows if frame.pts is None else frame.pts * Fraction(frame.time_base)
            follows = None if time is None else time + Fraction(frame.samples, frame.sample_rate)
            if not heard.any:
                heard.any, heard.first = True, time
            if time is not None:
                if begin is not None and follows is not None and follows <= begin - _WARM_UP:
                    continue
                if stop is not None and time >= stop + _WARM_UP:
                    heard.goes_on = True
                    break
            block = _mono(frame)
            if frame.sample_rate != heard.rate:
                block = _resampled(block, frame.sample_rate, heard.rate)
            heard.pieces.append((time, block))
            count += len(block)
            if begin is None and count > longest * heard.rate + 1:
                raise MediaError("too_long", f"the sound lasts longer than {longest:.0f} s")
        else:
            # Without time stamps nothing else says where to stop.
            if begin is None or count <= (longest + 2 * _AHEAD) * heard.rate:
                continue
        break
    if bad and bad / (good + bad) > limits.max_damaged_share:
        raise MediaError("audio_damaged", f"{bad} of {good + bad} sound packets cannot be decoded")
    return heard


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets; None in place of one that can't be read, after which there are no more."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.InvalidDataError, av.error.EOFError):
            yield None
            return
        if packet is None:
            return
        yield packet


def _mono(frame: Any) -> np.ndarray:
    """(n,) float32 in [-1, 1] of a decoded frame of any sample format and layout."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels >= _MOST_PLANES:
        (frame,) = av.AudioResampler(format="flt").resample(frame)
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, channels).T
    if data.dtype == np.uint8:
        data = data.astype(np.float32) / 128 - 1
    elif data.dtype.kind == "i":
        data = data.astype(np.float32) / np.float32(-float(np.iinfo(data.dtype).min))
    samples: np.ndarray = _gains(frame.layout.name, channels) @ data.astype(np.float32, copy=False)
    return samples


@lru_cache(maxsize=64)
def _gains(layout: str, channels: int) -> np.ndarray:
    """(channels,) float32: what each channel counts in the mix to mono.

    As `ffmpeg -ac 1` mixes decoded (floating point) sound: the centre, which carries speech, at its full level, front
    left and right at -3 dB, sides and back at -6 dB, the low frequency channel not at all (ATSC A/52, 7.8). Two
    channels count half each, as ffmpeg mixes them for 16 bit: a voice recorded on both keeps its level. Layouts that
    the library doesn't know are averaged.
    """
    average = np.full(channels, 1 / channels, np.float32)
    if channels <= 2:
        return average
    try:
        name = _USUAL_LAYOUTS.get(channels, layout) if layout.endswith("channels") else layout
        eye = np.eye(channels, dtype=np.float32).reshape(1, -1)
        impulses = av.AudioFrame.from_ndarray(eye, format="flt", layout=name)
        impulses.sample_rate = SPEECH_RATE
        mixed: np.ndarray = av.AudioResampler("flt", "mono", SPEECH_RATE).resample(impulses)[0].to_ndarray()[0]
    except (av.error.FFmpegError, ValueError, IndexError):
        return average
    return mixed if len(mixed) == channels and mixed.any() else average


# What sound of so many channels is where the file doesn't say.
_USUAL_LAYOUTS = {3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def _sound(
    heard: _Heard,
    rate: int,
    zero: Fraction,
    first: Fraction | None,
    last: Fraction | None,
    longest: float,
    track: dict[str, Any],
) -> Sound:
    """The decoded pieces laid out in time, cut to the interval and resampled."""
    native = heard.rate
    _check_rate(native)
    begins = next((time for time, _ in heard.pieces if time is not None), zero + (first or 0))
    places = _places(heard, begins)
    total = max((place + len(block) for place, (_, block) in zip(places, heard.pieces, strict=True)), default=0)
    if first is None and total > longest * native + 1:
        raise MediaError("too_long", f"the sound lasts longer than {longest:.0f} s")
    # All counts are in samples from the first decoded one.
    wanted_from = 0 if first is None else round((zero + first - begins) * native)
    wanted_to = total
    if last is not None:
        end = round((zero + last - begins) * native)
        wanted_to = end if heard.goes_on else min(total, end)
    if wanted_to - wanted_from > longest * native + 1:
        raise MediaError("too_long", f"the sound lasts longer than {longest:.0f} s")
    # As much margin as is a whole number of samples at either rate.
    common = math.gcd(native, rate)
    units = 0 if native == rate or first is None else math.ceil(_MARGIN * common)
    margin = units * native // common
    low, high = wanted_from - margin, max(wanted_from, wanted_to) + margin
    laid = np.zeros(high - low, np.float32)
    cursor = places[0] if places else wanted_from
    holes = overlaps = 0
    for place, (_, block) in zip(places, heard.pieces, strict=True):
        late = max(0, cursor - place)
        overlaps += min(late, len(block))
        holes += max(0, min(place, wanted_to) - max(cursor, wanted_from))
        if late < len(block):
            here = block[late:]
            begin, stop = max(place + late, low), min(place + len(block), high)
            if begin < stop:
                laid[begin - low : stop - low] = here[begin - place - late : stop - place - late]
            cursor = place + len(block)
    holes += max(0, wanted_to - max(cursor, wanted_from))
    samples = laid
    if native != rate:
        length = max(0, round((wanted_to - wanted_from) * rate / native))
        samples = _resampled(laid, native, rate)[units * rate // common :][:length]
    if last is not None and first is not None:
        samples = samples[: round((last - first) * rate)]
    offset = 0.0 if first is not None else float(begins - zero)
    return Sound(samples, rate, offset, holes / native, overlaps / native, track)


def _places(heard: _Heard, begins: Fraction) -> list[int]:
    """Where each piece begins, in samples after `begins`: by its time stamp, as far as that is more than jitter."""
    jump, shift = _JUMP * heard.rate, _SHIFT * heard.rate
    places: list[int] = []
    at = 0
    suspect: tuple[int, Fraction, int] | None = None  # since which piece and time it has been off, and by how much
    for number, (time, block) in enumerate(heard.pieces):
        off = 0 if time is None else round((time - begins) * heard.rate) - at
        if abs(off) > jump:
            at, suspect = at + off, None
        elif abs(off) > shift and time is not None:
            if suspect is None or (suspect[2] > 0) != (off > 0):
                suspect = (number, time, off)
            since, when, least = suspect
            suspect = (since, when, min(least, off, key=abs))
            if time - when >= _STAYS:
                places[since:] = [place + suspect[2] for place in places[since:]]
                at, suspect = at + suspect[2], None
        elif time is not None:
            suspect = None
        places.append(at)
        at += len(block)
    return places


def _resampled(samples: np.ndarray, native: int, rate: int) -> np.ndarray:
    if native == rate or not len(samples):
        return samples
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate = native
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    return np.concatenate([part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))])


def encode_audio(sound: Sound, kind: str) -> bytes:
    """The samples as 16-bit FLAC or WAV; the bytes depend on the samples only."""
    if kind not in FORMATS:
        raise ValueError(f"sound format is {kind!r}, allowed: {', '.join(FORMATS)}")
    pcm = np.clip(np.rint(sound.samples.astype(np.float64) * 32768), -32768, 32767).astype("<i2")
    target = io.BytesIO()
    if kind == "wav":
        with wave.open(target, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sound.rate)
            file.writeframes(pcm.tobytes())
        return target.getvalue()
    with av.open(target, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=sound.rate, layout="mono", options={"flags": "+bitexact"})
        stream.codec_context.format = "s16"
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = sound.rate
        frame.pts = 0
        # The encoder takes blocks of its own size.
        resampler = av.AudioResampler(format="s16", layout="mono", rate=sound.rate, frame_size=4096)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return target.getvalue()
