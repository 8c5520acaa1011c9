"""`python -m shards.transcripts.word_error_rate FOLDER`: how wrong a recogniser is on clips whose words are known."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conclugen.common.options import GOOD, Command

if TYPE_CHECKING:  # media libraries: not before a wrong option has been refused
    from shards.clips.reader import StoredClip
    from shards.transcripts.recogniser import Recogniser


def known_clips(folder: str, limit: int | None) -> Iterator[StoredClip]:
    """Clips with sound and a transcript of their own, at most `limit`."""
    from shards.clips.reader import ClipManifest, ClipReader

    reader = ClipReader(ClipManifest.open(folder))
    given = 0
    for shard in range(len(reader.manifest)):
        for clip in reader.clips(shard):
            transcript = clip.info.get("transcript") or {}
            if clip.text is None or clip.sound is None or transcript.get("source") != "own":
                continue
            if limit is not None and given == limit:
                return
            given += 1
            yield clip


def compare(clips: Sequence[StoredClip], recogniser: Recogniser) -> tuple[float, list[tuple[str, str, str | None]]]:
    """Word error rate, and (key, said, heard) of every clip."""
    from shards.media.audio import read_audio
    from shards.transcripts.recogniser import word_error_rate

    heard = []
    for clip in clips:
        sound = read_audio(clip.sound or b"")
        assert sound is not None and clip.text is not None
        heard.append((clip.key, clip.text, recogniser(sound.samples).text))
    return word_error_rate((said, text) for _, said, text in heard), heard


@dataclass(frozen=True, kw_only=True)
class RateJob:
    """How wrong a recogniser is on clips whose words are known.

    The rate is the number of wrong, missing and additional words over the number of words that were said, so it can
    exceed 100 %.

    Attributes:
        data: Clip shards with transcripts of their own; given without an option.
        transcribe: Recogniser that is measured: pocketsphinx or whisper.
        speech_model: Model of the recogniser: a name or a folder; none: its own.
        grammar: Measure with this grammar too, beside free speech: grid, or a JSGF file.
        limit: The first clips only, so many; none: all.
    """

    data: str
    transcribe: str = "pocketsphinx"
    speech_model: str | None = None
    grammar: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: must be at least 1, got {self.limit}")


def run(job: RateJob) -> int:
    """Print what was said and heard of every clip, and the rate; returns the exit status."""
    from shards.transcripts.recogniser import create_recogniser

    clips = list(known_clips(job.data, job.limit))
    for grammar in dict.fromkeys((None, job.grammar)):
        rate, heard = compare(clips, create_recogniser(job.transcribe, job.speech_model, grammar))
        for key, said, text in heard:
            print(f"  {key}: said {said!r}, heard {text!r}")
        label = "free speech" if grammar is None else f"only sentences of the grammar {grammar}"
        print(f"{job.transcribe}, {label}: word error rate {rate:.1%} on {len(heard)} clips", flush=True)
    return GOOD


COMMAND = Command("shards.transcripts.word_error_rate", RateJob, run, bare="data")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
