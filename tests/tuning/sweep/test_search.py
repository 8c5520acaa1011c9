"""Searches: random and grid are functions of their seed, TPE learns and remembers; equal trials are run once."""

import dataclasses
import math
from pathlib import Path

import optuna
import pytest

from tuning.sweep.search import GridSearch, Outcome, RandomSearch, TpeSearch, grid, searcher
from tuning.sweep.space import Choices, Range, Space, laptop

WIDTHS = {"video": 6, "audio": 5}


@pytest.fixture
def space() -> Space:
    return laptop().resolve(WIDTHS)


def value(choices: Choices) -> float:
    """A made-up objective: best with clustering and a learning rate of 2e-3."""
    return ("clustering" in choices["tasks"]) - abs(math.log(choices["optimizer.lr"] / 2e-3))


def run(search: TpeSearch, numbers: range) -> list[Choices]:
    asked = []
    for number in numbers:
        choices = search.ask(number, 0)
        assert choices is not None
        search.tell(number, Outcome({4: value(choices) - 0.1, 16: value(choices)}, "finished"))
        asked.append(choices)
    return asked


def test_random_trials_depend_on_seed_and_number_alone(space: Space) -> None:
    forwards = [RandomSearch(space, 1).ask(n, 0) for n in range(20)]
    search = RandomSearch(space, 1)
    assert [search.ask(n, 0) for n in reversed(range(20))] == forwards[::-1]
    assert len({str(choices) for choices in forwards}) == 20
    assert RandomSearch(space, 2).ask(0, 0) != forwards[0] != search.ask(0, 1)


def test_a_grid_ends(space: Space, tmp_path: Path) -> None:
    small = dataclasses.replace(space, tasks=("reconstruction",), lr=Range(1e-3, 1e-3), weight_decay=Range(1e-4, 1e-4))
    search = searcher("grid", small, 0, "max", tmp_path)
    assert isinstance(search, GridSearch)
    assert [search.ask(n, 0) for n in range(9)] == list(grid(small))
    assert search.ask(9, 0) is None
    with pytest.raises(ValueError, match="did you mean 'tpe'"):
        searcher("tpee", small, 0, "max", tmp_path)


def test_tpe_finds_better_trials_than_chance(space: Space, tmp_path: Path) -> None:
    learned = [value(c) for c in run(TpeSearch(space, 5, "max", tmp_path / "o.log"), range(60))]
    at_random = [value(c) for n in range(60) if (c := RandomSearch(space, 5).ask(n, 0)) is not None]
    assert sum(learned[30:]) / 30 > sum(at_random[30:]) / 30 + 0.3


def test_tpe_goes_on_after_a_kill_as_if_there_had_been_none(space: Space, tmp_path: Path) -> None:
    whole = run(TpeSearch(space, 5, "max", tmp_path / "whole.log"), range(24))
    first = TpeSearch(space, 5, "max", tmp_path / "cut.log")
    begun = run(first, range(16))
    pending = first.ask(16, 0)  # never told: the process dies here
    del first
    second = TpeSearch(space, 5, "max", tmp_path / "cut.log")
    assert pending is not None
    second.resume(16, pending)
    second.tell(16, Outcome({16: value(pending)}, "finished"))
    assert [*begun, pending, *run(second, range(17, 24))] == whole
    # A peer reads the same file by Optuna alone.
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "cut.log"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert [trial.value for trial in study.trials] == [value(choices) for choices in whole]


def test_tpe_told_twice_is_told_once_and_knows_stopped_and_failed_trials(space: Space, tmp_path: Path) -> None:
    search = TpeSearch(space, 5, "min", tmp_path / "o.log")
    for number in range(3):
        search.ask(number, 0)
    search.tell(0, Outcome({4: 1.0}, "stopped"))
    search.tell(0, Outcome({4: 2.0}, "stopped"))
    search.tell(1, Outcome({4: float("inf")}, "failed"))
    search.known(2, None)
    again = TpeSearch(space, 5, "min", tmp_path / "o.log")
    states = [(t.state.name, t.intermediate_values) for t in again._study.trials]
    assert states == [("PRUNED", {4: 1.0}), ("PRUNED", {})]
    assert again.ask(3, 0) is not None
