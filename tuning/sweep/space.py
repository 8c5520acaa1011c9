"""The search space: which configurations a sweep may try, as typed configuration.

Every field names its options or a range; one option, or a range of one number, fixes it. A parameter is drawn only
where it means something: what a task says of itself (`Task.searched`) where that task is active, in the recipes that
have it, and weights only where there are two tasks to weigh against each other. Drawn parameters are named as the
configuration names them (`tasks.NAME.weight`), and `modalities`, `tasks` and `recipe`, whose options are names
joined by `+`.

    space = laptop().resolve({"video": 35, "audio": 347})
    choices = space.draw(chooser)            # {"tasks": "TASK+TASK", "optimizer.lr": 0.0021, ...}
    config = space.config(choices)           # a conclugen.PretrainConfig
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

from conclugen import PretrainConfig, presets
from conclugen.config import GRADIENTS, RECIPES, WEIGHTINGS
from conclugen.fields import choose, require
from conclugen.presets import ALL as PRESET_ORDER
from conclugen.presets import PRESETS
from conclugen.search_space import Range, Searched
from conclugen.tasks import Inputs, registry
from conclugen.tasks.registry import registered
from ray_jobs.run_config import DataConfig
from tuning.systems import METHOD

ALL, SUBSETS = "all", "subsets"
# An optimiser wants the same options under the same name each time, and one modality allows fewer tasks.
ONE_MODALITY = " of one modality"
_OWN_FIELDS = ("modalities", "tasks", "recipe", "epochs", "seed", "global_batch")
_MOST_MODALITIES = 8  # beyond, their subsets are more than any sweep tries

Choices = dict[str, Any]
Plain = str | int | float | bool | None


if TYPE_CHECKING:

    class Weights:
        """Range of each task's weight, drawn where the task is active beside another; a field for each task."""

        def __init__(self, **ranges: Range) -> None: ...

else:
    Weights = dataclasses.make_dataclass(
        "Weights",
        [(name, Range, field(default=task.weights[0])) for name, task in registered().items()],
        namespace={
            "__module__": __name__,
            "__doc__": "\n".join(
                [
                    "Range of each task's weight, drawn where the task is active beside another.",
                    "",
                    "    Attributes:",
                    *(f"        {name}: Weight of the {name} task." for name in registered()),
                ]
            ),
        },
        frozen=True,
    )


class Chooser(Protocol):
    """Where values come from: a generator, an optimiser, or the next point of a grid."""

    def option(self, name: str, options: tuple[Any, ...]) -> Any: ...

    def number(self, name: str, within: Range) -> float: ...


