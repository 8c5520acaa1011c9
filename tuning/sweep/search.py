"""Where the configurations of a sweep come from: at random, from a grid, or from Optuna's TPE.

A `Searcher` is asked for the choices of trial `number` and told how trials went. It remembers by itself nothing that a
kill could lose: random and grid are functions of (space, seed, number), and TPE keeps its study in Optuna's own journal
storage beside the sweep.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from conclugen.common.extras import require
from conclugen.common.locks import Lock
from conclugen.fields import choose
from tuning.sweep.space import ONE_MODALITY, Choices, Range, Space

SEARCHES = ("random", "grid", "tpe")
_STUDY = "sweep"
_MOST_GRID = 10_000
# Configurations drawn at random before TPE has something to learn from (Optuna's own default).
_STARTUP = 10


@dataclass(frozen=True)
class Outcome:
    """How a trial went. curve: epoch -> objective, of every measurement. state: `finished` its last epoch, was
    `stopped` before, or `failed`."""

    curve: Mapping[int, float]
    state: str


class Searcher(Protocol):
    """Gives configurations and takes results."""

    def ask(self, number: int, attempt: int) -> Choices | None:
        """Choices of trial `number`; `attempt` > 0 where the earlier ones were known already. None: no more."""

    def resume(self, number: int, choices: Choices) -> None:
        """An earlier start proposed these."""

    def tell(self, number: int, outcome: Outcome) -> None:
        """How a trial went; twice is once."""

    def known(self, number: int, outcome: Outcome | None) -> None:
        """The last proposal for `number` is not run: another trial is the same, with this outcome if it has ended."""


def searcher(kind: str, space: Space, seed: int, mode: str, folder: Path) -> Searcher:
    """The searcher of that name; TPE keeps its study in `folder`. mode: `max` or `min`."""
    choose("search", kind, SEARCHES)
    if kind == "random":
        return RandomSearch(space, seed)
    if kind == "grid":
        return GridSearch(space)
    return TpeSearch(space, seed, mode, folder / "optuna.log")


class _Memoryless:
    """A searcher that learns from nothing: what it proposes does not depend on how trials went."""

    def resume(self, number: int, choices: Choices) -> None:
        pass

    def tell(self, number: int, outcome: Outcome) -> None:
        pass

    def known(self, number: int, outcome: Outcome | None) -> None:
        pass


class RandomSearch(_Memoryless):
    """Trial n is drawn from (seed, n): the same whatever ran before."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def ask(self, number: int, attempt: int) -> Choices | None:
        return self._space.draw(_RandomChooser(np.random.default_rng([self._seed, number, attempt])))


class GridSearch(_Memoryless):
    """Every point of the grid in order; ranges give `points` values each."""

    def __init__(self, space: Space) -> None:
        self.points = list(grid(space))

    def ask(self, number: int, attempt: int) -> Choices | None:
        return self.points[number] if number < len(self.points) and attempt == 0 else None


