"""ConCluGen: self-supervised representations of human communication from video, audio and text of the same clip."""

from conclugen import presets, standardize
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.export import Embedder, load
from conclugen.pretrainer import NonFiniteLossError, Pretrainer

__all__ = ["Batch", "Embedder", "NonFiniteLossError", "PretrainConfig", "Pretrainer", "load", "presets", "standardize"]