@dataclass(frozen=True)
class SpaceOptions:
    """Options of everything that a sweep varies, but for what is particular to a task. The defaults are the published
    ranges.

    Attributes:
        modalities: Subsets of the data's modalities, names joined by `+`; `all`: every one, `subsets`: all subsets.
        tasks: Sets of tasks, names joined by `+`; `subsets`: every non-empty set of the tasks of the preset conclugen.
        recipe: `paper`, `improved`.
        weighting: `static`: the weights drawn; `share`: those over their sum, as shares of the heads' gradient;
            `uncertainty` (Kendall et al. 2018), `gradnorm` (Chen et al. 2018), `dynamic` (Ming et al. 2019): learned.
            Of two tasks or more.
        gradients: `sum`, or `pcgrad`: conflicting gradients projected (Yu et al. 2020). Of two tasks or more.
        weights: Ranges of the tasks' weights.
        representation_dim: Widths R of the representation.
        projection_dim: P, where an active task reads projections.
        lr: Peak learning rate.
        weight_decay: Of AdamW.
        global_batch: Rows of an optimiser step.
        corpora: Of a mixture (data.sources): weight of each corpus that is searched, such as
            `{vox: {low: 0.1, high: 1}}`; the others keep theirs. One of them may well be fixed: proportions count.
        epochs: Length of a trial that is not stopped.
        seed: Of every trial: trials differ by their configuration alone.
        fixed: Any other field of the configuration by its dotted name, for every trial that has the field,
            e.g. `{"optimizer.warmup_epochs": 2}`.
    """

    modalities: tuple[str, ...] = (ALL,)
    tasks: tuple[str, ...] = (SUBSETS,)
    recipe: tuple[str, ...] = ("paper",)
    weighting: tuple[str, ...] = ("static",)
    gradients: tuple[str, ...] = ("sum",)
    weights: Weights = field(default_factory=Weights)
    representation_dim: tuple[int, ...] = (1024, 2048, 4096)
    projection_dim: tuple[int, ...] = (512, 768, 1024, 1536)
    lr: Range = field(default_factory=lambda: Range(1e-5, 1e-3))
    weight_decay: Range = field(default_factory=lambda: Range(1e-5, 1e-3))
    global_batch: tuple[int, ...] = (4096,)
    corpora: dict[str, Range] = field(default_factory=dict)
    epochs: int = 60
    seed: int = 127
    fixed: dict[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, tuple):
                require(bool(value), f"space.{name}", value, "at least one option: a space without one has no trial")
                require(len(set(value)) == len(value), f"space.{name}", value, "options that differ")
        for subset in self.tasks:
            if subset != SUBSETS:
                _check_subset("space.tasks", subset, tuple(registered()))
        for recipe in self.recipe:
            choose("space.recipe", recipe, RECIPES)
        for weighting in self.weighting:
            choose("space.weighting", weighting, WEIGHTINGS)
        for gradients in self.gradients:
            choose("space.gradients", gradients, GRADIENTS)
        require(self.epochs >= 1, "space.epochs", self.epochs, "1 or more")
        for name, within in self.corpora.items():
            require(within.low > 0, f"space.corpora.{name}.low", within.low, "a weight above 0; leave the corpus out")
        for name in self.fixed:
            if name in _OWN_FIELDS:
                raise ValueError(f"space.fixed: {name!r} has a field of its own: give --space.{name}")
        for task, searched in self._starts():
            late = [epoch for epoch in getattr(self, searched.name) if epoch >= self.epochs]
            if late:
                raise ValueError(
                    f"space.{searched.name}: {late[0]} is not before the end of a trial (space.epochs: {self.epochs}), "
                    f"which would never train its {task} task; drop it, or give at least {max(late) + 1} epochs"
                )

    # ------------------------------------------------------------------ before the sweep

    def resolve(self: Self, available: Mapping[str, int]) -> Self:
        """This space on data with these modalities (name -> width): every subset is spelled out, and tried.

        Raises:
            ValueError: a modality that the data lacks, no combination of modalities and tasks that can be trained, or
                a configuration within the space that the pretrainer refuses.
        """
        modalities = [subset for text in self.modalities for subset in _spelled(text, available)]
        for subset in modalities:
            _check_subset("space.modalities", subset, tuple(available))
        tasks = [part for text in self.tasks for part in (subsets(METHOD) if text == SUBSETS else (text,))]
        # In the order in which presets name them: measures of pairs are then called alike everywhere.
        order = (*(m for m in PRESET_ORDER if m in available), *(m for m in available if m not in PRESET_ORDER))
        resolved = dataclasses.replace(
            self,
            modalities=tuple(dict.fromkeys(_in_order(subset, order) for subset in modalities)),
            tasks=tuple(dict.fromkeys(_in_order(subset, tuple(registered())) for subset in tasks)),
        )
        resolved._try_corners(available)
        return resolved

    def _try_corners(self, available: Mapping[str, int]) -> None:
        """Build the configurations at both ends of everything, of every combination of modalities, tasks, recipe."""
        tried = 0
        applied: set[str] = set()
        for modalities, recipe in itertools.product(self.modalities, self.recipe):
            for tasks in self._tasks_of(modalities):
                for end in (0, -1):
                    wanted = {"modalities": modalities, "recipe": recipe, "tasks": tasks}
                    config = self.config(self.draw(_Corner(wanted, end)))
                    config.check_serves(available)
                    tried += 1
                    applied.update(name for name in self.fixed if _has(config, name))
        if not tried:
            raise ValueError(f"space: no trial is possible: {self._why_not()}")
        for name in self.fixed:
            if name not in applied:
                raise ValueError(f"space.fixed: no configuration of this space has a field {name!r}")

    # ------------------------------------------------------------------ one trial

    def draw(self, chooser: Chooser) -> Choices:
        """The parameters of one trial, those that the earlier ones make sense of."""
        choices: Choices = {}

        def option(name: str, options: tuple[Any, ...], asked: str | None = None) -> Any:
            choices[name] = options[0] if len(options) == 1 else chooser.option(asked or name, options)
            return choices[name]

        def number(name: str, within: Range) -> None:
            choices[name] = within.low if within.low == within.high else chooser.number(name, within)

        possible = tuple(subset for subset in self.modalities if self._tasks_of(subset))
        modalities = option("modalities", possible)
        offered = self._tasks_of(modalities)
        fewer = ONE_MODALITY if len(names(modalities)) == 1 else f" of {modalities}"
        chosen = option("tasks", offered, None if offered == self.tasks else f"tasks{fewer}")
        tasks = names(chosen)
        recipe = option("recipe", self.recipe)
        if len(tasks) > 1:
            weighting = "static"
            if self.weighting != ("static",):
                weighting = option("tasks.weighting", self.weighting)
            if weighting in ("static", "share"):
                drawn = [f"tasks.{task}.weight" for task in tasks]
                for name, task in zip(drawn, tasks, strict=True):
                    number(name, getattr(self.weights, task))
                if weighting == "share":
                    total = sum(choices[name] for name in drawn)
                    choices |= {name: choices[name] / total for name in drawn}
            if self.gradients != ("sum",):
                option("tasks.gradients", self.gradients)
        option("model.representation_dim", self.representation_dim)
        if any(_read(task, modalities).projection for task in tasks):
            option("model.projection_dim", self.projection_dim)
        for task in tasks:
            for searched in registered()[task].searched:
                if searched.recipes and recipe not in searched.recipes:
                    continue
                within = getattr(self, searched.name)
                if isinstance(within, Range):
                    number(searched.path, within)
                else:
                    option(searched.path, within)
        number("optimizer.lr", self.lr)
        number("optimizer.weight_decay", self.weight_decay)
        option("global_batch", self.global_batch)
        for name, within in sorted(self.corpora.items()):
            number(weight_of(name), within)
        return choices

    def config(self, choices: Mapping[str, Any]) -> PretrainConfig:
        """The configuration that choices stand for, as `ray_jobs.pretrain` would build it from the same fields.

        Raises ValueError for choices that the pretrainer refuses.
        """
        weighed = {weight_of(name) for name in self.corpora}
        rest = {name: value for name, value in choices.items() if name not in weighed}
        tasks, modalities = names(rest.pop("tasks")), names(rest.pop("modalities"))
        recipe = rest.pop("recipe")
        preset = preset_of(tasks)
        absent = [task for task in PRESETS[preset][1] if task not in tasks]
        overrides: dict[str, Any] = {"seed": self.seed, "epochs": self.epochs}
        overrides["tasks"] = {**dict.fromkeys(absent), **{task: {} for task in tasks}}
        for name, value in self.fixed.items():
            if name in choices:
                raise ValueError(f"space.fixed: {name!r} is searched as well; narrow its own field to one value")
            if name.startswith("tasks.") and name.split(".")[1] in registered() and name.split(".")[1] not in tasks:
                continue
            _put(overrides, name, value)
        for name, value in rest.items():
            _put(overrides, name, value)
        return presets.build(preset, recipe, modalities=modalities, **overrides)

    def corpora_weights(self, choices: Mapping[str, Any]) -> dict[str, float]:
        """Corpus -> weight, of those that are searched."""
        return {name: float(choices[weight_of(name)]) for name in sorted(self.corpora)}

    def data(self, data: DataConfig, choices: Mapping[str, Any]) -> DataConfig:
        """The data of a trial: with the weights of corpora that its choices have."""
        return data.weighted(self.corpora_weights(choices)) if self.corpora else data

    @property
    def latest_start(self) -> int:
        """The last epoch in which a task of this space begins: before, its trials can't be told apart by it."""
        return max((epoch for _, searched in self._starts() for epoch in getattr(self, searched.name)), default=0)

    def _starts(self) -> list[tuple[str, Searched]]:
        """The parameters that say when a task of this space begins, with the task."""
        used = {task for subset in self.tasks for task in (METHOD if subset == SUBSETS else names(subset))}
        return [(n, s) for n, task in registered().items() if n in used for s in task.searched if s.begins]

    def _tasks_of(self, modalities: str) -> tuple[str, ...]:
        """The sets of tasks that can learn these modalities."""
        return tuple(subset for subset in self.tasks if registry.serve(names(subset), names(modalities)))

    def _why_not(self) -> str:
        """Why the first modalities can't be learned by the first tasks, and what there is."""
        tasks, modalities = names(self.tasks[0]), names(self.modalities[0])
        try:
            registry.inputs({task: _adapted(task, modalities) for task in tasks}, modalities)
        except ValueError as cause:
            return f"{cause} (space.tasks {list(self.tasks)}, space.modalities {list(self.modalities)})"
        return "tasks and modalities do not fit"


