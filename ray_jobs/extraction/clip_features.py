"""One clip's way from a stored clip to features: decoded inputs, then each encoder in turn. No Ray in here.

Between the two, a clip is a row of an Arrow table: `shard`, `row`, `key`; `reason` and `message` once it can't be used;
for each input that an encoder takes a binary column `in.<input>`; for each encoder that has had it `out.<column>`, and
`sequence.<column>` where sequences are kept. An input's shape follows from its length: sizes of frames are fixed, and a
spectrogram has 128 bands.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from conclugen.encoders import Encoder, EncoderError, EncoderInfo, InputError, Takes
from conclugen.encoders.encoder import FRAMES, MEL, TEXT, WAVE, differences, pool, sequences_of
from conclugen.encoders.views import augment
from ray_jobs.extraction.plan import Augmentation, Decoding, EncoderChoice, short, view_name
from shards.clips.decode import decode_clip
from shards.clips.reader import ClipReader, StoredClip
from shards.errors import ShardError
from shards.media.face_track import TIME_ROUNDING
from shards.media.frames import Frames
from shards.media.limits import REASONS, Limits, MediaError
from shards.media.mel import BANDS, mel_bands, min_max

# Why a clip has no features, beyond what can be wrong with a video (`shards.media.limits.REASONS`).
EXTRACTION_REASONS = {
    "stored_damaged": "the stored clip's checksum differs from the index, or its members cannot be read",
    "not_encodable": "an encoder cannot take the clip",
    "not_finite": "an encoder gave a number that the feature shards cannot hold",
    "nothing_to_encode": "the clip has nothing that any of the encoders takes",
}
ALL_REASONS = {**REASONS, **EXTRACTION_REASONS}
_RATE = 16_000


@dataclass(frozen=True)
class Decoded:
    """A decoded clip. frames: of each input of frames, by its key; samples: rate in Hz -> (N,) float32, empty for a
    clip without sound; text: or None; breaks: seconds, rising, before and after which frames are not one movement:
    cuts, and where frames without a face are left out the begin of every face's track."""

    takes: tuple[Takes, ...]
    frames: Mapping[str, Frames]
    samples: Mapping[int, np.ndarray]
    text: str | None
    breaks: tuple[float, ...] = ()

    @classmethod
    def of(cls, clip: StoredClip, takes: Sequence[Takes], decoding: Decoding, limits: Limits | None = None) -> Decoded:
        """Raises MediaError for a clip that can't be decoded within the limits."""
        frames: dict[str, Frames] = {}
        pictures = [take for take in takes if take.kind == FRAMES]
        for size in dict.fromkeys(take.size for take in pictures):
            wanted = [take for take in pictures if take.size == size]
            rates = [take.rate for take in wanted]
            decoded = decode_clip(
                without_sound(clip),
                rates,
                size,
                crop=decoding.crop,
                whole_frames=decoding.whole_frames,
                limits=limits,
            )
            frames.update({take.key: decoded.frames[take.rate] for take in wanted})
        samples: dict[int, np.ndarray] = {}
        text = None
        for rate in dict.fromkeys(_rate(take) for take in takes if take.kind != FRAMES):
            rest = decode_clip(clip, (), sample_rate=rate, low_confidence=decoding.low_confidence, limits=limits)
            text = rest.text
            if rest.samples is not None:
                samples[rate] = rest.samples
        breaks = set(clip.cuts)
        if clip.faces is not None and decoding.crop != "none" and not decoding.whole_frames:
            breaks |= {track.start for track in clip.faces.tracks}
        return cls(tuple(takes), frames, samples, text, tuple(sorted(breaks)))

    @property
    def seconds(self) -> float:
        """Time of the last frame, or length of the sound."""
        ends = [float(frames.times[-1]) for frames in self.frames.values()]
        return max([*ends, *(len(x) / rate for rate, x in self.samples.items())], default=0.0)

    def lengths(self, take: Takes, stretch: tuple[float, float] | None = None) -> list[int]:
        """How many of the frames that `inputs` gives lie between one break and the next, in order."""
        times = self.frames[take.key].times
        if stretch is not None:
            times = times[_shown(self.frames[take.key], take.rate, *stretch)]
        part = np.searchsorted(np.array(self.breaks), times + TIME_ROUNDING, "right") if self.breaks else times * 0
        return np.unique(part, return_counts=True)[1].tolist()

    def inputs(self, stretch: tuple[float, float] | None = None) -> dict[str, Any]:
        """Input key -> array or string, for each input that the clip has; of the whole clip, or of a stretch [start,
        end) in seconds, which has no text of its own. A stretch without a frame has the one still on the screen, and
        none where that was left out for want of a face."""
        found: dict[str, Any] = {}
        for take in self.takes:
            if take.kind == FRAMES:
                frames = self.frames[take.key]
                pixels = frames.pixels if stretch is None else frames.pixels[_shown(frames, take.rate, *stretch)]
                if len(pixels):
                    found[take.key] = pixels
            elif take.kind == TEXT:
                if stretch is None and self.text is not None and self.text.strip():
                    found[take.key] = self.text
            elif (rate := _rate(take)) in self.samples:
                first, last = (0, None) if stretch is None else (int(at * rate) for at in stretch)
                part = self.samples[rate][first:last]
                if len(part):
                    found[take.key] = part if take.kind == WAVE else min_max(mel_bands(part))
        return found


