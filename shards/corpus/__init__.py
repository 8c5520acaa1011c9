"""A corpus of talking faces, rendered: raw video with sound, labels and transcripts, with no download.

A few speakers (face and voice drawn once for each) act six emotions in short sentences. The emotion swells up in face
and voice and dies down again, stronger in some clips than in others; most sentences fit it. Light, background, camera,
noise and loudness change from clip to clip, so that no clip tells its emotion by one number.

Neither trivial nor random: a linear probe on all features of the offline encoders reaches 0.71 [0.55, 0.89] with all
labels on speakers not met before, where chance is 0.17 (seed 0, 95 % interval over speakers), and 0.46 to 0.54 on small
corpora of three seeds (8 speakers, 2 takes): figures and commands are in docs/lab/performance.md.
"""

from __future__ import annotations

from pathlib import Path

MARK = ".conclugen-corpus"
"""Stands in the folder of a rendered corpus."""


def is_rendered(folder: Path) -> bool:
    """Whether the clips of a folder are of a rendered corpus: it is one, or the folder of clips within."""
    return any((place / MARK).is_file() for place in (folder, folder.absolute().parent))
