"""Sentences that are spoken: most of them fit the emotion, some would fit any or another one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from shards.corpus.emotions import EMOTIONS

# Of an emotion's clips: sentences of its own, of no emotion in particular, and of any emotion at all.
OWN, PLAIN = 0.6, 0.25
_SENTENCES = {
    "angry": ("leave {} alone", "stop touching {}", "who broke {} again", "I have had enough of {}"),
    "fearful": ("don't go near {}", "something hides behind {}", "I am scared of {}", "did you hear {}"),
    "happy": ("I am so glad about {}", "{} looks wonderful", "we finally got {}", "I just love {}"),
    "neutral": ("{} is on the left", "they moved {} on Monday", "we keep {} in the hall", "I walked past {}"),
    "sad": ("I miss {} so much", "they took {} away", "we have lost {} for good", "nobody remembers {}"),
    "surprised": ("where did {} come from", "I never expected {}", "oh, is that {}", "how can this be {}"),
}
_THINGS = (
    "the old piano",
    "my letter",
    "the green door",
    "your coat",
    "the last train",
    "our kitchen",
    "the garden",
    "that photograph",
)
assert set(_SENTENCES) == set(EMOTIONS)
_SYLLABLE = re.compile(r"([^aeiouy]*)([aeiouy]+)(?:[^aeiouy]+$)?")


@dataclass(frozen=True)
class Syllable:
    """consonant: the letters before the vowel (may be empty); vowel: its first letter; first: of a word."""

    consonant: str
    vowel: str
    first: bool


def draw_sentence(rng: np.random.Generator, emotion: str) -> str:
    """A sentence for a clip of that emotion."""
    kind = rng.random()
    spoken = emotion if kind < OWN else "neutral" if kind < OWN + PLAIN else str(rng.choice(list(_SENTENCES)))
    return str(rng.choice(_SENTENCES[spoken])).format(rng.choice(_THINGS))


def syllables(sentence: str) -> list[Syllable]:
    """The sentence's syllables by its spelling: consonants, then vowels. ValueError where there are none."""
    found = []
    for word in re.findall(r"[a-z]+", sentence.lower().replace("'", "")):
        # A silent e at the end makes no syllable of its own.
        spoken = word[:-1] if re.search(r"[aeiouy][^aeiouy]+e$", word) else word
        found += [Syllable(m[1], m[2][0], not i) for i, m in enumerate(_SYLLABLE.finditer(spoken))]
    if not found:
        raise ValueError(f"the sentence {sentence!r} has no syllable to speak")
    return found