def _rate(take: Takes) -> int:
    """Of the sound that an input is made of; text comes with any."""
    return int(take.rate) if take.kind == WAVE else _RATE


def without_sound(clip: StoredClip) -> StoredClip:
    """The clip for a pass over its pictures alone."""
    return replace(clip, sound=None)


def decode_inputs(
    clip: StoredClip, takes: Sequence[Takes], decoding: Decoding, limits: Limits | None = None
) -> tuple[dict[str, bytes], dict[str, list[int]]]:
    """Input key -> bytes, for each input that the clip has; and `Decoded.lengths` of those of frames. Raises MediaError
    for a clip that can't be decoded."""
    decoded = Decoded.of(clip, takes, decoding, limits)
    found = decoded.inputs()
    inputs = {
        take.key: found[take.key].encode() if take.kind == TEXT else _bytes(found[take.key], take)
        for take in takes
        if take.key in found
    }
    return inputs, {take.key: decoded.lengths(take) for take in takes if take.kind == FRAMES and take.key in found}


def encode_within_breaks(
    encoder: Encoder, items: Sequence[Any], lengths: Sequence[Sequence[int] | None]
) -> list[np.ndarray]:
    """`encode_sequence` of each item, an item of several lengths (`Decoded.lengths`) part by part: an encoder that sees
    several frames at once never sees both sides of a cut. InputError has the item's position; EncoderError for an
    encoder that gives what its info does not say."""
    parts: list[Any] = []
    owners: list[int] = []
    for number, (item, own) in enumerate(zip(items, lengths, strict=True)):
        pieces = [item] if own is None or len(own) < 2 else np.split(item, np.cumsum(own)[:-1])
        parts += pieces
        owners += [number] * len(pieces)
    try:
        sequences = sequences_of(encoder, parts)
    except InputError as error:
        raise InputError(owners[error.position], str(error)) from None
    joined: list[list[np.ndarray]] = [[] for _ in items]
    for owner, sequence in zip(owners, sequences, strict=True):
        joined[owner].append(sequence)
    return [own[0] if len(own) == 1 else np.concatenate(own) for own in joined]


def _bytes(array: np.ndarray, take: Takes) -> bytes:
    return array.astype(np.uint8 if take.kind == FRAMES else np.float32, copy=False).tobytes()


