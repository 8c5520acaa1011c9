"""The whole configuration of a pretraining run: one frozen dataclass that composes those of its parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conclugen import fields
from conclugen.common.options import build, to_plain
from conclugen.corpora import CorporaConfig
from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, choose, finite, require
from conclugen.model_config import ModelConfig
from conclugen.schedule import OptimizerConfig
from conclugen.tasks import registry
from conclugen.tasks.base import Inputs

RECIPES = ("paper", "improved")
PRECISIONS = ("float32", "bfloat16", "float64")
WEIGHTINGS = ("static", "uncertainty", "gradnorm", "dynamic", "share")
GRADIENTS = ("sum", "pcgrad")
GRADIENT_COMPRESSIONS = ("none", "bfloat16")
DEFAULT_PRESET = "conclugen"


@dataclass(frozen=True)
class TaskOptions:
    """How the losses of the active tasks become one.

    Attributes:
        divisor: The total is the sum of weight x loss over the number of tasks that are "active" at this epoch
            (published: the scale of all losses jumps when a task starts late, and a single task runs without its
            weight) or "configured".
        weighting: "static" weights; weights learned by "uncertainty" (Kendall et al. 2018), "gradnorm" (Chen et al.
            2018) or "dynamic" (Ming et al. 2019), which begin at the tasks' own; or "share": the tasks' weights sum to
            1, and each is the share of the heads' gradient that its task gets (`conclugen.training.weighting`).
        gradients: The tasks' gradients are added ("sum"), or those that point against each other are projected first
            ("pcgrad", Yu et al. 2020).
        learned_weight_lr: Peak learning rate of learned weights.
        gradnorm_alpha: How strongly gradnorm favours tasks that train slowly; 0 makes all gradients equally large.
        share_band: Under "share", the part of its share by which a task's measured share may be off before all are set
            again; 0: at every step.
        share_every: Steps from one measurement of the tasks' shares of the heads' gradient (`share/NAME`) to the next;
            0: none. Where each task's gradient is taken by itself anyway, every step has them.
    """

    divisor: str = field(default="active", metadata=IDENTITY)
    weighting: str = field(default="static", metadata=IDENTITY)
    gradients: str = field(default="sum", metadata=IDENTITY)
    learned_weight_lr: float = field(default=0.01, metadata=SCHEDULABLE)
    gradnorm_alpha: float = field(default=1.5, metadata=IDENTITY)
    share_band: float = field(default=0.2, metadata=IDENTITY)
    share_every: int = field(default=50, metadata=FREE)

    def __post_init__(self) -> None:
        choose("tasks.divisor", self.divisor, ("active", "configured"))
        choose("tasks.weighting", self.weighting, WEIGHTINGS)
        choose("tasks.gradients", self.gradients, GRADIENTS)
        for name in ("learned_weight_lr", "gradnorm_alpha"):
            value = getattr(self, name)
            require(finite(value) and value >= 0, f"tasks.{name}", value, "0 or more")
        require(0 <= self.share_band < 1, "tasks.share_band", self.share_band, "0 <= band < 1")
        require(self.share_every >= 0, "tasks.share_every", self.share_every, "0 or more steps")
        require(bool(self.active), "tasks", "no task", f"one or more of {', '.join(registry.registered())}")
        for name, plain in (("weighting", "static"), ("gradients", "sum")):
            value, alone = getattr(self, name), len(self.active) == 1
            found = f"{value!r} with {', '.join(self.active)} alone"
            require(value == plain or not alone, f"tasks.{name}", found, f"{plain!r}: it takes two tasks to weigh")
        if self.weighting == "share":
            check_shares({name: task.weight for name, task in self.active.items()})

    @property
    def active(self) -> dict[str, Any]:
        """The configured tasks by name, in a fixed order."""
        tasks = {name: getattr(self, name) for name in registry.registered()}
        return {name: config for name, config in tasks.items() if config is not None}


def check_shares(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless weights that are shares of the gradient sum to 1."""
    total = math.fsum(weights.values())
    if not math.isclose(total, 1, rel_tol=0, abs_tol=1e-6):
        listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        raise ValueError(
            f"tasks: with weighting='share' the tasks' weights must sum to 1, got {total:g} ({listed}); divide each by "
            f"{total:g}"
        )


if TYPE_CHECKING:

    class TasksConfig(TaskOptions):
        """One field for each registered task, by its name: its configuration, or None where it is not run."""

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    TasksConfig = dataclasses.make_dataclass(
        "TasksConfig",
        [(name, task.Config | None, field(default=None)) for name, task in registry.registered().items()],
        bases=(TaskOptions,),
        namespace={
            "__module__": __name__,
            "__doc__": "The tasks that are run, each with its weight; None is a task that is not run and has no heads.",
        },
        frozen=True,
    )