if TYPE_CHECKING:

    class Space(SpaceOptions):
        """The options, and a field for each parameter that a task says sweeps may draw (`Task.searched`)."""

        def __init__(self, **options: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    _SEARCHED = [searched for task in registered().values() for searched in task.searched]
    Space = dataclasses.make_dataclass(
        "Space",
        [
            (
                searched.name,
                Range if isinstance(searched.published, Range) else tuple[type(searched.published[0]), ...],
                field(default=searched.published),
            )
            for searched in _SEARCHED
        ],
        bases=(SpaceOptions,),
        namespace={
            "__module__": __name__,
            "__doc__": "\n".join(
                [
                    "Options of everything that a sweep varies. The defaults are the published ranges.",
                    "",
                    "    Attributes:",
                    *(f"        {searched.name}: {searched.help}" for searched in _SEARCHED),
                ]
            ),
        },
        frozen=True,
    )


@dataclass(frozen=True)
class _Corner:
    """Chooses what is wanted by name, else the first or the last of everything."""

    wanted: Mapping[str, Any]
    end: int

    def option(self, name: str, options: tuple[Any, ...]) -> Any:
        return self.wanted.get(name.partition(" of ")[0], options[self.end])

    def number(self, name: str, within: Range) -> float:
        return (within.low, within.high)[self.end]


def weight_of(corpus: str) -> str:
    """Name of the parameter that is a corpus's weight, as the configuration has it."""
    return f"data.sources.{corpus}.weight"


def names(subset: str) -> tuple[str, ...]:
    """The names in `a+b`."""
    return tuple(subset.split("+"))


def subsets(of: Iterable[str]) -> tuple[str, ...]:
    """Every non-empty subset as `a+b`, small ones first."""
    of = tuple(of)
    return tuple("+".join(part) for size in range(1, len(of) + 1) for part in itertools.combinations(of, size))


def _adapted(task: str, modalities: tuple[str, ...]) -> Any:
    return registry.get(task).adapted(registry.get(task).Config(), modalities)


def _read(task: str, modalities: str) -> Inputs:
    return registry.get(task).inputs(_adapted(task, names(modalities)), names(modalities))


def preset_of(tasks: Iterable[str]) -> str:
    """The published preset with just these tasks, or `conclugen`, of which others are left out."""
    wanted = set(tasks)
    return next((name for name, (_, own) in PRESETS.items() if set(own) == wanted), "conclugen")


def _spelled(text: str, available: Mapping[str, int]) -> tuple[str, ...]:
    if text == ALL:
        return ("+".join(available),)
    if text == SUBSETS:
        if len(available) > _MOST_MODALITIES:
            raise ValueError(f"space.modalities: {SUBSETS!r} of {len(available)} modalities are too many; list some")
        return subsets(available)
    return (text,)


def _check_subset(where: str, subset: str, allowed: tuple[str, ...]) -> None:
    for name in names(subset):
        choose(where, name, allowed)
    require(len(set(names(subset))) == len(names(subset)), where, subset, "each name once")


def _in_order(subset: str, order: tuple[str, ...]) -> str:
    return "+".join(name for name in order if name in names(subset))


def _put(nested: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for name in path:
        nested = nested.setdefault(name, {})
    nested[last] = value


def _has(config: PretrainConfig, dotted: str) -> bool:
    place: Any = config
    for name in dotted.split("."):
        if place is None or not hasattr(place, name):
            return False
        place = getattr(place, name)
    return True


def published() -> Space:
    """The published ranges. The authors' schedule of at most three epochs would never start the tasks that begin
    later in most trials; 60 epochs are ours."""
    return Space()


def laptop() -> Space:
    """Small heads, small batches and few epochs in the improved recipe: trials of seconds on one core."""
    tasks = registered()
    return Space(
        recipe=("improved",),
        weights=Weights(**{name: task.weights[1] for name, task in tasks.items()}),
        representation_dim=(64, 128, 256),
        projection_dim=(32, 64, 128),
        lr=Range(3e-4, 1e-2),
        global_batch=(128,),
        epochs=16,
        **{searched.name: searched.laptop for task in tasks.values() for searched in task.searched},
    )


SPACES: dict[str, Callable[[], Space]] = {"published": published, "laptop": laptop}
