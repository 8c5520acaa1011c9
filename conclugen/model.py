"""Heads and tasks of one configuration; a forward pass returns each task's share of the loss.

Shape suffixes: B rows of this rank, M modalities, D feature width, R representation, P projection.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from conclugen import compilation, distributed, random
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.heads import GatedUnit, Linear, Projection, RepresentationHead
from conclugen.latents import Latents, Presence
from conclugen.losses.clustering import Clustering
from conclugen.losses.contrastive import Contrastive
from conclugen.losses.reconstruction import Reconstruction
from conclugen.losses.simclr import Simclr
from conclugen.standardize import Standardize

ROW_TASKS = ("reconstruction",)
"""Tasks whose loss is a sum over rows of what each row gives by itself; the others compare rows."""
_VIEWS = ("simclr view 1", "simclr view 2")
_SECOND_VIEW = "simclr second view"


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
        projected = any(name not in ROW_TASKS for name in tasks.active)
        self.projection = Projection(model) if projected else None
        self.tasks = nn.ModuleDict()
        tf32 = config.precision == "bfloat16"
        if tasks.contrastive is not None:
            self.tasks["contrastive"] = Contrastive(tasks.contrastive, tf32)
        if tasks.clustering is not None:
            self.tasks["clustering"] = Clustering(
                tasks.clustering, model.projection_dim, config.global_batch, config.seed
            )
        if tasks.reconstruction is not None:
            self.tasks["reconstruction"] = Reconstruction(
                tasks.reconstruction, self.widths, model.representation_dim, model.reconstruction_hidden_dim
            )
        if tasks.simclr is not None:
            self.tasks["simclr"] = Simclr(tasks.simclr, tf32)
        if not any(name in ROW_TASKS for name in tasks.active):
            self._fix_biases_that_batch_norm_removes()

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

    def compile_regions(self) -> None:
        """From now on compile what `conclugen.compilation` names; the state and the names in it stay as they are.

        Inputs, representations, reconstruction and blocks of similarities concern this rank alone. The projection holds
        batch norm's collective and is compiled where there is one rank.
        """
        options = compilation.options()
        for name in ("inputs", "encode", *(["project"] if distributed.world_size() == 1 else [])):
            setattr(self, name, torch.compile(getattr(self, name), **options))
        for task in self.tasks.values():
            if isinstance(task, Reconstruction):
                task.compile(**options)
            elif isinstance(task, Contrastive | Simclr):
                task.sweep = replace(task.sweep, compiled=True)

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

    def active_tasks(self, epoch: int) -> list[str]:
        """The tasks that count in this epoch."""
        clustering = self.clustering
        return [name for name in self.tasks if name != "clustering" or clustering is None or clustering.active(epoch)]

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that have gradients, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_by(self, tasks: Sequence[str]) -> set[Tensor]:
        """The parameters that the losses of these tasks reach."""
        parts: list[nn.Module] = [self.tasks[name] for name in tasks]
        for name in tasks:
            simclr = self.config.tasks.simclr if name == "simclr" else None
            parts.append(self.heads if simclr is None else self.heads[simclr.modality])
            if self.projection is not None and name not in ROW_TASKS:
                parts.append(self.projection)
        return {parameter for part in parts for parameter in part.parameters()}

    def forward(self, batch: Batch, step: int, epoch: int) -> dict[str, Tensor]:
        """This rank's share of each task's loss, by name; a task that is not active yet gives a zero with a gradient
        path."""
        inputs = self.inputs(batch)
        representations = self.representations(inputs, batch.row, step)
        return self.shares(inputs, representations, self.presences(batch), step, epoch, list(self.tasks))

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Standardised features (B, D) by modality, simclr's second view included."""
        inputs = {m: self.standardized(m, batch.features[m]) for m in self.config.modalities}
        simclr = self.config.tasks.simclr
        if simclr is not None and simclr.second_view is not None:
            inputs[_SECOND_VIEW] = self.standardized(simclr.modality, batch.features[simclr.second_view])
        return inputs

    def representations(self, inputs: Mapping[str, Tensor], row_B: Tensor, step: int) -> dict[str, Tensor]:
        """Representations (B, R) that the losses need: of each modality, and of simclr's two views. Each row by
        itself: what a row gives depends on no other."""
        config, simclr = self.config, self.config.tasks.simclr
        purposes = [f"mask {m}" for m in config.modalities] if config.model.feature_mask else []
        if simclr is not None and simclr.second_view is None:
            purposes += _VIEWS
        # As tensors, since what is compiled must not see a number that changes from step to step.
        keys = {p: torch.full_like(row_B[:1], random.key(config.seed, p, step)).squeeze(0) for p in purposes}
        return self.encode(inputs, row_B, keys)

    def encode(self, inputs: Mapping[str, Tensor], row_B: Tensor, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`representations`, given the key of each purpose of random draws."""
        model, simclr = self.config.model, self.config.tasks.simclr
        with self._autocast(row_B):
            representations = {}
            if self.latent_tasks:
                for m in self.config.modalities:
                    masked = self._masked(inputs[m], row_B, keys.get(f"mask {m}"), model.feature_mask)
                    representations[m] = self.heads[m](masked)
            if simclr is not None:
                first, second = inputs[simclr.modality], inputs.get(_SECOND_VIEW)
                if second is None:
                    first, second = (self._masked(first, row_B, keys[view], simclr.mask) for view in _VIEWS)
                for name, view in zip(_VIEWS, (first, second), strict=True):
                    representations[name] = self.heads[simclr.modality](view)
        return representations

    def presences(self, batch: Batch) -> dict[str, Presence]:
        """Who is there, gathered from all ranks: for the tasks over modalities ("modalities"), and for "simclr"."""
        presences = {}
        if self.latent_tasks:
            contrastive = self.config.tasks.contrastive
            by_group = contrastive is not None and contrastive.negatives == "same_group"
            presences["modalities"] = Presence.of(batch, self.config.modalities, by_group)
        simclr = self.config.tasks.simclr
        if simclr is not None:
            present = batch.present[simclr.modality]
            if simclr.second_view is not None:
                present = present & batch.present[simclr.second_view]
            presences["simclr"] = Presence.of(Batch({}, {simclr.modality: present}, batch.row), (simclr.modality,))
        return presences

    def shares(
        self,
        inputs: Mapping[str, Tensor],
        representations: Mapping[str, Tensor],
        presences: Mapping[str, Presence],
        step: int,
        epoch: int,
        tasks: Sequence[str],
    ) -> dict[str, Tensor]:
        """This rank's share of the loss of each of `tasks`. Only ROW_TASKS look at the inputs, and they alone may be
        given a part of this rank's rows."""
        shares: dict[str, Tensor] = {}
        latent_tasks = [name for name in tasks if name != "simclr"]
        if latent_tasks:
            presence = presences["modalities"]
            projections = None
            if any(name not in ROW_TASKS for name in latent_tasks):
                projections = self.project([representations[m] for m in self.config.modalities], presence.local)
            latents = Latents(
                self.config.modalities, dict(inputs), dict(representations), projections, presence, step, epoch
            )
            for name in latent_tasks:
                # Decoders are heads and run in the heads' precision; the other tasks are losses alone.
                with self._autocast(presence.row, name in ROW_TASKS):
                    shares[name] = self.tasks[name](latents)
        if "simclr" in tasks:
            presence = presences["simclr"]
            z_2BP = self.project([representations[name] for name in _VIEWS], presence.local.expand(2, -1))
            with self._autocast(presence.row, False):
                shares["simclr"] = self.tasks["simclr"](z_2BP, presence.local[0], presence.all[0], presence.offset)
        return shares

    def standardized(self, modality: str, x_BD: Tensor) -> Tensor:
        return self.standardize[modality](x_BD) if modality in self.standardize else x_BD

    def represent(self, modality: str, x_BD: Tensor) -> Tensor:
        """Representation (B, R) of raw features."""
        r: Tensor = self.heads[modality](self.standardized(modality, x_BD))
        return r

    def project(self, representations: Sequence[Tensor], present_MB: Tensor) -> Tensor:
        """Representations (B, R) of each modality to projections (M, B, P), not normalised."""
        assert self.projection is not None
        with self._autocast(present_MB):
            z_MBP: Tensor = self.projection(torch.stack(list(representations)), present_MB)
        return z_MBP.to(self.projection.output.weight.dtype)

    def _fix_biases_that_batch_norm_removes(self) -> None:
        """Where representations go to the projection alone, a constant added to them last leaves no trace in any loss.
        Its gradient is rounding noise, which AdamW would scale up to a random walk that differs between world sizes."""
        for head in self.heads.values():
            assert isinstance(head, RepresentationHead)
            if head.to_representation is not None:
                head.to_representation.bias.requires_grad_(False)
            elif self.config.model.representation_activation == "none":
                head.unit.output.bias.requires_grad_(False)

    def _masked(self, x_BD: Tensor, row_B: Tensor, key: int | Tensor | None, share: float) -> Tensor:
        """Set a drawn `share` of the features to 0 during training: after standardisation, to their mean."""
        if not self.training or share == 0:
            return x_BD
        assert key is not None
        draws_BD = random.draws(key, row_B, x_BD.shape[1], dtype=torch.float32)
        return x_BD * (draws_BD >= share)

    def _autocast(self, near: Tensor, enabled: bool = True) -> torch.autocast:
        lower = enabled and self.config.precision == "bfloat16"
        return torch.autocast(near.device.type, dtype=torch.bfloat16, enabled=lower)