def _default_tasks() -> TasksConfig:
    """Those of the default preset, as published."""
    own = {name: task for name, task in registry.registered().items() if DEFAULT_PRESET in task.presets}
    return TasksConfig(**{name: task.Config() for name, task in own.items()})


@dataclass(frozen=True)
class PretrainConfig:
    """What is learned, from what, and how long.

    Attributes:
        preset: Name of the variant that this configuration was built from.
        recipe: Its formulae: "paper", as published, or "improved".
        modalities: Modalities that are learned, in order.
        model: Sizes and formulae of the heads.
        tasks: The tasks and how their losses are combined.
        optimizer: AdamW and its schedule.
        seed: Seed of every random draw.
        global_batch: Rows of one optimiser step over all workers.
        epochs: Length of the run.
        precision: "float32", "bfloat16" (autocast; losses, batch norm and k-means stay in float32) or "float64".
        clip_norm: Largest norm of the model's gradient; None: no limit.
        micro_batch: Rows that one rank passes through the heads at a time, for batches that do not fit into memory;
            None: all of its rows. Like the number of ranks it changes rounding only (`conclugen.training.grad_cache`).
        compile: torch.compile the heads and losses, which changes rounding only and pays on GPUs.
        gradient_compression: Between ranks gradients travel and are added as they are ("none"), or in "bfloat16": half
            the bytes, and eight bits of each rank's gradient.
        corpora: What mixing corpora means for learning.
    """

    preset: str = field(default=DEFAULT_PRESET, metadata=IDENTITY)
    recipe: str = field(default="paper", metadata=IDENTITY)
    modalities: tuple[str, ...] = field(default=("video", "audio", "text"), metadata=IDENTITY)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=_default_tasks)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: int = field(default=127, metadata=IDENTITY)
    global_batch: int = field(default=4096, metadata=IDENTITY)
    epochs: int = field(default=100, metadata=SCHEDULABLE)
    precision: str = field(default="float32", metadata=IDENTITY)
    clip_norm: float | None = field(default=None, metadata=SCHEDULABLE)
    micro_batch: int | None = field(default=None, metadata=FREE)
    compile: bool = field(default=False, metadata=FREE)
    gradient_compression: str = field(default="none", metadata=FREE)
    corpora: CorporaConfig = field(default_factory=CorporaConfig)

    def __post_init__(self) -> None:
        choose("recipe", self.recipe, RECIPES)
        choose("precision", self.precision, PRECISIONS)
        choose("gradient_compression", self.gradient_compression, GRADIENT_COMPRESSIONS)
        require(self.global_batch >= 2, "global_batch", self.global_batch, "2 rows or more")
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        if self.clip_norm is not None:
            require(
                finite(self.clip_norm) and self.clip_norm > 0, "clip_norm", self.clip_norm, "None or a number above 0"
            )
        if self.micro_batch is not None:
            require(self.micro_batch >= 1, "micro_batch", self.micro_batch, "None or 1 row or more")
        self._check_modalities()
        others = [name for name in self.tasks.active if registry.get(name).negatives == "any"]
        if self.corpora.negatives == "within" and others:
            raise ValueError(
                f"corpora.negatives: found 'within' with task {others[0]!r}, expected 'across': it takes any row for a "
                f"negative; leave it out (tasks.{others[0]}=null), or let negatives come from all corpora"
            )

    def _check_modalities(self) -> None:
        names = self.modalities
        require(bool(names) and len(set(names)) == len(names), "modalities", names, "one or more distinct names")
        for name in names:
            require(name.isidentifier(), "modalities", name, "letters, digits and _ only")
        for name in self.model.own_width_modalities:
            choose("model.own_width_modalities", name, names)
        reads = self.inputs
        if all(inputs.views for inputs in reads.values()):
            masks = " and ".join(f"tasks.{name}.{inputs.masked_by or '*'}" for name, inputs in reads.items())
            remedy = f"0: {' and '.join(reads)} makes its own views, see {masks}"
            require(self.model.feature_mask == 0, "model.feature_mask", self.model.feature_mask, remedy)

    @property
    def inputs(self) -> dict[str, Inputs]:
        """What each active task reads of the modalities."""
        return registry.inputs(self.tasks.active, self.modalities)

    @property
    def required_modalities(self) -> tuple[str, ...]:
        """Everything a batch must hold: the modalities learned, and what else the views of the tasks are read from."""
        sources = (source for inputs in self.inputs.values() for source in inputs.sources)
        return tuple(dict.fromkeys((*self.modalities, *sources)))

    def check_serves(self, available: Mapping[str, int]) -> None:
        """Raise ValueError, naming preset, missing modality and remedy, unless `available` (modality -> width) has
        what is needed."""
        there = ", ".join(f"{m} ({width})" for m, width in available.items()) or "nothing"
        for modality in self.modalities:
            if modality not in available:
                raise ValueError(
                    f"preset {self.preset!r} needs modality {modality!r}{fields.nearest(modality, available)}, "
                    f"but the data has: {there}. Pack that modality, or name the ones to learn, such as --modalities "
                    f"{','.join(m for m in available if m in self.modalities) or next(iter(available), '...')}"
                )
        for name, inputs in self.inputs.items():
            for view in inputs.views:
                if view.source not in available:
                    raise ValueError(
                        f"task {name!r} needs modality {view.source!r}{fields.nearest(view.source, available)}, but "
                        f"the data has: {there}. Pack that modality, name another one in tasks.{name}, or leave the "
                        f"task out: tasks.{name}=null"
                    )
                width, other = available[view.modality], available[view.source]
                place = f"width of {view.source!r}, a view of task {name!r}"
                require(width == other, place, other, f"{width}, as {view.modality!r}")
            for target in inputs.targets:
                if target not in available:
                    raise ValueError(
                        f"task {name!r} needs target {target!r}{fields.nearest(target, available)}, but the data has: "
                        f"{there}. Pack that modality, name another one in tasks.{name}.targets, or leave the task "
                        f"out: tasks.{name}=null"
                    )

    def check_speakers(self, told: bool) -> None:
        """Raise ValueError, naming the task and the remedy, where data does not tell speakers and a task needs them."""
        for name, inputs in self.inputs.items():
            if inputs.needs_groups and not told:
                raise ValueError(
                    f"task {name!r} needs the speaker of each row, but the data tells none: name the column of "
                    f"speakers (data.speaker), or leave the task out (tasks.{name}=null)"
                )

    def without_training_views(self) -> PretrainConfig:
        """This configuration for data that lacks what only training needs, such as stored second views."""
        tasks = {n: registry.get(n).without_training_views(config) for n, config in self.tasks.active.items()}
        return dataclasses.replace(self, tasks=dataclasses.replace(self.tasks, **tasks))

    def local_batch(self, world_size: int) -> int:
        """Rows of each rank; the last rank's are padded where the global batch can't be shared equally."""
        return math.ceil(self.global_batch / world_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, JSON-able. A task that is not run is left out (or null), so that the configuration of a run does
        not depend on what else is installed."""
        data = {each.name: to_plain(getattr(self, each.name)) for each in dataclasses.fields(self)}
        for name, task in registry.registered().items():
            if data["tasks"][name] is None and not task.absent_as_null:
                del data["tasks"][name]
        if self.corpora == CorporaConfig():
            del data["corpora"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PretrainConfig:
        """Strict inverse of `to_dict`: an unknown field or a wrong type raises ValueError with the nearest name, a task
        that no installed package provides with the remedy."""
        data = known_tasks(data)
        if isinstance(data, Mapping) and isinstance(data.get("tasks"), Mapping):
            # A task that is not named is not run, whatever the default preset runs.
            data = {**data, "tasks": {**dict.fromkeys(registry.registered()), **data["tasks"]}}
        return build(cls, data)

    def changed(self, changes: Mapping[str, Any]) -> PretrainConfig:
        """This configuration with plain data laid over it: a mapping given for a part changes only the fields that it
        names. Raises ValueError as `from_dict`."""
        return build(PretrainConfig, changes, self)

    def identity(self) -> dict[str, Any]:
        """The identity fields by dotted name: what must agree for a run to be the same run."""
        absent = {f"tasks.{name}" for name, task in registry.registered().items() if not task.absent_as_null}
        absent -= {f"tasks.{name}" for name in self.tasks.active}
        leaves = ((name, value) for name, kind, value in fields.leaves(self) if kind == "identity")
        found = {name: value for name, value in leaves if name not in absent}
        if not self.corpora.names:  # runs on one data set say nothing of corpora, as those from before there were any
            found = {name: value for name, value in found.items() if not name.startswith("corpora.")}
        return found

    def identity_digest(self) -> str:
        """Hex digest of the identity fields."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: PretrainConfig) -> dict[str, tuple[Any, Any]]:
        """Identity fields that differ, by dotted name: (mine, theirs); None where one side lacks the field."""
        mine, theirs = self.identity(), other.identity()
        names = [*mine, *(n for n in theirs if n not in mine)]
        return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}


def known_tasks(data: Mapping[str, Any], provided: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    """A configuration as plain data without the absent tasks that are not installed here.

    provided: task -> the package that it came from. Raises ValueError naming a task that is run and not installed.
    """
    tasks = data.get("tasks") if isinstance(data, Mapping) else None
    if not isinstance(tasks, Mapping):
        return data
    known = (*registry.registered(), *(f.name for f in dataclasses.fields(TaskOptions)))
    packages = provided if isinstance(provided, Mapping) else {}
    for name, value in tasks.items():
        if name not in known and isinstance(value, Mapping):
            raise ValueError(f"tasks.{name}: {registry.unknown(name, packages.get(str(name), ''))}")
    return {**data, "tasks": {name: value for name, value in tasks.items() if name in known or value is not None}}
