"""Sound at a wanted sample rate, mixed to one channel, as float32; and as FLAC or WAV bytes."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from shards.media.limits import Limits, MediaError
from shards.media.probe import Source, audio_stream, exact, open_media, start_of

SPEECH_RATE = 16_000
FORMATS = ("flac", "wav")


@dataclass(frozen=True)
class Sound:
    """samples: (N,) float32 in about [-1, 1]; rate in Hz; offset: seconds by which it begins after the picture."""

    samples: np.ndarray
    rate: int
    offset: float = 0.0

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_audio(
    source: Source,
    rate: int | None = SPEECH_RATE,
    *,
    start: float | None = None,
    end: float | None = None,
    origin: Fraction | None = None,
    limits: Limits | None = None,
) -> Sound | None:
    """The sound in [start, end) seconds, mixed to mono, at `rate` Hz (None: its own); None where there is none.

    origin: the time (on the file's own clock) that start and end count from, such as the first picture's; None: the
    first sample's. Raises MediaError for sound that can't be decoded or is longer than allowed.
    """
    limits = limits or Limits()
    with open_media(source, limits) as container:
        stream = audio_stream(container)
        if stream is None:
            return None
        context = stream.codec_context
        context.thread_count = 1
        own_start = start_of(stream)
        origin = own_start if origin is None else origin
        rate = rate or context.sample_rate
        if not 1000 <= rate <= 768_000:
            raise MediaError("audio_damaged", f"the sample rate is {rate} Hz")
        whole = start is None and end is None
        allowed = limits.max_seconds * (1 + limits.audio_gap_share) + limits.audio_gap_seconds
        longest = allowed if end is None else min(allowed, end - (start or 0.0))
        limits.check_bytes(longest * rate * 4, "the sound")
        first = None if whole else origin + exact(start or 0.0)
        if first is not None and first > 1 and "mpeg" not in container.format.name.split(","):
            container.seek(int((first - 1) * av.time_base), backward=True)
        blocks, begins = _resampled(container, stream, rate, first, longest, limits, whole)
        samples = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        offset = Fraction(0) if begins is None else begins - origin
        if first is not None:
            return Sound(_placed(samples, begins, first, longest, rate), rate)
        return Sound(samples, rate, float(offset))


def _resampled(
    container: Any, stream: Any, rate: int, first: Fraction | None, longest: float, limits: Limits, whole: bool
) -> tuple[list[np.ndarray], Fraction | None]:
    """Mono float32 blocks at the wanted rate, and the time of the first one's first sample."""
    # The channels are averaged here: the library's own mix to mono makes float samples 3 dB louder, beyond 1.
    resampler = av.AudioResampler(format="fltp", rate=rate)
    blocks: list[np.ndarray] = []
    begins: Fraction | None = None
    count = good = bad = 0
    most = int(longest * rate) + 1
    stop = None if first is None else first + Fraction(longest)
    for packet in _packets(container, stream):
        if packet is None:
            bad += 1
            continue
        try:
            frames = packet.decode()
            good += 1
        except av.error.EOFError:
            break
        except av.error.InvalidDataError:
            bad += 1
            continue
        for frame in frames:
            if frame.pts is not None and first is not None:
                time = frame.pts * Fraction(frame.time_base)
                if time + Fraction(frame.samples, frame.sample_rate) <= first:
                    continue
                if stop is not None and time >= stop:
                    break
            if begins is None:
                begins = Fraction(0) if frame.pts is None else frame.pts * Fraction(frame.time_base)
            # Timestamps have done their duty; gaps in them would make the resampler refuse the frame.
            frame.pts = None
            for part in resampler.resample(frame):
                block = part.to_ndarray().mean(axis=0, dtype=np.float32)
                blocks.append(block)
                count += len(block)
            if whole and count > most:
                raise MediaError("too_long", f"the sound lasts longer than {longest:.0f} s")
        else:
            if first is None or begins is None or count < most + rate:
                continue
        break
    if begins is not None:
        blocks += [part.to_ndarray().mean(axis=0, dtype=np.float32) for part in resampler.resample(None)]
    if bad and bad / (good + bad) > limits.max_damaged_share:
        raise MediaError("audio_damaged", f"{bad} of {good + bad} sound packets cannot be decoded")
    return blocks, begins


def _packets(container: Any, stream: Any) -> Any:
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


def _placed(samples: np.ndarray, begins: Fraction | None, first: Fraction, longest: float, rate: int) -> np.ndarray:
    """Exactly the interval: what came before it cut off, silence where the sound begins later."""
    if begins is None:
        return samples
    early = round((first - begins) * rate)
    samples = samples[early:] if early >= 0 else np.concatenate([np.zeros(-early, np.float32), samples])
    return samples[: round(longest * rate)]


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
