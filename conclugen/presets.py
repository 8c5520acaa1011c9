"""The published variants as whole configurations, in the published recipe and in the improved one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from conclugen import fields
from conclugen.config import RECIPES, PretrainConfig, TasksConfig
from conclugen.heads import ModelConfig
from conclugen.losses.clustering import ClusteringConfig
from conclugen.losses.contrastive import ContrastiveConfig
from conclugen.losses.reconstruction import ReconstructionConfig
from conclugen.losses.simclr import SimclrConfig
from conclugen.schedule import OptimizerConfig

ALL = ("video", "audio", "text")
ALIASES = {"generative": "generative_only"}


def _paper() -> tuple[ModelConfig, dict[str, Any], OptimizerConfig, float | None]:
    """Published formulae. Sizes and weights of pretraining are published nowhere: these lie within the published
    search ranges."""
    tasks = {
        "contrastive": ContrastiveConfig(),
        "clustering": ClusteringConfig(),
        "reconstruction": ReconstructionConfig(),
        "simclr": SimclrConfig(),
    }
    return ModelConfig(), tasks, OptimizerConfig(), None


def _improved() -> tuple[ModelConfig, dict[str, Any], OptimizerConfig, float | None]:
    """The known weaknesses of the published method mended: a temperature, no ReLU where it bars half of the space,
    standardised inputs, centroids that last from step to step, one scale of the losses throughout, clipped gradients.

    Three more choices come from a search on RAVDESS actors 21 to 24: negatives of the same speaker, since what
    modalities share within one speaker is expression, not identity; masked inputs; orthogonal maps to begin from.
    """
    model = ModelConfig(
        own_width_modalities=(),
        representation_activation="none",
        projection_activation="none",
        initialisation="orthogonal",
        standardize=True,
        feature_mask=0.3,
    )
    tasks = {
        "contrastive": ContrastiveConfig(margin=0.0, temperature=0.3, negatives="same_group"),
        "clustering": ClusteringConfig(
            weight=0.2,
            margin=0.0,
            score="cosine",
            temperature=0.1,
            kmeans_start="warm",
            max_iterations=10,
            queue="rolling",
        ),
        "reconstruction": ReconstructionConfig(output_activation="none"),
        "simclr": SimclrConfig(),
    }
    return model, tasks, OptimizerConfig(lr=2e-3, weight_decay=1e-4, decay="matrices", schedule="cosine"), 10.0


_RECIPES: dict[str, Callable[[], tuple[ModelConfig, dict[str, Any], OptimizerConfig, float | None]]] = {
    "paper": _paper,
    "improved": _improved,
}

PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "conclugen": (ALL, ("contrastive", "clustering", "reconstruction")),
    "contrast_cluster": (ALL, ("contrastive", "clustering")),
    "contrast_generative": (ALL, ("contrastive", "reconstruction")),
    "contrast_only": (ALL, ("contrastive",)),
    "contrast_only_video_audio": (("video", "audio"), ("contrastive",)),
    "contrast_only_video_text": (("video", "text"), ("contrastive",)),
    "generative_only": (ALL, ("reconstruction",)),
    "simclr": (("video_3d",), ("simclr",)),
}
"""Name -> (modalities, tasks)."""


def build(name: str, recipe: str = "improved", **overrides: Any) -> PretrainConfig:
    """The configuration of preset `name`, with overrides by field: `seed=1`, `model={"representation_dim": 512}`,
    `tasks={"clustering": {"weight": 0.1}}`, `modalities=("audio", "text")`.

    Raises ValueError for an unknown preset, recipe or field, for a task that the preset does not run, and for
    a value out of range.
    """
    fields.choose("preset", name, [*PRESETS, *ALIASES])
    fields.choose("recipe", recipe, RECIPES)
    name = ALIASES.get(name, name)
    modalities, task_names = PRESETS[name]
    overrides = dict(overrides)
    chosen = overrides.pop("modalities", None)
    if chosen is not None:
        modalities = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    model, tasks, optimizer, clip_norm = _RECIPES[recipe]()
    divisor = "active" if recipe == "paper" else "configured"
    changed = overrides.get("tasks")
    _check_tasks(name, task_names, changed)
    left_out = [task for task, value in changed.items() if value is None] if isinstance(changed, Mapping) else []
    active = {task: tasks[task] for task in task_names if task not in left_out}
    if "simclr" in active and modalities:
        active["simclr"] = SimclrConfig(modality=modalities[0])
    # A recipe speaks of all modalities and tasks; here stands what has an effect on those of this preset.
    model = dataclasses.replace(
        model,
        own_width_modalities=tuple(m for m in model.own_width_modalities if m in modalities),
        feature_mask=0.0 if list(active) == ["simclr"] else model.feature_mask,
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
    return fields.merge(config, overrides)


def _check_tasks(preset: str, names: tuple[str, ...], overrides: Any) -> None:
    """Overrides may change a task that the preset runs, and nothing else: a misspelt weight must not vanish."""
    if isinstance(overrides, Mapping):
        options = [f.name for f in dataclasses.fields(TasksConfig) if f.metadata.get("kind")]
        for task in overrides:
            if task not in (*names, *options):
                raise ValueError(
                    f"preset {preset!r} runs no task {task!r}{fields.nearest(task, names)}; "
                    f"its tasks: {', '.join(names)}"
                )