class TpeSearch:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023), multivariate within each group
    of parameters that occur together, and with a penalty on configurations that are running.

    A trial that a scheduler stopped is reported as pruned, with its curve: TPE ranks such trials by how far they came.
    The study lives in memory (a draw takes milliseconds); each trial that has ended is appended to Optuna's own journal
    storage, one write, from which the next start takes it.
    """

    def __init__(self, space: Space, seed: int, mode: str, storage: Path) -> None:
        require("search tpe", "optuna")
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        direction: Literal["maximize", "minimize"] = "maximize" if mode == "max" else "minimize"
        self._study = optuna.create_study(direction=direction)
        self._kept = optuna.create_study(
            storage=_quiet(JournalStorage, JournalFileBackend(str(storage), lock_obj=cast(Any, _FileLock(storage)))),
            study_name=_STUDY,
            direction=direction,
            load_if_exists=True,
        )
        self._trials: dict[int, int] = {}  # number of a trial -> its number in the study in memory
        self._told: set[int] = set()
        for trial in self._kept.get_trials(deepcopy=False):
            self._add(int(trial.user_attrs["number"]), trial)
            self._told.add(int(trial.user_attrs["number"]))

    def resume(self, number: int, choices: Choices) -> None:
        if number in self._trials:
            return
        recorded = _RecordedChooser(choices)
        self._space.draw(recorded)
        self._add(
            number,
            self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.RUNNING,
                params=recorded.params,
                distributions=recorded.distributions,
                user_attrs={"number": number},
            ),
        )

    def ask(self, number: int, attempt: int) -> Choices | None:
        self._study.sampler = self._sampler(number, attempt)
        trial = self._study.ask()
        trial.set_user_attr("number", number)
        self._trials[number] = trial.number
        return self._space.draw(_OptunaChooser(trial))

    def tell(self, number: int, outcome: Outcome) -> None:
        if number in self._told:
            return
        states = self._optuna.trial.TrialState
        finite = {epoch: value for epoch, value in sorted(outcome.curve.items()) if math.isfinite(value)}
        place = self._trials[number]
        trial = self._optuna.trial.Trial(self._study, self._frozen(place)._trial_id)
        for epoch, value in finite.items():
            trial.report(value, epoch)
        if outcome.state == "finished" and finite:
            self._study.tell(place, list(finite.values())[-1])
        else:  # pruned without a value is the worst there is, which is what a trial that diverged should be
            self._study.tell(place, state=states.PRUNED)
        self._kept.add_trial(self._frozen(place))
        self._told.add(number)

    def known(self, number: int, outcome: Outcome | None) -> None:
        place = self._trials.pop(number)
        if outcome is None or outcome.state != "finished":
            self._study.tell(place, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(place, outcome.curve[max(outcome.curve)])

    def _add(self, number: int, trial: Any) -> None:
        self._study.add_trial(trial)
        self._trials[number] = len(self._study.get_trials(deepcopy=False)) - 1

    def _frozen(self, place: int) -> Any:
        """A trial of the study in memory. `study.trials` would copy them all: the later a trial, the dearer."""
        return self._study.get_trials(deepcopy=False)[place]

    def _sampler(self, number: int, attempt: int) -> Any:
        """A sampler of its own for each trial, so that a sweep that was killed draws on as if it had not been."""
        seed = int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])
        return _quiet(
            self._optuna.samplers.TPESampler,
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=_STARTUP,
        )


def _quiet(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What `make` makes, without Optuna's warnings that it is experimental: these parts are pinned and tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **options)


class _FileLock:
    """A lock on a file beside Optuna's journal: unlike Optuna's own lock files it ends with its process."""

    def __init__(self, path: Path) -> None:
        self._lock = Lock(path.with_name(f"{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire(math.inf)
        return True

    def release(self) -> None:
        self._lock.release()


def grid(space: Space) -> Iterator[Choices]:
    """Every point of the space's grid. Raises ValueError for a grid of more than 10,000 points."""
    chooser = _GridChooser()
    for _ in range(_MOST_GRID):
        yield space.draw(chooser)
        if not chooser.advance():
            return
    raise ValueError(
        f"space: its grid has more than {_MOST_GRID:,} points; narrow the space, or give its ranges fewer `points`"
    )


class _RandomChooser:
    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def option(self, name: str, options: tuple[Any, ...]) -> Any:
        return options[int(self._generator.integers(len(options)))]

    def number(self, name: str, within: Range) -> float:
        if not within.log:
            return float(self._generator.uniform(within.low, within.high))
        drawn = math.exp(self._generator.uniform(math.log(within.low), math.log(within.high)))
        return min(max(drawn, within.low), within.high)


class _OptunaChooser:
    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def option(self, name: str, options: tuple[Any, ...]) -> Any:
        return self._trial.suggest_categorical(name, options)

    def number(self, name: str, within: Range) -> float:
        return float(self._trial.suggest_float(name, within.low, within.high, log=within.log))


class _RecordedChooser:
    """Chooses what was chosen, and notes it as Optuna describes it."""

    def __init__(self, choices: Mapping[str, Any]) -> None:
        self._choices = choices
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, Any] = {}

    def option(self, name: str, options: tuple[Any, ...]) -> Any:
        from optuna.distributions import CategoricalDistribution

        return self._note(name, CategoricalDistribution(options))

    def number(self, name: str, within: Range) -> float:
        from optuna.distributions import FloatDistribution

        return float(self._note(name, FloatDistribution(within.low, within.high, log=within.log)))

    def _note(self, name: str, distribution: Any) -> Any:
        self.distributions[name] = distribution
        self.params[name] = self._choices[name.removesuffix(ONE_MODALITY)]
        return self.params[name]


class _GridChooser:
    """An odometer over the choices of a draw, the last one turning fastest; what is conditional has its own digits."""

    def __init__(self) -> None:
        self._digits: list[int] = []
        self._sizes: list[int] = []

    def option(self, name: str, options: tuple[Any, ...]) -> Any:
        place = len(self._sizes)
        self._sizes.append(len(options))
        if place == len(self._digits):
            self._digits.append(0)
        return options[self._digits[place]]

    def number(self, name: str, within: Range) -> float:
        return float(self.option(name, within.grid))

    def advance(self) -> bool:
        """Turn to the next point; False behind the last."""
        digits, sizes = self._digits, self._sizes
        while digits and digits[-1] + 1 == sizes[len(digits) - 1]:
            digits.pop()
        if not digits:
            return False
        digits[-1] += 1
        self._sizes = []
        return True
