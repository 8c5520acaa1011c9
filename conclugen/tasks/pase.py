"""Workers: clean columns of the data set, told from the representation of a distorted clip (PASE+).

With r_i the representation of row i's distorted features of one modality, t_w,i the column w of the clean clip,
standardised over the global batch, D_w its width, and n_w the rows that have both:

    L = mean_w  1 / (n_w D_w)  sum_i  | worker_w(r_i) - t_w,i |^2

Ravanelli et al. 2020 (arXiv 2001.09239): small workers behind one encoder regress what signal processing knows of the
clean signal (prosody, spectra), while the encoder hears it distorted; so the representation must hold these, and not
the distortion. Ours: workers read a clip's feature, not frames, for encoders are frozen; each is the model's kind of
decoder; without a stored distorted clip the features are masked, or those of other rows take their place.

Shape suffixes: B rows of this rank, R representation, D width of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conclugen.fields import IDENTITY, SCHEDULABLE, choose, require
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, View, check_weight
from conclugen.tasks.deferred import heads, nn, torch
from conclugen.tasks.reconstruction import squared_errors

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents

DISTORTIONS = ("zeros", "same_group", "all")
_MASK = 0.3


@dataclass(frozen=True)
class PaseConfig:
    """Squared error of clean columns, told from a distorted clip's representation.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        modality: Whose representation the workers read.
        targets: The data's modalities that they tell, such as prosody and spectrum; none: the clean features of
            `modality` itself.
        distorted: The data's modality that holds the features of the distorted clip, as wide as `modality`; None: they
            are made by `mask` alone.
        mask: Share of the features that is distorted as well, drawn for each row and step.
        distortion: What these become: "zeros", or those of another row of the "same_group" (a speaker), or of "all".
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    modality: str = field(default="audio", metadata=IDENTITY)
    targets: tuple[str, ...] = field(default=(), metadata=IDENTITY)
    distorted: str | None = field(default=None, metadata=IDENTITY)
    mask: float = field(default=_MASK, metadata=IDENTITY)
    distortion: str = field(default="zeros", metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("pase", self.weight)
        need = "0 <= share < 1" if self.distorted else "0 < share < 1, for no distorted clip is named"
        require(0 <= self.mask < 1 and (self.mask > 0 or bool(self.distorted)), "tasks.pase.mask", self.mask, need)
        choose("tasks.pase.distortion", self.distortion, DISTORTIONS)
        require(len(set(self.targets)) == len(self.targets), "tasks.pase.targets", self.targets, "distinct names")
        remedy = f"another than {self.modality!r}, or null"
        require(self.distorted != self.modality, "tasks.pase.distorted", self.distorted, remedy)
        require(self.distorted not in self.targets, "tasks.pase.targets", self.targets, "clean columns alone")


class Pase(Task):
    """One worker for each column."""

    name, title = "pase", "workers on a distorted clip (PASE+)"
    Config = PaseConfig
    order = 110
    row_wise = True
    lower_precision = True
    searched = (
        Searched(
            "pase_mask",
            "tasks.pase.mask",
            Range(0.1, 0.7, log=False),
            Range(0.2, 0.6, log=False),
            "Share of the features that the pase task distorts.",
        ),
    )
    variants = {"rows of the speaker": {"distortion": "same_group"}, "named columns": {"targets": ("video", "text")}}

    @classmethod
    def inputs(cls, config: PaseConfig, modalities: tuple[str, ...]) -> Inputs:
        choose("tasks.pase.modality", config.modality, modalities)
        swap = "" if config.distortion == "zeros" or not config.mask else config.distortion
        name, source = "pase distorted", config.distorted or config.modality
        views = (View(name, config.modality, source, config.mask, name, swap),)
        targets = config.targets or (config.modality,)
        return Inputs(views, needs_groups=swap == "same_group", masked_by="mask", targets=targets)

    @classmethod
    def adapted(cls, config: PaseConfig, modalities: tuple[str, ...]) -> PaseConfig:
        """Workers on the first modality that is learned, where there is no audio."""
        known = config.modality in modalities or not modalities
        return config if known else replace(config, modality=modalities[0])

    @classmethod
    def without_training_views(cls, config: PaseConfig) -> PaseConfig:
        """Labelled shards need hold neither the distorted clip nor the columns."""
        return replace(config, distorted=None, targets=(), mask=config.mask or _MASK)

    @classmethod
    def flops(cls, config: PaseConfig, run: Run, widths: Mapping[str, int]) -> int:
        R, H = run.model.representation_dim, run.model.reconstruction_hidden_dim
        told = config.targets or (config.modality,)
        return run.global_batch * sum(6 * (R * H + H * widths[name]) for name in told)

    @classmethod
    def build(cls, config: PaseConfig, run: Run, widths: Mapping[str, int]) -> Pase:
        told = {name: widths[name] for name in config.targets or (config.modality,)}
        return cls(config, told, run.model.representation_dim, run.model.reconstruction_hidden_dim)

    def __init__(self, config: PaseConfig, widths: Mapping[str, int], representation_dim: int, hidden_dim: int) -> None:
        super().__init__(config)
        workers = {name: heads.Decoder(representation_dim, hidden_dim, width, "none") for name, width in widths.items()}
        self.workers = nn.ModuleDict(workers)

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        for worker in self.workers.values():
            worker.compile(**options)

    def forward(self, latents: Latents) -> Tensor:
        presence, (view,) = latents.presence, latents.modalities
        shares = []
        for number, (name, worker) in enumerate(self.workers.items(), 1):
            told_BD = worker(latents.representations[view])
            with torch.autocast(told_BD.device.type, enabled=False):
                truth_BD = latents.targets[name]
                valid_B = presence.local[0] & presence.local[number]
                count = (presence.all[0] & presence.all[number]).sum().clamp(min=1)
                error_B = squared_errors(told_BD.to(truth_BD.dtype), truth_BD, valid_B)
                self.note(name, error_B / len(self.workers), valid_B, presence)
                shares.append(error_B.sum() / count)
        return torch.stack(shares).mean()
