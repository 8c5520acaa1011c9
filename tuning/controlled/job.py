"""What a controlled experiment needs to know, as one typed configuration."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from conclugen import PretrainConfig, fields, presets
from conclugen.common.paths import absolute
from conclugen.config import DEFAULT_PRESET, RECIPES
from conclugen.evaluation.config import JudgingConfig
from conclugen.tasks import registry
from ray_jobs.run_config import DEFAULT_OUTPUT
from shards.access import SHARED_FOLDER, refuse_url
from tuning.controlled.factors import FactorsConfig
from tuning.controlled.rendered import RenderedConfig
from tuning.systems import METHOD, System

ALONE, PAIRS, ALL, EQUAL = "alone", "pairs", "all", "equal"
UNTRAINED, RAW = "untrained", ("raw", "raw balanced")
MADE, RENDERED = "made", "rendered"


@dataclass(frozen=True)
class ControlledJob:
    """What does each task keep, of factors that are known? Features made of them, one page of what a probe finds.

    Attributes:
        name: Of the experiment, and of its folder.
        output: Folder of all experiments.
        features: "made" of known factors, or "rendered": talking faces whose face and voice act emotions of their own.
        systems: What is trained: tasks joined by `+`, weights behind a colon (`A+B:10`), another weighting before an
            equals sign (`share=A:0.5+B:0.5`); `alone`: each registered task by itself, or beside the method's last one
            where it can't learn all modalities; `pairs`: every two of the published method's tasks, `all`: these
            together, `equal`: both with equal shares of the gradient. Untrained heads and raw features are always
            there.
        recipe: Of every system: `improved` or `paper`.
        data_seeds: Of the features; a row of the page is a mean over them.
        seed: Of training.
        epochs: Length of each training.
        global_batch: Rows of an optimiser step.
        representation_dim: Width R of each modality's representation.
        projection_dim: Width P of the projection.
        factors: What made features are made of.
        rendered: What is rendered, and seen and heard by which encoders.
        judging: Shares of labels, draws.
        parallel: Systems that are trained at a time, each in a process of its own.
        shards_only: Write the feature shards (`OUTPUT/RUN/seed-N`), which every job reads, and stop.
    """

    name: str = "controlled"
    output: str = DEFAULT_OUTPUT
    features: str = MADE
    systems: tuple[str, ...] = (ALONE, PAIRS, ALL, EQUAL)
    recipe: str = "improved"
    data_seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 127
    epochs: int = 40
    global_batch: int = 192
    representation_dim: int = 96
    projection_dim: int = 48
    factors: FactorsConfig = field(default_factory=FactorsConfig)
    rendered: RenderedConfig = field(default_factory=RenderedConfig)
    judging: JudgingConfig = field(default_factory=lambda: JudgingConfig(draws=3, with_raw=False))
    parallel: int = 2
    shards_only: bool = False

    def __post_init__(self) -> None:
        refuse_url("output", self.output, SHARED_FOLDER)
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"run {self.name!r}: expected letters, digits, - and _")
        fields.choose("features", self.features, (MADE, RENDERED))
        fields.choose("recipe", self.recipe, RECIPES)
        fields.require(bool(self.systems), "systems", self.systems, "one at least")
        distinct = len(set(self.data_seeds)) == len(self.data_seeds) and min(self.data_seeds, default=-1) >= 0
        fields.require(bool(self.data_seeds) and distinct, "data_seeds", self.data_seeds, "different ones of 0 or more")
        fields.require(self.parallel >= 1, "parallel", self.parallel, "1 or more")
        training = (self.source.speakers - self.source.test_speakers) * self.source.clips
        remedy = f"at most {training}, the rows of the training speakers"
        fields.require(self.global_batch <= training, "global_batch", self.global_batch, remedy)
        for system in self.all_systems:
            self.config(system)

    @property
    def source(self) -> FactorsConfig | RenderedConfig:
        """What the features are made of."""
        return self.factors if self.features == MADE else self.rendered

    @property
    def folder(self) -> Path:
        return absolute(self.output, "output") / self.name

    @property
    def all_systems(self) -> tuple[System, ...]:
        """The systems that are trained, each spelled out."""
        modalities = tuple(self.source.widths)
        pairs = ["+".join(pair) for pair in itertools.combinations(METHOD, 2)]
        everything = "+".join(METHOD)
        named = {
            ALONE: [_served(name, modalities) for name in registry.registered()],
            PAIRS: pairs,
            ALL: [everything],
            EQUAL: [_equal(text) for text in (*pairs, everything)],
        }
        texts = [spelled for text in self.systems for spelled in named.get(text, [text])]
        return tuple(System.parse(text) for text in dict.fromkeys(texts))

    @property
    def untrained(self) -> System:
        """Whose heads are judged as they begin: those of all systems begin alike, so of one that has a representation
        of the row as a whole, where there is one."""
        whole = [
            system for system in self.all_systems if any(registry.get(name).learns_whole() for name in system.tasks)
        ]
        return (whole or self.all_systems)[0]

    def config(self, system: System) -> PretrainConfig:
        """The configuration of a system. Raises ValueError where there can be none."""
        tasks = system.overrides | {"share_every": 10}
        for name in system.tasks if self.source.columns else ():
            if _tells_columns(name):
                tasks[name]["targets"] = self.source.columns
        built = presets.build(
            DEFAULT_PRESET,
            self.recipe,
            modalities=tuple(self.source.widths),
            tasks=tasks,
            model={"representation_dim": self.representation_dim, "projection_dim": self.projection_dim},
            global_batch=self.global_batch,
            epochs=self.epochs,
            seed=self.seed,
        )
        within = {n: registry.get(n).within(task, self.epochs) for n, task in built.tasks.active.items()}
        return replace(built, tasks=replace(built.tasks, **within))

    def settings(self) -> dict[str, Any]:
        """What decides every number, systems and data seeds apart."""
        return {self.features: self.source.content, "judging": asdict(self.judging)}


def _tells_columns(task: str) -> bool:
    return "targets" in {each.name for each in dataclasses.fields(registry.get(task).Config)}


def _served(task: str, modalities: tuple[str, ...]) -> str:
    """A task alone, or beside the method's last one where by itself it would leave a modality unlearned."""
    return task if registry.serve([task], modalities) else f"{METHOD[-1]}+{task}"


def _equal(text: str) -> str:
    """Tasks joined by `+` as a system of equal shares of the gradient, which sum to 1 as they are written."""
    tasks = text.split("+")
    shares = [round(1 / len(tasks), 4)] * (len(tasks) - 1)
    shares.append(round(1 - sum(shares), 4))
    return "share=" + "+".join(f"{name}:{share:g}" for name, share in zip(tasks, shares, strict=True))