def _shown(frames: Frames, rate: float, start: float, end: float) -> np.ndarray:
    """Numbers of the frames at [start, end), or of the last one before, as long as that lasts."""
    times = frames.times
    inside = np.flatnonzero((times >= start) & (times < end))
    if len(inside):
        return inside
    before = int(np.searchsorted(times, start, "right")) - 1
    if not frames.cropped.all():  # nothing was left out
        return np.array([max(0, before)])
    lasts = max(1 / rate, float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    return np.array([before] if before >= 0 and start < times[before] + lasts else [], np.int64)


def input_of(take: Takes, data: Any) -> Any:
    """The array (without a copy) or the string that the bytes are."""
    if take.kind == TEXT:
        return bytes(data).decode()
    if take.kind == FRAMES:
        assert take.size is not None
        return np.frombuffer(data, np.uint8).reshape(-1, *take.size, 3)
    values = np.frombuffer(data, np.float32)
    return values.reshape(BANDS, -1) if take.kind == MEL else values


@dataclass
class Decoder:
    """Reads and decodes ranges of clips. takes: what the encoders take, each input once."""

    reader: ClipReader
    takes: tuple[Takes, ...]
    decoding: Decoding

    def __post_init__(self) -> None:
        self._limits = self.reader.manifest.limits  # what was built under wider limits is decoded under them

    def tables(self, shard: int, start: int, stop: int) -> Iterator[pa.Table]:
        """A table of one row for each clip, so that no more than one is held beside what was handed on."""
        keys = self.reader.table(shard)["key"]
        for row in range(start, stop):
            yield self._one(shard, row, keys[row].as_py())

    def _one(self, shard: int, row: int, key: str) -> pa.Table:
        inputs: Mapping[str, bytes] = {}
        lengths: Mapping[str, list[int]] = {}
        reason = message = None
        try:
            inputs, lengths = decode_inputs(self.reader.read(shard, row), self.takes, self.decoding, self._limits)
            if not inputs:
                reason, message = "nothing_to_encode", "neither its sound nor its text is there"
        except MediaError as error:
            reason, message = error.reason, str(error)
        except ShardError as error:
            reason, message = "stored_damaged", str(error)
        except ValueError as error:
            # What its JSON says of the face, or its text, is not what a build writes.
            reason, message = "stored_damaged", f"{type(error).__name__}: {error}"
        columns: dict[str, pa.Array] = {
            "shard": pa.array([shard], pa.int32()),
            "row": pa.array([row], pa.int32()),
            "key": pa.array([key], pa.string()),
            "reason": pa.array([reason], pa.string()),
            "message": pa.array([message], pa.string()),
        }
        for take in self.takes:
            columns[f"in.{take.key}"] = pa.array([inputs.get(take.key)], pa.large_binary())
            if take.kind == FRAMES:
                columns[f"in.{take.key}.lengths"] = pa.array([lengths.get(take.key)], pa.list_(pa.int32()))
        return pa.table(columns)


@dataclass
class EncoderStage:
    """An encoder applied to tables of clips. keep: inputs that later encoders take; dtype: of the feature shards;
    sequences: whether to hand on what the clean features are pooled from; planned: what the plan says of the encoder,
    which this machine's must be as well."""

    choice: EncoderChoice
    augmentation: Augmentation
    keep: frozenset[str]
    dtype: str
    device: str = "cpu"
    sequences: bool = False
    planned: EncoderInfo | None = None
    _encoder: Encoder | None = field(default=None, repr=False)

    @property
    def encoder(self) -> Encoder:
        """Made at the first use, where the work is done."""
        if self._encoder is None:
            self._encoder = self.choice.create(self.device)
        return self._encoder

    @property
    def info(self) -> EncoderInfo:
        """Of the encoder, as it was planned."""
        return self.encoder.info if self.planned is None else self.planned

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the encoder's columns, without inputs that nobody needs any more. An encoder whose input no
        clip has is not made. EncoderError where the encoder of this machine is not that of the plan."""
        info = self.info
        name = f"in.{info.takes.key}"
        column = table[name].combine_chunks() if table.num_rows else table[name]
        reasons, messages = table["reason"].to_pylist(), table["message"].to_pylist()
        rows = [i for i in range(table.num_rows) if reasons[i] is None and column[i].is_valid]
        if rows:
            self._check()
        inputs = {i: input_of(info.takes, column[i].as_buffer()) for i in rows}
        keys = {i: table["key"][i].as_py() for i in rows}
        lengths = table[f"{name}.lengths"].to_pylist() if info.takes.kind == FRAMES else [None] * table.num_rows
        for view in self.augmentation.numbers:
            keeps = self.sequences and not view
            good = [i for i in rows if reasons[i] is None]
            items = [self._view(inputs[i], keys[i], view) for i in good]
            encoded, refused = self._encode(items, [lengths[i] for i in good], keeps)
            values: list[bytes | None] = [None] * table.num_rows
            sequences: list[bytes | None] = [None] * table.num_rows
            for place, i in enumerate(good):
                x = encoded[place]
                if x is None:
                    reasons[i], messages[i] = "not_encodable", f"{info.name}: {refused[place]}"
                elif not _storable(x, self.dtype):
                    reasons[i], messages[i] = "not_finite", f"{info.name}: a number is not finite in {self.dtype}"
                elif keeps:
                    values[i], sequences[i] = pool(x, info.pooling).tobytes(), x.tobytes()
                else:
                    values[i] = x.tobytes()
            table = table.append_column(f"out.{view_name(info.column, view)}", pa.array(values, pa.binary()))
            if keeps:
                table = table.append_column(f"sequence.{info.column}", pa.array(sequences, pa.large_binary()))
        table = table.set_column(table.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
        table = table.set_column(table.column_names.index("message"), "message", pa.array(messages, pa.string()))
        kept = {f"in.{key}{rest}" for key in self.keep for rest in ("", ".lengths")}
        spent = [n for n in table.column_names if n.startswith("in.") and n not in kept]
        return table.drop_columns(spent) if spent else table

    def _check(self) -> None:
        info = self.encoder.info
        differing = [] if self.planned is None else differences(info.identity(), self.planned.identity())
        if differing:
            name, found, wanted = differing[0]
            raise EncoderError(
                f"encoder {info.name}: on the machine {platform.node()} its {name} is {short(found)}, where the job "
                f"began it is {short(wanted)}; give every machine the same weights and packages"
            )

    def _view(self, item: Any, key: str, view: int) -> Any:
        if not view:
            return item
        how = self.augmentation
        takes = self.info.takes
        rate = _rate(takes)
        return augment(takes.kind, item, seed=how.seed, key=key, view=view, strength=how.strength, rate=rate)

    def _encode(
        self, items: Sequence[Any], lengths: Sequence[list[int] | None], sequences: bool
    ) -> tuple[list[np.ndarray | None], dict[int, str]]:
        """A vector (or a sequence of them) for each item; None, and why, for one that the encoder refuses."""
        vectors: list[np.ndarray | None] = [None] * len(items)
        refused: dict[int, str] = {}
        left = list(range(len(items)))
        while left:
            try:
                found = encode_within_breaks(self.encoder, [items[i] for i in left], [lengths[i] for i in left])
                for place, sequence in zip(left, found, strict=True):
                    vectors[place] = sequence if sequences else pool(sequence, self.encoder.info.pooling)
                break
            except InputError as error:
                place = left.pop(error.position)
                refused[place] = str(error)
        return vectors, refused


def stages(
    choices: Sequence[EncoderChoice],
    infos: Sequence[EncoderInfo],
    takes: Sequence[Takes],
    augmentation: Augmentation,
    dtype: str,
    devices: Mapping[str, str],
    sequences: bool = False,
) -> list[EncoderStage]:
    """One stage for each encoder, in order; an input is dropped after the last encoder that takes it. infos: of the
    encoders, as they were planned."""
    return [
        EncoderStage(
            choice,
            augmentation,
            frozenset(take.key for take in takes[number + 1 :]),
            dtype,
            devices.get(choice.name, "cpu"),
            sequences,
            info,
        )
        for number, (choice, info) in enumerate(zip(choices, infos, strict=True))
    ]


def unique(takes: Sequence[Takes]) -> tuple[Takes, ...]:
    """Each input once, in order."""
    return tuple({take.key: take for take in takes}.values())


def _storable(vector: np.ndarray, dtype: str) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(vector.astype(dtype)).all())
