"""A corpus of talking faces, rendered: raw video with sound, labels and transcripts, with no download."""

from shards.corpus.emotions import EMOTIONS
from shards.corpus.writing import ClipPlan, ClipRow, CorpusConfig, RenderedClip, render, write_clip, write_corpus

__all__ = ["EMOTIONS", "ClipPlan", "ClipRow", "CorpusConfig", "RenderedClip", "render", "write_clip", "write_corpus"]
