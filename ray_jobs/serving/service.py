"""The model behind the server: rows of features or a clip in, plain data out. Knows no HTTP and no Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conclugen.common import paths, uris
from conclugen.encoders import Encoder
from ray_jobs.embedding.clips import Windows, embed_file
from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.extract import choices_of
from ray_jobs.options.extract import EncoderOptions
from ray_jobs.options.serve import ServeJob
from ray_jobs.provenance import stamp_of
from ray_jobs.run_folder import RunFolder
from ray_jobs.serving.requests import UNUSABLE, Features, RefusedError, answer
from shards.media.isolated import IsolatedPreparer
from shards.media.limits import Limits, MediaError


@dataclass
class Service:
    """A run's model, its probe and its encoders. without_clips: why no clips are taken; None where they are."""

    model: RunModel
    fusion: str
    encoders: Sequence[Encoder]
    windows: Windows
    limits: Limits
    timeout_s: float
    without_clips: str | None = None

    def __post_init__(self) -> None:
        self._preparer = IsolatedPreparer(timeout=self.timeout_s)
        self._one_clip = threading.Lock()  # the child that decodes serves one at a time

    @classmethod
    def open(cls, job: ServeJob) -> Service:
        """The model of a finished run. ValueError as `ray_jobs.embed` has it: no such run, label, fusion, weights."""
        torch.set_num_threads(job.cpus)
        folder = RunFolder(paths.absolute(job.output, "output") / job.run)
        model = RunModel.open(folder, job.label, evaluation=job.evaluation)
        model.embedder.check_fusion(job.fusion)
        windows = Windows(job.window, job.stride)
        # Somebody wants this very clip, whose pictures may stand still (slides), as `embed` has it.
        limits = Limits(max_seconds=job.max_seconds, picture_gap_seconds=job.max_seconds)
        service = cls(model, job.fusion, (), windows, limits, job.timeout_s)
        if not job.clips:
            return replace(service, without_clips="clips are not taken here (--no-clips)")
        try:
            names = model.encoder_names
        except ValueError as error:  # such a run can't encode clips, and its features serve all the same
            return replace(service, without_clips=str(error))
        options = EncoderOptions(plugin=job.plugin, weights=job.weights, mirror=job.mirror)
        encoders = [choice.create("cpu") for choice in choices_of(names, options, model.provided)]
        model.check([encoder.info for encoder in encoders])
        return replace(service, encoders=encoders)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.probe.classes if self.model.probe is not None else ()

    def describe(self) -> dict[str, Any]:
        """What the model takes and gives."""
        found: dict[str, Any] = {
            "status": "ok",
            "run": self.model.name,
            "features": dict(self.model.embedder.widths),
            "fusion": self.fusion,
            "width": self.model.embedder.width(self.fusion),
            "clips": self.without_clips is None,
        }
        if self.model.probe is not None:
            found |= {"label": self.model.probe.label, "classes": list(self.classes)}
        stamp = stamp_of(self.model.embedder.info)
        return found | ({"note": stamp} if stamp else {})

    def embed(self, asked: Sequence[Features]) -> list[dict[str, Any]]:
        """An answer for each request; all of their rows go through the model together."""
        whole = {name: np.concatenate([features[name] for features in asked]) for name in asked[0]}
        vectors, probabilities = self.model.represent(whole, self.fusion)
        present = {name: ~np.isnan(x).any(axis=1) for name, x in whole.items()}
        nearer = self.model.nearer(whole)
        answers, start = [], 0
        for features in asked:
            rows = slice(start, start + len(next(iter(features.values()))))
            answers.append(
                answer(
                    vectors[rows],
                    None if probabilities is None else probabilities[rows],
                    {name: there[rows] for name, there in present.items()},
                    {name: share[rows] for name, share in nearer.items()},
                    self.classes,
                )
            )
            start = rows.stop
        return answers

    def clip(self, path: Path, text: str | None, windows: bool) -> dict[str, Any]:
        """The answer for a video file: its first entry is the clip as a whole, those of its windows follow; `times` are
        their seconds. RefusedError for one that can't be used, with the reason's name."""
        if self.without_clips is not None:
            raise RefusedError(UNUSABLE, self.without_clips)
        cut = self.windows if windows else None
        with self._one_clip:
            try:
                found = embed_file(
                    self.model, self.encoders, self._preparer, str(path), self.fusion, cut, text, self.limits
                )
            except MediaError as error:
                said = str(uris.scrub(error)).replace(str(path), "the clip")
                raise RefusedError(UNUSABLE, f"{error.reason}: {said}", error.reason) from None
        shown = answer(found.embeddings, found.probabilities, found.present, found.nearer, self.classes)
        return {"times": [list(stretch) for stretch in found.stretches], **shown}

    def close(self) -> None:
        """End the child that decodes."""
        self._preparer.__exit__(None, None, None)
