"""The sweep's callback without Ray: what it is told of trials, and what store, journals, sink and terminal then say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_jobs.run_config import DataConfig
from ray_jobs.tracking.journal import Journal, metric_history, read_records
from tests.clock import Clock
from tests.cluster.sweeps import small_space
from tests.tuning.sweep.made_trials import Kit, TuneTrial
from tuning.sweep.job import ResourceConfig
from tuning.sweep.trial_actor import TrialPlan
from tuning.sweep.tune_callback import StoreSearcher, TrialCallback, as_config

EPOCHS = 9


class Sink:
    def __init__(self) -> None:
        self.journals: list[str] = []

    def ended(self, journal: Path) -> None:
        self.journals.append(journal.parent.name)


class Sweep:
    """A sweep of six trials with its callback; every proposed trial but the last has written a journal."""

    def __init__(self, folder: Path) -> None:
        space = small_space(epochs=EPOCHS).resolve({"video": 6, "audio": 5})
        self.kit = Kit(folder, space)
        self.store, self.sink = self.kit.store, Sink()
        data, resources = DataConfig(folder=str(folder)), ResourceConfig()
        plan = TrialPlan(
            folder, space, data, (3, 6, 9), "probe_accuracy", "max", "tests", "parent", {}, 1, 20.0, resources
        )
        self.journal = Journal(folder / "journal.jsonl", experiment="tests", name="sweep")
        self.callback = TrialCallback(self.store, plan, self.journal, self.sink)  # type: ignore[arg-type]

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            proposal = self.store.propose()
            assert proposal is not None and proposal.number == number
            if number < 5:
                path = self.store.folder.trial(number) / "journal.jsonl"
                with Journal(path, experiment="tests", name=f"trial {number}") as journal:
                    journal.status("RUNNING")
            self.callback.on_trial_start(0, [], TuneTrial(number))

    def report(self, number: int, epoch: int, value: float) -> dict[str, Any]:
        result = {
            "epoch": epoch,
            "probe_accuracy": value,
            "diverged": "",
            "measures": {"probe_accuracy": value, "recall@1": 0.25},
            "seconds": {"setup": 1.0, "train": 5.0, "measure": 2.0, "save": 0.5},
            "schedule": {"weights": {"contrastive": value}},
            "overhead_seconds": 0.125,
            "cpu_seconds": 7.0,
            "process_start_seconds": 3.0,
        }
        self.callback.on_trial_result(0, [], TuneTrial(number), result)
        return result

    def of(self, number: int, kind: str) -> list[dict[str, Any]]:
        path = self.store.folder.trial(number) / "journal.jsonl"
        return [record for record, _ in read_records(path) if record["kind"] == kind]

    def status(self, number: int) -> str:
        return str(self.of(number, "status")[-1]["status"])


@pytest.fixture
def swept(tmp_path: Path, clock: Clock) -> Sweep:
    return Sweep(tmp_path / "s")


def test_a_trial_s_end_is_in_the_book_the_journals_and_the_sink(
    swept: Sweep, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.sleep(100)  # Ray starts its processes: no trial's time
    swept.begin(0)
    clock.sleep(4)
    swept.begin(1)
    swept.report(0, 3, 0.25)
    clock.sleep(6)
    last = swept.report(0, EPOCHS, 0.5)
    swept.callback.on_trial_complete(0, [], TuneTrial(0, last))

    assert swept.store.outcomes[0].state == "finished"
    assert swept.store.outcomes[0].curve == {3: 0.25, 9: 0.5}
    (record,) = swept.store.ledger.records()
    cost = {"seconds": 10.0, "setup_seconds": 1.0, "train_seconds": 5.0, "measure_seconds": 2.0, "save_seconds": 0.5}
    cost |= {"overhead_seconds": 0.125, "cpu_seconds": 7.0, "process_start_seconds": 3.0}
    assert record.metrics == {"probe_accuracy": 0.5, "recall@1": 0.25} and record.cost == cost
    assert (record.status, record.reason, record.tags["number"]) == ("finished", "", 0)
    assert swept.callback.schedules == {0: {"weights": {"contrastive": 0.5}}} and swept.callback.costs == {0: cost}

    history = metric_history(swept.store.folder.trial(0) / "journal.jsonl")
    assert history["trial/objective"] == [(1, 0.5)]
    assert {n.removeprefix("trial/cost/"): v for n, v in history.items() if "cost" in n} == {
        name: [(0, value)] for name, value in cost.items()
    }
    assert swept.of(0, "tags")[-1]["values"] == {"state": "finished"}
    assert swept.status(0) == "FINISHED" and swept.status(1) == "RUNNING"
    assert swept.sink.journals == ["0000"]
    own = metric_history(swept.journal.path)
    names = {"trials": 1.0, "failed": 0.0, "stopped": 0.0, "best/probe_accuracy": 0.5}
    assert own == {f"sweep/{name}": [(1, value)] for name, value in names.items()}

    said = capsys.readouterr().out.splitlines()
    tasks = "+".join(swept.store.config(0).tasks.active)
    assert said[0].endswith(f" trial 0000 finished {tasks}  probe_accuracy 0.5000")
    # Ten seconds since the first trial began and one has ended: five more take fifty.
    assert said[1] == ("1/6 ended (0 stopped early, 0 failed)  running 1  best 0.5000 (trial 0000)  left 00:00:50")


def test_stopped_diverged_and_dead_trials_are_told_apart(
    swept: Sweep, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    swept.begin(0, 1, 2)
    swept.callback.on_trial_complete(0, [], TuneTrial(0, swept.report(0, 6, 0.375)))
    diverged = swept.report(1, 3, float("-inf")) | {"diverged": "loss/contrastive is not finite", "measures": None}
    swept.callback.on_trial_complete(0, [], TuneTrial(1, diverged))
    swept.callback.on_trial_error(0, [], TuneTrial(2, None, "Traceback:\n  File x\nActorDiedError: gone  \n\n"))

    assert {n: o.state for n, o in swept.store.outcomes.items()} == {0: "stopped", 1: "failed", 2: "failed"}
    records = {record.tags["number"]: record for record in swept.store.ledger.records()}
    assert [records[n].status for n in range(3)] == ["finished", "failed", "failed"]
    assert records[1].reason == "diverged: loss/contrastive is not finite" and records[1].tags["diverged"]
    assert records[2].reason == "died: ActorDiedError: gone" and not records[2].tags["diverged"]
    assert swept.store.died == [2], "a trial that died is tried again, one that diverged is not"
    assert records[2].metrics == {} and records[2].cost["train_seconds"] == 0.0
    assert [swept.status(n) for n in range(3)] == ["FINISHED", "FAILED", "FAILED"]
    assert swept.of(2, "tags")[-1]["values"] == {"state": "failed", "reason": "died: ActorDiedError: gone"}
    assert "trial/objective" not in metric_history(swept.store.folder.trial(2) / "journal.jsonl")
    own = metric_history(swept.journal.path)
    assert own["sweep/stopped"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert own["sweep/failed"] == [(1, 0.0), (2, 1.0), (3, 2.0)]
    said = capsys.readouterr().out.splitlines()
    assert said[-2].endswith("probe_accuracy died: ActorDiedError: gone")
    assert said[-1].startswith("3/6 ended (1 stopped early, 2 failed)  running 0  best 0.3750 (trial 0000)")


def test_nothing_has_ended_yet(swept: Sweep) -> None:
    swept.begin(0, 1)
    assert swept.callback.standing() == "0/6 ended (0 stopped early, 0 failed)  running 2"


def test_a_trial_that_died_before_its_journal_is_in_the_book_alone(swept: Sweep) -> None:
    swept.begin(0, 1, 2, 3, 4, 5)
    swept.callback.on_trial_error(0, [], TuneTrial(5))
    assert swept.store.died == [5] and swept.sink.journals == []
    assert swept.store.ledger.records()[0].reason == "died: unknown error"
    assert not (swept.store.folder.trial(5) / "journal.jsonl").exists()


def test_an_interrupted_search_leaves_the_trials_under_way_killed(swept: Sweep) -> None:
    swept.begin(0, 1, 2)
    with pytest.raises(KeyboardInterrupt), swept.callback.settled():
        swept.callback.on_trial_complete(0, [], TuneTrial(0, swept.report(0, EPOCHS, 0.5)))
        swept.callback.on_trial_error(0, [], TuneTrial(1, None, "lost"))
        raise KeyboardInterrupt
    assert [swept.status(n) for n in range(3)] == ["FINISHED", "FAILED", "KILLED"]


def test_an_attempt_that_ray_had_under_way_does_not_reopen_a_trial(swept: Sweep) -> None:
    swept.begin(0, 1, 2)
    with swept.callback.settled():
        swept.callback.on_trial_complete(0, [], TuneTrial(0, swept.report(0, EPOCHS, 0.5)))
        swept.callback.on_trial_error(0, [], TuneTrial(1, None, "lost"))
        for number in (0, 1):
            with Journal(swept.store.folder.trial(number) / "journal.jsonl") as journal:
                journal.status("RUNNING")
    assert [swept.status(n) for n in range(3)] == ["FINISHED", "FAILED", "RUNNING"], "trial 2 is not of this end"


def test_the_searcher_hands_out_the_book_and_then_ends(tmp_path: Path) -> None:
    kit = Kit(tmp_path, small_space(epochs=EPOCHS).resolve({"video": 6, "audio": 5}), trials=2)
    searcher = StoreSearcher(kit.store)
    handed = [searcher.suggest("a"), searcher.suggest("b")]
    assert handed == [
        {"proposal": {"number": n, "choices": kit.store.choices[n], "weights": {}, "resume": None}} for n in (0, 1)
    ]
    assert searcher.suggest("c") == "FINISHED"
    searcher.on_trial_complete("a", {"probe_accuracy": 1.0})
    assert kit.store.outcomes == {}, "results reach the store by the callback alone"
    with pytest.raises(NotImplementedError):
        searcher.restore("anywhere")


def test_a_trial_of_a_population_begins_with_its_own_weights(tmp_path: Path) -> None:
    kit = Kit(tmp_path, small_space(epochs=EPOCHS).resolve({"video": 6, "audio": 5}))
    proposal = kit.store.propose()
    assert proposal is not None
    weights = as_config(proposal, weighted=True)["proposal"]["weights"]
    drawn = {name: task.weight for name, task in kit.store.config(0).tasks.active.items()}
    assert weights == drawn and all(0.1 <= weight <= 1.0 for weight in drawn.values())
