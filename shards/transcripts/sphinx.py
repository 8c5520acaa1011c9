"""pocketsphinx: its English model and dictionary come inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shards.transcripts.recogniser import Transcript

_GRAMMARS = ("grid",)


def create(model: str | None, grammar: str | None, device: str) -> Sphinx:
    """grammar: None for free speech, `grid` for that corpus's sentences, or a JSGF file. ValueError for a model name
    (there is one model only) or a grammar that can't be read."""
    if model is not None:
        raise ValueError(f"--speech-model {model}: pocketsphinx has one model only, leave it out")
    return Sphinx(grammar)


class Sphinx:
    """Free speech (`pocketsphinx`), or only the sentences of a grammar (`pocketsphinx+NAME`).

    Free transcripts are low-confidence, all of them: on short clips most of their words are wrong, and the posterior
    probabilities do not tell which. With a grammar the caller has said what can be heard, and is taken at his word.
    """

    def __init__(self, grammar: str | None = None) -> None:
        self._free = grammar is None
        self.name = "pocketsphinx" if grammar is None else f"pocketsphinx+{Path(grammar).stem}"
        self._decoder = _decoder(grammar)

    def __call__(self, samples: np.ndarray) -> Transcript:
        """(N,) float32 at 16 kHz to words; confidence is the mean posterior probability of the words."""
        pcm = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype("<i2").tobytes()
        decoder = self._decoder
        decoder.reinit_feat()  # else the mean of the last clip's cepstra goes into this one
        decoder.start_utt()
        if pcm:
            decoder.process_raw(pcm, no_search=False, full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        if best is None or not best.hypstr.strip():
            return Transcript(None, self.name, 0.0, True)
        spoken = [segment.prob for segment in decoder.seg() if segment.word[0] not in "<["]
        confidence = float(np.clip(np.mean(spoken), 0.0, 1.0)) if spoken else 0.0
        return Transcript(best.hypstr.strip(), self.name, round(confidence, 4), self._free)


def _decoder(grammar: str | None) -> Any:
    try:
        from pocketsphinx import Decoder, get_model_path
    except ImportError as error:
        raise ValueError(f'pocketsphinx is not installed ({error}): pip install "conclugen[media]"') from None
    if grammar is None:
        return Decoder(samprate=16_000, loglevel="FATAL", lm=get_model_path("en-us/en-us.lm.bin"))
    text = _grid_grammar() if grammar in _GRAMMARS else _read(Path(grammar))
    decoder = Decoder(samprate=16_000, loglevel="FATAL", lm=None)
    try:
        decoder.add_jsgf_string("given", text)
        decoder.activate_search("given")
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"--grammar {grammar} is not a JSGF grammar of words in the dictionary: {error}") from None
    return decoder


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--grammar {path}: expected {', '.join(_GRAMMARS)} or a JSGF file: {error}") from None


def _grid_grammar() -> str:
    from shards.adapters.grid import SLOTS

    slots = " ".join(f"({' | '.join(words.values())})" for words in SLOTS.values())
    return f"#JSGF V1.0;\ngrammar grid;\npublic <sentence> = {slots};\n"
