"""Heads and tasks of one configuration; a forward pass returns each task's share of the loss.

Shape suffixes: B rows of this rank, M modalities, D feature width, R representation, P projection.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from conclugen import random
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.heads import GatedUnit, Linear, Projection, RepresentationHead
from conclugen.latents import Latents, Presence
from conclugen.losses.clustering import Clustering
from conclugen.losses.contrastive import Contrastive
from conclugen.losses.reconstruction import Reconstruction
from conclugen.losses.simclr import Simclr
from conclugen.standardize import Standardize


class Model(nn.Module):
    """Only what the active tasks need exists: the projection for contrastive, clustering and simclr, decoders for
    reconstruction.

    All values are set from the configuration's seed and each map's name, so a task more or less changes no other's
    start.
    """

    def __init__(self, config: PretrainConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        model, tasks = config.model, config.tasks
        self.widths = {m: widths[m] for m in config.modalities}
        self.standardize = nn.ModuleDict()
        if model.standardize:
            for modality, width in self.widths.items():
                self.standardize[modality] = Standardize(width, model.input_clip)
        self.heads = nn.ModuleDict(
            {
                m: RepresentationHead(
                    width, model.representation_dim, model.representation_activation, m in model.own_width_modalities
                )
                for m, width in self.widths.items()
            }
        )
        self.latent_tasks = [name for name in tasks.active if name != "simclr"]
        self.projected = tasks.contrastive is not None or tasks.clustering is not None
        self.projection = Projection(model) if self.projected or tasks.simclr is not None else None
        self.tasks = nn.ModuleDict()
        if tasks.contrastive is not None:
            self.tasks["contrastive"] = Contrastive(tasks.contrastive)
        if tasks.clustering is not None:
            self.tasks["clustering"] = Clustering(
                tasks.clustering, model.projection_dim, config.global_batch, config.seed
            )
        if tasks.reconstruction is not None:
            self.tasks["reconstruction"] = Reconstruction(
                tasks.reconstruction, self.widths, model.representation_dim, model.reconstruction_hidden_dim
            )
        if tasks.simclr is not None:
            self.tasks["simclr"] = Simclr(tasks.simclr)

    def initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.initialise(self.config.seed, name)
        if self.config.model.initialisation == "orthogonal":
            for modality, head in self.heads.items():
                unit = head.unit
                assert isinstance(unit, GatedUnit)
                unit.input.initialise_orthogonal(self.config.seed, f"heads.{modality}.unit.input", math.sqrt(2))
                unit.output.initialise_orthogonal(self.config.seed, f"heads.{modality}.unit.output", 1.0)

    @property
    def clustering(self) -> Clustering | None:
        module = dict(self.tasks.items()).get("clustering")
        assert module is None or isinstance(module, Clustering)
        return module

    @property
    def scale(self) -> Tensor | None:
        """The contrastive task's inverse temperature, where it is learned."""
        module = dict(self.tasks.items()).get("contrastive")
        scale = module.scale() if isinstance(module, Contrastive) else None
        return scale if isinstance(scale, Tensor) else None

    def task_active(self, name: str, epoch: int) -> bool:
        return self.clustering is None or name != "clustering" or self.clustering.active(epoch)

    def forward(self, batch: Batch, step: int, epoch: int) -> dict[str, Tensor]:
        """This rank's share of each task's loss, by name; a task that is not active yet gives a zero with a gradient
        path."""
        shares: dict[str, Tensor] = {}
        if self.latent_tasks:
            latents = self.latents(batch, step, epoch)
            for name in self.latent_tasks:
                # Decoders are heads and run in the heads' precision; the other tasks are losses alone.
                with self._autocast(batch, name == "reconstruction"):
                    shares[name] = self.tasks[name](latents)
        if "simclr" in self.tasks:
            shares["simclr"] = self._simclr_share(batch, step)
        return shares

    def latents(self, batch: Batch, step: int, epoch: int) -> Latents:
        modalities = self.config.modalities
        contrastive = self.config.tasks.contrastive
        by_group = contrastive is not None and contrastive.negatives == "same_group"
        presence = Presence.of(batch, modalities, by_group)
        targets = {m: self.standardized(m, batch.features[m]) for m in modalities}
        with self._autocast(batch):
            representations = {
                m: self.heads[m](self._masked(x, batch.row, step, f"mask {m}", self.config.model.feature_mask))
                for m, x in targets.items()
            }
            projections = None
            if self.projected:
                assert self.projection is not None
                stacked_MBR = torch.stack([representations[m] for m in modalities])
                projections = self.projection(stacked_MBR, presence.local).to(targets[modalities[0]].dtype)
        return Latents(modalities, targets, representations, projections, presence, step, epoch)

    def standardized(self, modality: str, x_BD: Tensor) -> Tensor:
        return self.standardize[modality](x_BD) if modality in self.standardize else x_BD

    def represent(self, modality: str, x_BD: Tensor) -> Tensor:
        """Representation (B, R) of raw features."""
        r: Tensor = self.heads[modality](self.standardized(modality, x_BD))
        return r

    def total(self, losses: Mapping[str, Tensor], epoch: int) -> Tensor:
        """The weighted mean of the losses, or of their shares, by `TasksConfig.divisor`."""
        configs = self.config.tasks.active
        published = self.config.tasks.divisor == "active"
        if published and len(configs) == 1:
            return next(iter(losses.values()))
        active = [name for name in configs if self.task_active(name, epoch)]
        weighted = [losses[name] * (configs[name].weight if name in active else 0.0) for name in configs]
        return torch.stack(weighted).sum() / (max(1, len(active)) if published else len(configs))

    def _simclr_share(self, batch: Batch, step: int) -> Tensor:
        config = self.config.tasks.simclr
        assert config is not None and self.projection is not None
        modality, second = config.modality, config.second_view
        present = batch.present[modality]
        first = self.standardized(modality, batch.features[modality])
        if second is None:
            views = [self._masked(first, batch.row, step, f"simclr view {v}", config.mask) for v in (1, 2)]
        else:
            views = [first, self.standardized(modality, batch.features[second])]
            present = present & batch.present[second]
        presence = Presence.of(Batch({}, {modality: present}, batch.row), (modality,))
        with self._autocast(batch):
            r_2BR = torch.stack([self.heads[modality](x) for x in views])
            z_2BP = self.projection(r_2BR, presence.local.expand(2, -1)).to(first.dtype)
        with self._autocast(batch, False):
            share: Tensor = self.tasks["simclr"](z_2BP, presence.local[0], presence.all[0], presence.offset)
        return share

    def _masked(self, x_BD: Tensor, row_B: Tensor, step: int, purpose: str, share: float) -> Tensor:
        """Set a drawn `share` of the features to 0 during training: after standardisation, to their mean."""
        if not self.training or share == 0:
            return x_BD
        draws_BD = random.uniform(self.config.seed, purpose, step, row_B, x_BD.shape[1], dtype=torch.float32)
        return x_BD * (draws_BD >= share)

    def _autocast(self, batch: Batch, enabled: bool = True) -> torch.autocast:
        lower = enabled and self.config.precision == "bfloat16"
        return torch.autocast(batch.row.device.type, dtype=torch.bfloat16, enabled=lower)
