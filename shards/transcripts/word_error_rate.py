"""`python -m shards.transcripts.word_error_rate FOLDER`: how wrong a recogniser is on clips whose words are known.

FOLDER holds clip shards whose transcripts are the set's own. The rate is the number of wrong, missing and additional
words over the number of words that were said, so it can exceed 100 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from shards.clips.reader import ClipManifest, ClipReader, StoredClip
from shards.media.audio import read_audio
from shards.transcripts.recogniser import BACKENDS, Recogniser, create_recogniser, word_error_rate


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


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status: 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser("python -m shards.transcripts.word_error_rate", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="clip shards with transcripts of their own")
    parser.add_argument("--transcribe", default="pocketsphinx", metavar="NAME", help=f"one of {', '.join(BACKENDS)}")
    parser.add_argument("--speech-model", metavar="NAME|FOLDER")
    parser.add_argument("--grammar", metavar="grid|FILE", help="also with this grammar, beside free speech")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N clips only")
    args = parser.parse_args(argv)
    try:
        clips = list(known_clips(args.folder, args.limit))
        for grammar in dict.fromkeys((None, args.grammar)):
            rate, heard = compare(clips, create_recogniser(args.transcribe, args.speech_model, grammar))
            for key, said, text in heard:
                print(f"  {key}: said {said!r}, heard {text!r}")
            label = "free speech" if grammar is None else f"only sentences of the grammar {grammar}"
            print(f"{args.transcribe}, {label}: word error rate {rate:.1%} on {len(heard)} clips", flush=True)
    except (ValueError, OSError) as error:
        print(f"python -m shards.transcripts.word_error_rate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
