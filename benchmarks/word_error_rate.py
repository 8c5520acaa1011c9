"""`python -m benchmarks.word_error_rate FOLDER`: how wrong a recogniser is on clips whose words are known."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from conclugen.common.options import GOOD, Command
from shards.clips.reader import ClipManifest, ClipReader, StoredClip
from shards.media.audio import read_audio
from shards.transcripts.recogniser import Recogniser, create_recogniser


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes within words stay."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Fewest substitutions, deletions and insertions that turn one into the other (Levenshtein distance on words)."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, heard in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(diagonal + (expected != heard), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_error_rate(pairs: Iterable[tuple[str, str | None]]) -> float:
    """Errors of all (reference, hypothesis) pairs over the words of all references; ValueError where there are none."""
    errors = count = 0
    for reference, hypothesis in pairs:
        expected = words(reference)
        errors += word_errors(expected, words(hypothesis or ""))
        count += len(expected)
    if not count:
        raise ValueError("no reference has a word: there is nothing to compare with")
    return errors / count


def known_clips(folder: str, limit: int | None) -> Iterator[StoredClip]:
    """Clips with sound and a transcript of their own, at most `limit`."""
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
    clips = list(known_clips(job.data, job.limit))
    for grammar in dict.fromkeys((None, job.grammar)):
        rate, heard = compare(clips, create_recogniser(job.transcribe, job.speech_model, grammar))
        for key, said, text in heard:
            print(f"  {key}: said {said!r}, heard {text!r}")
        label = "free speech" if grammar is None else f"only sentences of the grammar {grammar}"
        print(f"{job.transcribe}, {label}: word error rate {rate:.1%} on {len(heard)} clips", flush=True)
    return GOOD


COMMAND = Command("benchmarks.word_error_rate", RateJob, run, bare="data")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
