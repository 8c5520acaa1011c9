"""What a media file may ask for at most, and how a file that can't be used is refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

# Why a clip can't be used: the `reason` of a quarantine entry. Stable names, for readers and for scripts.
REASONS = {
    "missing": "the file does not exist",
    "unreadable": "the file may not or cannot be read",
    "not_a_file": "a folder, pipe, device or socket",
    "bad_name": "the name is not valid UTF-8, holds control characters, or leads outside the source folder",
    "empty": "the file has no bytes",
    "not_media": "no container format that is read, or its headers are damaged",
    "no_video": "no video stream, or no picture could be decoded",
    "truncated": "the picture ends well before the time that the file announces",
    "damaged": "more pictures are damaged than allowed",
    "bad_interval": "the interval is empty, reversed, or lies outside the video",
    "clock_jumps": "parts with clocks of their own were joined into one file, so that a time means several moments",
    "cut_mismatch": "what was cut does not show the pictures or the sound that were asked for",
    "audio_length": "sound and picture are not equally long (--audio-length, --audio-gap-seconds, --audio-gap-share)",
    "picture_gap": "a picture stays on the screen for longer than allowed: others were lost (--picture-gap-seconds)",
    "audio_damaged": "the sound cannot be decoded",
    "too_many_pixels": "a picture has more pixels than allowed (--max-megapixels)",
    "too_long": "the clip lasts longer than allowed (--max-seconds)",
    "too_many_bytes": "the clip, or what is decoded of it, takes more memory than allowed",
    "timeout": "preparing the clip took longer than allowed (--timeout)",
    "crashed": "the process that prepared the clip died",
    "no_face": "no face was found, and such clips were to be dropped",
    "duplicate_key": "another clip has the same key: rename one",
    "bad_label": "a label does not fit the schema",
    "bad_row": "a field of the clip's row in the table cannot be used",
    "bad_text": "the transcript beside the clip is in another encoding: name it with --encoding",
}

_ROUNDING = 0.002  # seconds: edit lists count in milliseconds

# What looks for faces: of OpenCV (`shards.media.faces`), or MediaPipe's (`shards.media.face_detector`).
CASCADES, DETECTOR = "cascades", "detector"
FINDERS = (CASCADES, DETECTOR)

# What to do where the sound is longer or shorter than the picture.
AUDIO_LENGTHS = {
    "refuse": "quarantine a clip whose sound differs from the picture by more than the allowed gap; else as `pad`",
    "pad": "give the sound the picture's length: silence where it ends early, cut where it continues",
    "cut": "end the clip where the shorter of sound and picture ends",
}


class MediaError(ValueError):
    """A clip that can't be used. `reason` is one of `REASONS`; the message says what was found."""

    def __init__(self, reason: str, message: str):
        assert reason in REASONS, reason
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.reason, str(self)))


@dataclass(frozen=True)
class Limits:
    """Checked against what a file claims before memory is taken, and against what it really holds while it is decoded.

    max_pixels: of one picture. max_seconds: of a clip (not of the file that an interval is cut from).
    max_decoded_bytes: of all that one clip leaves in memory, decoded or encoded. max_damaged_share: of a clip's
    pictures that may be undecodable or marked corrupt; such pictures are never used. audio_gap_seconds and
    audio_gap_share: sound may be longer or shorter than the picture by their sum. picture_gap_seconds: for which a
    picture of a clip may stay until the next one. max_preroll_seconds: a cut by copying begins at the key frame before
    the interval; where that lies further back than this, the interval is encoded again.
    """

    max_pixels: int = 4096 * 2304
    max_seconds: float = 300.0
    max_decoded_bytes: int = 1 << 30
    max_damaged_share: float = 0.02
    audio_gap_seconds: float = 0.5
    audio_gap_share: float = 0.05
    picture_gap_seconds: float = 1.0
    max_preroll_seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            positive = field.name.startswith(("max", "picture")) and "share" not in field.name
            if not value >= 0 or (positive and value <= 0):
                raise ValueError(f"limit {field.name} is {value!r}, expected a positive number")
        if self.max_damaged_share >= 1:
            raise ValueError(f"limit max_damaged_share is {self.max_damaged_share!r}, expected a share below 1")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check_pixels(self, width: int, height: int) -> None:
        """Raise MediaError for a picture of no size or of more than `max_pixels`."""
        if width <= 0 or height <= 0:
            raise MediaError("no_video", f"the video stream has no picture size ({width} x {height})")
        if width * height > self.max_pixels:
            raise MediaError(
                "too_many_pixels",
                f"{width} x {height} is {width * height / 1e6:.1f} megapixels, allowed are {self.max_pixels / 1e6:.1f}",
            )

    def check_seconds(self, seconds: float) -> None:
        """Raise MediaError for a clip longer than `max_seconds`."""
        if seconds > self.max_seconds:
            raise MediaError("too_long", f"{seconds:.1f} s, allowed are {self.max_seconds:g} s")

    def check_bytes(self, count: float, what: str) -> None:
        """Raise MediaError where `what` would take more than `max_decoded_bytes`."""
        if count > self.max_decoded_bytes:
            raise MediaError(
                "too_many_bytes",
                f"{what} would take {count / 2**20:.0f} MiB, allowed are {self.max_decoded_bytes / 2**20:.0f} MiB",
            )

    def check_audio_length(self, audio_seconds: float, video_seconds: float) -> None:
        """Raise MediaError where sound and picture differ by more than the allowed gap."""
        allowed = self.audio_gap_seconds + self.audio_gap_share * video_seconds
        if abs(audio_seconds - video_seconds) > allowed:
            raise MediaError(
                "audio_length",
                f"sound lasts {audio_seconds:.2f} s, the picture {video_seconds:.2f} s; "
                f"they may differ by {allowed:.2f} s",
            )

    def check_picture_gap(self, stay: float, at: float) -> None:
        """Raise MediaError where a picture shown at `at` seconds of the file stays for longer than allowed."""
        if stay > self.picture_gap_seconds + _ROUNDING:
            raise MediaError(
                "picture_gap",
                f"the picture at {at:.2f} s stays for {stay:.2f} s, allowed are {self.picture_gap_seconds:g} s: either "
                "pictures are missing, or nothing moves there (slides, a screen recording): then allow more with "
                "--picture-gap-seconds",
            )
