"""Population-based training of the task weights (Jaderberg et al. 2017): weights change while the tasks train.

A population trains side by side; every few epochs the worst take over the state of the best and continue with its
weights times 0.8 or 1.25, or with new ones. The state carries how its weights came about, so the winner's schedule can
be written down, and replayed in one plain trial that ends with the very same model:

    schedule = Schedule.load("outputs/mine/schedule.json")
    trial = replay(schedule, shared)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conclugen import PretrainConfig
from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from tuning.sweep.space import Choices, Range, Space, names
from tuning.sweep.trial import Trial, TrialShared

_FORMAT = 1
_FACTORS = (0.8, 1.25)
# Share of the population that is replaced, and that it is replaced by; share of new weights that owe nothing to old.
_QUANTILE, _RESAMPLED = 0.25, 0.25


@dataclass(frozen=True)
class Schedule:
    """How the task weights of one model came about.

    config: of the pretraining, with the weights of its first step. changes: (optimiser step, task -> weight) in order.
    objective, value: what it reached.
    """

    config: PretrainConfig
    changes: tuple[tuple[int, dict[str, float]], ...]
    objective: str
    value: float

    @classmethod
    def of(cls, config: PretrainConfig, state: Mapping[str, Any], objective: str, value: float) -> Schedule:
        """From the weights' state of a pretrainer: `configured`, and `changes` with `step` and `weights`."""
        tasks = {name: {"weight": weight} for name, weight in state["configured"].items()}
        changes = tuple((int(change["step"]), dict(change["weights"])) for change in state["changes"])
        return cls(config.changed({"tasks": tasks}), changes, objective, value)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        changes = [{"step": step, "weights": weights} for step, weights in self.changes]
        content = {"format": _FORMAT, "config": self.config.to_dict(), "changes": changes}
        write_json(path, content | {"objective": self.objective, "value": self.value})

    @classmethod
    def load(cls, path: Path | str) -> Schedule:
        """Raises ValueError for a file that is not a schedule."""
        try:
            content = read_mapping(path)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            changes = tuple((int(change["step"]), dict(change["weights"])) for change in content["changes"])
            config = PretrainConfig.from_dict(content["config"])
            return cls(config, changes, content["objective"], float(content["value"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: no schedule of a population-based sweep: {error}") from error


def replay(schedule: Schedule, shared: TrialShared) -> Trial:
    """A plain trial under the schedule, trained to its end: the model that the schedule was written down for."""
    trial = Trial(schedule.config, shared, "replay")
    for step, weights in schedule.changes:
        trial.train(step)
        trial.pretrainer.set_weights(weights)
    trial.train(trial.last_step(schedule.config.epochs))
    return trial


def check_space(space: Space) -> tuple[str, ...]:
    """The tasks of a space whose trials can take over each other's states: it leaves nothing open but their weights.

    Raises ValueError naming the first field that is open, or where there are no weights to change.
    """
    watcher = _Watcher()
    choices = space.draw(watcher)
    tasks = names(choices["tasks"])
    weights = {f"tasks.{task}.weight" for task in tasks}
    for name in watcher.asked:
        if name not in weights:
            raise ValueError(
                f"space: {name!r} has several values, but the trials of a population take over each other's states: "
                "fix everything except space.weights"
            )
    if len(tasks) < 2 or not watcher.asked:
        raise ValueError(
            "space: a population changes task weights, and needs two tasks or more, with ranges of weights"
        )
    return tasks


def weights_of(choices: Choices) -> dict[str, float]:
    """Task -> weight, as drawn."""
    tasks = names(choices["tasks"])
    return {task: float(choices[f"tasks.{task}.weight"]) for task in tasks}


def scheduler(space: Space, objective: str, mode: str, every_epochs: int, seed: int) -> Any:
    """Ray Tune's population-based scheduler over the weights in the trials' proposals.

    Synchronous: the members wait for each other at each exchange, so that all are compared at the same epoch.
    """
    from ray.tune.schedulers import PopulationBasedTraining

    tasks = check_space(space)
    ranges = {task: getattr(space.weights, task) for task in tasks}
    generator = np.random.default_rng(seed)

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        """The donor's weights, moved. Tune's own perturbation knows no limits."""
        proposal = config["proposal"]
        moved = {task: _moved(weight, ranges[task], generator) for task, weight in proposal["weights"].items()}
        return config | {"proposal": proposal | {"weights": moved}}

    return PopulationBasedTraining(
        time_attr="epoch",
        metric=objective,
        mode=mode,
        perturbation_interval=every_epochs,
        burn_in_period=every_epochs,
        quantile_fraction=_QUANTILE,
        hyperparam_mutations={"perturbed": [True]},  # Tune wants one of its own; what moves is in `explore`
        custom_explore_fn=explore,
        log_config=False,
        synch=True,
    )


def _moved(weight: float, within: Range, generator: np.random.Generator) -> float:
    if generator.random() < _RESAMPLED:
        drawn = np.exp(generator.uniform(np.log(within.low), np.log(within.high))) if within.log else None
        moved = float(generator.uniform(within.low, within.high)) if drawn is None else float(drawn)
    else:
        moved = weight * float(generator.choice(_FACTORS))
    return min(max(moved, within.low), within.high)


@dataclass
class _Watcher:
    """Chooses the first of everything and notes what was open."""

    asked: list[str] = dataclasses.field(default_factory=list)

    def option(self, name: str, options: tuple[Any, ...]) -> Any:
        self.asked.append(name)
        return options[0]

    def number(self, name: str, within: Range) -> float:
        self.asked.append(name)
        return within.low
