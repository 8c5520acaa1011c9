"""The sweep's store as Ray Tune sees it: a searcher that hands out trials, and a callback that takes their results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher

from conclugen.common import uris
from conclugen.common.screen import clock
from conclugen.training import checkpoint
from ray_jobs.tracking.journal import Journal
from tuning.nested_runs import NestedRunsSink
from tuning.sweep import population
from tuning.sweep.folder import Proposal, TrialStore, wall_clock
from tuning.sweep.search import Outcome
from tuning.sweep.trial import STATE, Seconds
from tuning.sweep.trial_actor import (
    CPU,
    DIVERGED,
    EPOCH,
    MEASURES,
    OVERHEAD,
    SCHEDULE,
    SECONDS,
    START,
    TrialPlan,
    spent,
)


def as_config(proposal: Proposal, weighted: bool) -> dict[str, Any]:
    """A proposal as the trial actor's configuration. weighted: of a population, which changes the task weights."""
    weights: dict[str, float] = {}
    if weighted:
        weights = population.weights_of(proposal.choices)
        if proposal.checkpoint is not None:  # it continues with the weights that it had come to
            weights = dict(checkpoint.load(proposal.checkpoint / STATE).meta["weights"]["current"])
    resume = None if proposal.checkpoint is None else str(proposal.checkpoint)
    return {
        "proposal": {
            "number": proposal.number,
            "choices": proposal.choices,
            "weights": weights,
            "resume": resume,
        }
    }


class StoreSearcher(Searcher):
    """Suggests what the store proposes. It gets no results: `TrialCallback` writes those to the store."""

    def __init__(self, store: TrialStore) -> None:
        super().__init__()
        self._store = store

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        proposal = self._store.propose()
        return Searcher.FINISHED if proposal is None else as_config(proposal, weighted=False)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder is what a restart reads."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep continues from its own folder")


class TrialCallback(Callback):
    """Notes every result, ends trials in the store, and prints the sweep's progress.

    Args:
        store: of the sweep.
        plan: of its trials.
        journal: of the sweep itself.
        sink: told when a trial's journal has ended.
    """

    def __init__(self, store: TrialStore, plan: TrialPlan, journal: Journal, sink: NestedRunsSink) -> None:
        self._store, self._plan, self._journal, self._sink = store, plan, journal, sink
        self._curves: dict[int, dict[int, float]] = {}
        self._begun: dict[int, float] = {}
        self.schedules: dict[int, dict[str, Any]] = {}
        self.costs: dict[int, dict[str, float]] = {}
        self.began = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if not self._begun:
            self.began = time.monotonic()  # Ray has started its processes
        self._begun.setdefault(number_of(trial), time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        curve = self._curves.setdefault(number_of(trial), {})
        curve[int(result[EPOCH])] = float(result[self._plan.objective])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, result = number_of(trial), trial.last_result
        if result[DIVERGED]:
            self._end(number, "failed", result, f"diverged: {result[DIVERGED]}")
        else:
            last = result[EPOCH] >= self._plan.space.epochs
            self._end(number, "finished" if last else "stopped", result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = [line.strip() for line in str(trial.get_error() or "unknown error").splitlines() if line.strip()]
        self._end(number_of(trial), "failed", trial.last_result or {}, f"died: {lines[-1]}")

    def _end(self, number: int, state: str, result: dict[str, Any], reason: str = "") -> None:
        reason = uris.scrub(reason)  # what a library said, for the journal and whoever reads along
        wall = time.monotonic() - self._begun.get(number, time.monotonic())
        measures = dict(result.get(MEASURES) or {})
        seconds = spent(result) if SECONDS in result else Seconds()
        config = self._store.config(number)
        cost = {"seconds": wall, **{f"{name}_seconds": value for name, value in vars(seconds).items()}}
        cost |= {name: float(result.get(name, 0.0)) for name in (OVERHEAD, CPU, START)}
        self._write(number, state, measures, cost, reason)
        outcome = Outcome(self._curves.get(number, {}), state)
        self._store.finish(number, outcome, measures, cost, reason)
        self.costs[number] = cost
        self.schedules[number] = dict(result.get(SCHEDULE) or {})
        best = self._store.ranking(self._plan.mode)
        numbers = {
            "trials": len(self._store.outcomes),
            "failed": self._count("failed"),
            "stopped": self._count("stopped"),
        }
        if best:
            numbers[f"best/{self._plan.objective}"] = self._store.value(best[0])  # type: ignore[assignment]
        self._journal.metrics(len(self._store.outcomes), numbers, series="sweep")
        name = "+".join(config.tasks.active)
        value = f"{measures[self._plan.objective]:.4f}" if measures else reason
        print(f"{wall_clock()} trial {number:04d} {state:<8} {name}  {self._plan.objective} {value}", flush=True)
        print(self.standing(), flush=True)

    def _write(self, number: int, state: str, measures: dict[str, float], cost: dict[str, float], reason: str) -> None:
        """The end of a trial in its own journal, which the actor no longer writes to."""
        path = self._store.folder.trial(number) / "journal.jsonl"
        if not path.is_file():  # it died before it began
            return
        with Journal(path) as journal:
            journal.metrics(0, {f"cost/{name}": value for name, value in cost.items()}, series="trial")
            if measures:
                journal.metrics(1, {"objective": measures[self._plan.objective]}, series="trial")
            journal.tags({"state": state} | ({"reason": reason[:500]} if reason else {}))
            journal.status("FAILED" if state == "failed" else "FINISHED")
        self._sink.ended(path)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Around the whole search. When no actor runs any more: an attempt that Ray still had under way when its trial
        was given up has written RUNNING after the trial's end. When the search was interrupted: the trials under way
        are KILLED, until the next start continues with them."""
        interrupted = False
        try:
            yield
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            for number in {*self.costs, *(self._begun if interrupted else ())}:  # of this start
                path = self._store.folder.trial(number) / "journal.jsonl"
                if path.is_file():
                    outcome = self._store.outcomes.get(number)
                    ended = "KILLED" if outcome is None else "FAILED" if outcome.state == "failed" else "FINISHED"
                    with Journal(path) as journal:
                        journal.status(ended)

    def _count(self, state: str) -> int:
        return sum(outcome.state == state for outcome in self._store.outcomes.values())

    def standing(self) -> str:
        """`12/64 ended (7 stopped early, 0 failed)  running 2  best 0.61 (trial 0005)  left 00:04:10`."""
        store, ended = self._store, len(self._store.outcomes)
        running = len(store.choices) - ended
        line = f"{ended}/{store.trials} ended ({self._count('stopped')} stopped early, {self._count('failed')} failed)"
        line += f"  running {running}"
        best = store.ranking(self._plan.mode)
        if best:
            line += f"  best {store.value(best[0]):.4f} (trial {best[0]:04d})"
        if self.costs:
            left = (time.monotonic() - self.began) / len(self.costs) * store.left
            line += f"  left {clock(left)}"
        return line


def number_of(trial: Any) -> int:
    """Number of a Tune trial: its name, which no scheduler changes (a population copies configurations)."""
    return int(str(trial))
