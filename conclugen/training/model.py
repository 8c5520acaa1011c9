"""Heads and tasks of one configuration; a forward pass returns each task's share of the loss.

Shape suffixes: B rows of this rank, M modalities, D feature width, R representation, P projection.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conclugen import compilation, distributed, prepared, random
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.latents import Latents, Presence
from conclugen.layers.heads import GatedUnit, Linear, Projection, RepresentationHead
from conclugen.layers.standardize import Standardize
from conclugen.tasks import View, registry
from conclugen.tasks.base import Task

SHARED = "modalities"
"""The stream of the tasks without views of their own."""


@dataclass(frozen=True)
class Stream:
    """Views that some tasks read, and who of them is present: `together` where a row counts with all views only.
    targets: of the batch, told and not read."""

    views: tuple[View, ...]
    together: bool
    targets: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.views)


class Trunk(nn.Module):
    """What embeds rows: standardisation, a head for each modality, and the projection where a task reads one."""

    def __init__(self, config: PretrainConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        model = config.model
        self.widths = {m: widths[m] for m in config.modalities}
        self.standardize = nn.ModuleDict()
        if model.standardize:
            for modality, width in self.widths.items():
                own = len(config.corpora.names) if config.corpora.standardize == "corpus" else 0
                self.standardize[modality] = Standardize(width, model.input_clip, own)
        self.heads = nn.ModuleDict(
            {
                m: RepresentationHead(
                    width, model.representation_dim, model.representation_activation, m in model.own_width_modalities
                )
                for m, width in self.widths.items()
            }
        )
        self.reads = config.inputs
        self.projection = Projection(model) if any(reads.projection for reads in self.reads.values()) else None

    def standardized(self, modality: str, x_BD: Tensor, corpus_B: Tensor | None = None) -> Tensor:
        return self.standardize[modality](x_BD, corpus_B) if modality in self.standardize else x_BD

    def represent(self, modality: str, x_BD: Tensor, corpus_B: Tensor | None = None) -> Tensor:
        """Representation (B, R) of raw features."""
        r: Tensor = self.heads[modality](self.standardized(modality, x_BD, corpus_B))
        return r


class Model(Trunk):
    """Only what the active tasks need exists: the projection where one of them reads it, and their own maps.

    All values are set from the configuration's seed and each map's name, so a task more or less changes no other's
    start.
    """

    def __init__(self, config: PretrainConfig, widths: Mapping[str, int]) -> None:
        super().__init__(config, widths)
        self._stream_of, self.streams = _streams(config)
        self.tasks = nn.ModuleDict(
            {name: registry.get(name).build(task, config, widths) for name, task in config.tasks.active.items()}
        )
        self.feature: tuple[Tensor, Tensor] | None = None
        for name in self.tasks:
            self.task(name).corpora = len(config.corpora.names)
        if not any(reads.representation for reads in self.reads.values()):
            self._fix_biases_that_batch_norm_removes()

    @property
    def shared_tasks(self) -> list[str]:
        """The tasks that read one view of each modality."""
        return [name for name, stream in self._stream_of.items() if stream == SHARED]

    @property
    def row_tasks(self) -> list[str]:
        """The tasks whose loss is a sum over rows of what each row gives by itself; the others compare rows."""
        return [name for name in self.tasks if self.task(name).row_wise]

    def task(self, name: str) -> Task:
        module = self.tasks[name]
        assert isinstance(module, Task)
        return module

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

        Inputs, representations and what tasks compile of themselves concern this rank alone. The projection holds batch
        norm's collective and is compiled where there is one rank.
        """
        options = compilation.options()
        for name in ("inputs", "encode", *(["project"] if distributed.world_size() == 1 else [])):
            setattr(self, name, torch.compile(getattr(self, name), **options))
        for name in self.tasks:
            self.task(name).compile_regions(options)

    def active_tasks(self, epoch: int) -> list[str]:
        """The tasks that count in this epoch."""
        return [name for name in self.tasks if self.task(name).active(epoch)]

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that have gradients, in a fixed order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_by(self, tasks: Sequence[str]) -> set[Tensor]:
        """The parameters that the losses of these tasks reach."""
        parts: list[nn.Module] = [self.tasks[name] for name in tasks]
        for name in tasks:
            parts += [self.heads[view.modality] for view in self.streams[self._stream_of[name]].views]
            if self.projection is not None and self.reads[name].projection:
                parts.append(self.projection)
        return {parameter for part in parts for parameter in part.parameters()}

    def forward(self, batch: Batch, step: int, epoch: int) -> dict[str, Tensor]:
        """This rank's share of each task's loss, by name; a task that is not active yet gives a zero with a gradient
        path."""
        batch = self.prepared(batch, step)
        coming = self.presences(batch)  # while the heads compute
        inputs = self.inputs(batch)
        representations = self.representations(inputs, batch.row, step)
        presences = coming()
        self.note_feature(representations, presences)
        return self.shares(inputs, representations, presences, step, epoch, list(self.tasks))

    def prepared(self, batch: Batch, step: int) -> Batch:
        """The batch with what the tasks read of the global batch as a whole (`conclugen.prepared`); every rank must
        call it. Raises ValueError where the data does not tell speakers, and a task's corruptions need them."""
        if self.training and batch.group is None:
            self.config.check_speakers(told=False)
        exchanged = [view for view in self._views() if view.swap] if self.training else []
        if exchanged:
            batch = prepared.with_partners(batch, exchanged, self.config.seed, step)
        targets = dict.fromkeys(name for stream in self.streams.values() for name in stream.targets)
        return prepared.with_targets(batch, targets) if targets else batch

    def note_feature(self, representations: Mapping[str, Tensor], presences: Mapping[str, Presence]) -> None:
        """Keep in `feature`, where weights follow it, this rank's representations (N, R), a row for each view of a row,
        without gradient, and which of them are present (N,)."""
        if self.config.tasks.weighting != "dynamic":
            return
        views = [
            (view, p) for key, s in self.streams.items() for view, p in zip(s.views, presences[key].local, strict=False)
        ]
        seen = torch.cat([representations[view.name].detach() for view, _ in views])
        self.feature = seen, torch.cat([present_B for _, present_B in views])

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Standardised features (B, D) by `View.input`: of each modality, and of others that views are read from."""
        corpus_B = batch.corpus
        inputs = {m: self.standardized(m, batch.features[m], corpus_B) for m in self.config.modalities}
        for view in self._views():
            if view.input not in inputs:
                inputs[view.input] = self.standardized(view.modality, batch.features[view.source], corpus_B)
            if view.swap and self.training:
                name = prepared.partner_of(view)
                partner_BD = self.standardized(view.modality, batch.features[name], corpus_B)
                inputs[name] = partner_BD * batch.present[name].unsqueeze(1)
        for stream in self.streams.values():
            inputs |= {name: batch.features[name] for name in map(prepared.target_of, stream.targets)}
        return inputs

    def representations(self, inputs: Mapping[str, Tensor], row_B: Tensor, step: int) -> dict[str, Tensor]:
        """Representations (B, R) that the losses need, by view. Each row by itself: what a row gives depends on no
        other."""
        purposes = [view.purpose for view in self._views() if view.mask]
        # As tensors, since what is compiled must not see a number that changes from step to step.
        keys = {p: torch.full_like(row_B[:1], random.key(self.config.seed, p, step)).squeeze(0) for p in purposes}
        return self.encode(inputs, row_B, keys)

    def encode(self, inputs: Mapping[str, Tensor], row_B: Tensor, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`representations`, given the key of each purpose of random draws."""
        representations: dict[str, Tensor] = {}
        with self._autocast(row_B):
            for view in self._views():
                instead = inputs.get(prepared.partner_of(view)) if view.swap else None
                masked = self._masked(inputs[view.input], row_B, keys.get(view.purpose), view.mask, instead)
                representations[view.name] = self.heads[view.modality](masked)
        return representations

    def presences(self, batch: Batch) -> Callable[[], dict[str, Presence]]:
        """Start to gather presence masks from all ranks; what is returned waits for them, and gives one a stream."""
        asked = {}
        for key, stream in self.streams.items():
            groups = any(self.reads[name].groups for name, own in self._stream_of.items() if own == key)
            sources = (*(view.source for view in stream.views), *stream.targets)
            asked[key] = Presence.asked(batch, sources, groups, stream.together)
        return lambda: {key: presence() for key, presence in asked.items()}

    def shares(
        self,
        inputs: Mapping[str, Tensor],
        representations: Mapping[str, Tensor],
        presences: Mapping[str, Presence],
        step: int,
        epoch: int,
        tasks: Sequence[str],
    ) -> dict[str, Tensor]:
        """This rank's share of the loss of each of `tasks`. Only row-wise tasks look at the inputs, and they alone may
        be given a part of this rank's rows."""
        shares: dict[str, Tensor] = {}
        for key, stream in self.streams.items():
            own = [name for name in tasks if self._stream_of[name] == key]
            if not own:
                continue
            seen, presence, projections = [representations[view.name] for view in stream.views], presences[key], None
            if any(self.reads[name].projection for name in own):
                projections = self.project(seen, presence.local[: len(seen)])
            latents = Latents(
                modalities=stream.names,
                targets=_targets(stream, inputs),
                representations=dict(zip(stream.names, seen, strict=True)),
                projections=projections,
                presence=presence,
                step=step,
                epoch=epoch,
            )
            for name in own:
                with self._autocast(presence.row, self.task(name).lower_precision):
                    shares[name] = self.tasks[name](latents)
        return {name: shares[name] for name in tasks}

    def _views(self) -> list[View]:
        return [view for stream in self.streams.values() for view in stream.views]

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

    def _masked(
        self, x_BD: Tensor, row_B: Tensor, key: int | Tensor | None, share: float, instead_BD: Tensor | None
    ) -> Tensor:
        """Set a drawn `share` of the features to 0 during training: after standardisation, to their mean; or to other
        features that are given instead."""
        if not self.training or share == 0:
            return x_BD
        assert key is not None
        draws_BD = random.draws(key, row_B, x_BD.shape[1], dtype=torch.float32)
        return x_BD * (draws_BD >= share) if instead_BD is None else torch.where(draws_BD >= share, x_BD, instead_BD)

    def _autocast(self, near: Tensor, enabled: bool = True) -> torch.autocast:
        lower = enabled and self.config.precision == "bfloat16"
        return torch.autocast(near.device.type, dtype=torch.bfloat16, enabled=lower)


def _targets(stream: Stream, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What tasks of a stream may ask for, by view or target, as far as the inputs are there."""
    of_views = {view.name: inputs[view.input] for view in stream.views if view.input in inputs}
    told = {name: inputs[prepared.target_of(name)] for name in stream.targets if prepared.target_of(name) in inputs}
    return of_views | told


def _streams(config: PretrainConfig) -> tuple[dict[str, str], dict[str, Stream]]:
    """Task -> name of its stream; name -> stream. Tasks of equal inputs share one."""
    share = config.model.feature_mask
    shared = tuple(View(m, m, m, share, f"mask {m}") for m in config.modalities)
    stream_of: dict[str, str] = {}
    streams: dict[str, Stream] = {}
    for name, reads in config.inputs.items():
        stream = Stream(reads.views or shared, reads.together, reads.targets)
        key = next((known for known, other in streams.items() if other == stream), None)
        if key is None:
            key = name if reads.views or reads.together or reads.targets else SHARED
            streams[key] = stream
        stream_of[name] = key
    return stream_of, streams
