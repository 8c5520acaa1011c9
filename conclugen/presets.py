"""The published variants as whole configurations, in the published recipe and in the improved one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from conclugen import fields
from conclugen.config import RECIPES, PretrainConfig, TaskOptions, TasksConfig
from conclugen.model_config import ModelConfig
from conclugen.schedule import OptimizerConfig
from conclugen.tasks import registry

ALL = ("video", "audio", "text")
ALIASES = {"generative": "generative_only"}
Recipe = tuple[ModelConfig, OptimizerConfig, float | None]


def _paper() -> Recipe:
    """Published formulae. Sizes and weights of pretraining are published nowhere: these lie within the published
    search ranges."""
    return ModelConfig(), OptimizerConfig(), None


def _improved() -> Recipe:
    """The published method with its known weaknesses fixed: no ReLU where it bars half of the space, standardised
    inputs, one scale of the losses throughout, clipped gradients; the tasks have a temperature and centroids that last
    from step to step (`recipes` of each).

    Three more choices come from a search on RAVDESS actors 21 to 24: negatives of the same speaker, among which knowing
    the speaker tells nothing apart; masked inputs; orthogonal maps to begin from.
    """
    model = ModelConfig(
        own_width_modalities=(),
        representation_activation="none",
        projection_activation="none",
        initialisation="orthogonal",
        standardize=True,
        feature_mask=0.3,
    )
    return model, OptimizerConfig(lr=2e-3, weight_decay=1e-4, decay="matrices", schedule="cosine"), 10.0


_RECIPES: dict[str, Callable[[], Recipe]] = {"paper": _paper, "improved": _improved}


def _variants() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Every variant that a task says it is part of."""
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for name, task in registry.registered().items():
        for preset, modalities in task.presets.items():
            known, tasks = found.get(preset, (modalities, ()))
            assert known == modalities, f"tasks {tasks} and {name} differ over the modalities of preset {preset}"
            found[preset] = (modalities, (*tasks, name))
    return found


PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = _variants()
"""Name -> (modalities, tasks)."""


def build(name: str, recipe: str = "improved", **overrides: Any) -> PretrainConfig:
    """The configuration of preset `name`, with overrides by field: `seed=1`, `model={"representation_dim": 512}`,
    `tasks={"NAME": {"weight": 0.1}}`, `modalities=("audio", "text")`.

    A task is left out by None, and any registered one is added by its fields, or by `{}` as the recipe has it.
    Raises ValueError for an unknown preset, recipe, task or field, and for a value out of range.
    """
    fields.choose("preset", name, [*PRESETS, *ALIASES])
    fields.choose("recipe", recipe, RECIPES)
    name = ALIASES.get(name, name)
    modalities, task_names = PRESETS[name]
    overrides = dict(overrides)
    chosen = overrides.pop("modalities", None)
    if chosen is not None:
        modalities = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    model, optimizer, clip_norm = _RECIPES[recipe]()
    divisor = "active" if recipe == "paper" else "configured"
    active = {
        task: registry.get(task).adapted(registry.get(task).recipe(recipe), modalities)
        for task in _active(task_names, overrides.get("tasks"))
    }
    reads = [registry.get(task).inputs(config, modalities) for task, config in active.items()]
    # A recipe covers all modalities and tasks; this is what affects those of this preset.
    model = dataclasses.replace(
        model,
        own_width_modalities=tuple(m for m in model.own_width_modalities if m in modalities),
        feature_mask=0.0 if reads and all(inputs.views for inputs in reads) else model.feature_mask,
    )
    config = PretrainConfig(
        preset=name,
        recipe=recipe,
        modalities=modalities,
        model=model,
        tasks=TasksConfig(**active, divisor=divisor),
        optimizer=optimizer,
        clip_norm=clip_norm,
    )
    return config.changed(overrides)


def _active(names: tuple[str, ...], overrides: Any) -> list[str]:
    """The tasks of a preset without those that are left out, and with those that are added, in their fixed order.

    Raises ValueError for a name that is not a task's: a misspelt weight must not vanish."""
    changed = overrides if isinstance(overrides, Mapping) else {}
    options = [f.name for f in dataclasses.fields(TaskOptions)]
    for task, value in changed.items():
        if task not in options and (value is not None or task not in names):
            registry.get(task)
    wanted = {*names, *(task for task in changed if task not in options)}
    return [task for task in registry.registered() if task in wanted and changed.get(task, {}) is not None]
