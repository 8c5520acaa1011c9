"""The whole configuration of a pretraining run: one frozen dataclass that composes those of its parts."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conclugen import fields
from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, choose, finite, require
from conclugen.heads import ModelConfig
from conclugen.losses.clustering import ClusteringConfig
from conclugen.losses.contrastive import ContrastiveConfig
from conclugen.losses.reconstruction import ReconstructionConfig
from conclugen.losses.simclr import SimclrConfig
from conclugen.schedule import OptimizerConfig

RECIPES = ("paper", "improved")
PRECISIONS = ("float32", "bfloat16", "float64")
WEIGHTINGS = ("static", "uncertainty", "gradnorm")
GRADIENTS = ("sum", "pcgrad")
TaskConfig = ContrastiveConfig | ClusteringConfig | ReconstructionConfig | SimclrConfig


@dataclass(frozen=True)
class TasksConfig:
    """The active tasks, each with its weight; None is a task that is not run and has no heads.

    divisor: the total is the sum of weight x loss over the number of tasks that are "active" at this epoch (published:
    the scale of all losses jumps when clustering starts, and a single task runs without its weight) or "configured".
    weighting: "static" weights, or weights learned by "uncertainty" (Kendall et al. 2018) or "gradnorm" (Chen et al.
    2018), which begin at the tasks' own (`conclugen.weighting`). gradients: the tasks' gradients are added ("sum"), or
    those that point against each other are projected first ("pcgrad", Yu et al. 2020). learned_weight_lr: peak learning
    rate of learned weights. gradnorm_alpha: how strongly gradnorm favours tasks that train slowly; 0 makes all
    gradients equally large.
    """

    contrastive: ContrastiveConfig | None = None
    clustering: ClusteringConfig | None = None
    reconstruction: ReconstructionConfig | None = None
    simclr: SimclrConfig | None = None
    divisor: str = field(default="active", metadata=IDENTITY)
    weighting: str = field(default="static", metadata=IDENTITY)
    gradients: str = field(default="sum", metadata=IDENTITY)
    learned_weight_lr: float = field(default=0.01, metadata=SCHEDULABLE)
    gradnorm_alpha: float = field(default=1.5, metadata=IDENTITY)

    def __post_init__(self) -> None:
        choose("tasks.divisor", self.divisor, ("active", "configured"))
        choose("tasks.weighting", self.weighting, WEIGHTINGS)
        choose("tasks.gradients", self.gradients, GRADIENTS)
        for name in ("learned_weight_lr", "gradnorm_alpha"):
            value = getattr(self, name)
            require(finite(value) and value >= 0, f"tasks.{name}", value, "0 or more")
        require(bool(self.active), "tasks", "no task", "one or more of contrastive, clustering, reconstruction, simclr")
        for name, plain in (("weighting", "static"), ("gradients", "sum")):
            value, alone = getattr(self, name), len(self.active) == 1
            found = f"{value!r} with {', '.join(self.active)} alone"
            require(value == plain or not alone, f"tasks.{name}", found, f"{plain!r}: it takes two tasks to weigh")

    @property
    def active(self) -> dict[str, TaskConfig]:
        """The configured tasks by name, in a fixed order."""
        tasks: dict[str, TaskConfig | None] = {
            "contrastive": self.contrastive,
            "clustering": self.clustering,
            "reconstruction": self.reconstruction,
            "simclr": self.simclr,
        }
        return {name: config for name, config in tasks.items() if config is not None}


@dataclass(frozen=True)
class PretrainConfig:
    """What is learned, from what, and how long.

    preset, recipe: what this configuration was built from. modalities: those that are learned, in order. seed: of every
    random draw. global_batch: rows of one optimiser step over all workers. epochs: length of the run. precision:
    "float32", "bfloat16" (autocast; losses, batch norm and k-means stay in float32) or "float64". clip_norm: largest
    norm of the model's gradient. micro_batch: rows that one rank passes through the heads at a time, for batches that
    do not fit into memory; None: all of its rows. Like the number of ranks it changes rounding only
    (`conclugen.accumulation`). compile: torch.compile the heads and losses, which changes rounding only and pays on
    GPUs (`conclugen.compilation`).
    """

    preset: str = field(default="conclugen", metadata=IDENTITY)
    recipe: str = field(default="paper", metadata=IDENTITY)
    modalities: tuple[str, ...] = field(default=("video", "audio", "text"), metadata=IDENTITY)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(
        default_factory=lambda: TasksConfig(ContrastiveConfig(), ClusteringConfig(), ReconstructionConfig())
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: int = field(default=127, metadata=IDENTITY)
    global_batch: int = field(default=4096, metadata=IDENTITY)
    epochs: int = field(default=100, metadata=SCHEDULABLE)
    precision: str = field(default="float32", metadata=IDENTITY)
    clip_norm: float | None = field(default=None, metadata=SCHEDULABLE)
    micro_batch: int | None = field(default=None, metadata=FREE)
    compile: bool = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        choose("recipe", self.recipe, RECIPES)
        choose("precision", self.precision, PRECISIONS)
        require(self.global_batch >= 2, "global_batch", self.global_batch, "2 rows or more")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        if self.clip_norm is not None:
            require(
                finite(self.clip_norm) and self.clip_norm > 0, "clip_norm", self.clip_norm, "None or a number above 0"
            )
        if self.micro_batch is not None:
            require(self.micro_batch >= 1, "micro_batch", self.micro_batch, "None or 1 row or more")
        self._check_modalities()

    def _check_modalities(self) -> None:
        names, tasks = self.modalities, self.tasks
        require(bool(names) and len(set(names)) == len(names), "modalities", names, "one or more distinct names")
        for name in names:
            require(name.isidentifier(), "modalities", name, "letters, digits and _ only")
        for name in self.model.own_width_modalities:
            choose("model.own_width_modalities", name, names)
        if tasks.contrastive is not None:
            require(len(names) >= 2, "modalities", names, "two or more: the contrastive task compares modalities")
        if tasks.reconstruction is not None and tasks.reconstruction.cross_modal:
            require(
                len(names) >= 2, "modalities", names, "two or more: reconstruction.cross_modal decodes one from another"
            )
        if tasks.simclr is not None:
            choose("tasks.simclr.modality", tasks.simclr.modality, names)
            alone = list(tasks.active) == ["simclr"]
            require(
                not alone or len(names) == 1,
                "modalities",
                names,
                f"only {tasks.simclr.modality!r}: simclr uses no other",
            )
            require(
                not alone or self.model.feature_mask == 0,
                "model.feature_mask",
                self.model.feature_mask,
                "0 for simclr alone, which masks by tasks.simclr.mask or reads a stored second view",
            )

    @property
    def required_modalities(self) -> tuple[str, ...]:
        """Everything a batch must hold: the modalities learned and simclr's second view, if it is stored."""
        simclr = self.tasks.simclr
        second = (simclr.second_view,) if simclr is not None and simclr.second_view is not None else ()
        return (*self.modalities, *(m for m in second if m not in self.modalities))

    def check_serves(self, available: Mapping[str, int]) -> None:
        """Raise ValueError, naming preset, missing modality and remedy, unless `available` (modality -> width) has
        what is needed."""
        for modality in self.required_modalities:
            if modality not in available:
                there = ", ".join(f"{m} ({width})" for m, width in available.items()) or "nothing"
                raise ValueError(
                    f"preset {self.preset!r} needs modality {modality!r}{fields.nearest(modality, available)}, "
                    f"but the data has: {there}. Pack that modality, or name the ones to learn: modalities=[...]"
                )
        simclr = self.tasks.simclr
        if simclr is not None and simclr.second_view is not None:
            width, other = available[simclr.modality], available[simclr.second_view]
            require(
                width == other,
                f"width of second view {simclr.second_view!r}",
                other,
                f"{width}, as {simclr.modality!r}",
            )

    def local_batch(self, world_size: int) -> int:
        """Rows of each rank; the last rank's are padded where the global batch can't be shared equally."""
        return math.ceil(self.global_batch / world_size)

    def to_dict(self) -> dict[str, Any]:
        return fields.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PretrainConfig":
        """Strict inverse of `to_dict`: an unknown field or a wrong type raises ValueError with the nearest name."""
        return fields.from_dict(cls, data)

    def identity(self) -> dict[str, Any]:
        """The identity fields by dotted name: what must agree for a run to be the same run."""
        return {name: value for name, kind, value in fields.leaves(self) if kind == "identity"}

    def identity_digest(self) -> str:
        """Hex digest of the identity fields."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "PretrainConfig") -> dict[str, tuple[Any, Any]]:
        """Identity fields that differ, by dotted name: (mine, theirs); None where one side lacks the field."""
        mine, theirs = self.identity(), other.identity()
        names = [*mine, *(n for n in theirs if n not in mine)]
        return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}
