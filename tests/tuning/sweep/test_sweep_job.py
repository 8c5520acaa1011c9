"""A sweep's job and its store, without Ray: what is refused, when trials report, and what is remembered."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import conclugen
from conclugen import Batch
from conclugen.common.locks import folder_held
from conclugen.common.options import save
from conclugen.evaluation.config import MeasureConfig
from tests.cluster.sweeps import fixed_space, small_space, small_sweep
from tests.feature_corpus import write_corpus
from tests.tuning.sweep.made_trials import Kit
from tuning.report.report import report
from tuning.sweep import replay, results
from tuning.sweep.__main__ import COMMAND
from tuning.sweep.folder import SweepFolder, TrialStore
from tuning.sweep.job import ScheduleConfig, SweepJob
from tuning.sweep.objective import Judge
from tuning.sweep.population import Schedule, check_space
from tuning.sweep.search import Outcome, searcher
from tuning.sweep.space import laptop, published
from tuning.sweep.sweep import count, identity, prepare, sweep
from tuning.sweep.trial import Trial

WIDTHS = {"video": 6, "audio": 5}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder, speakers=6, takes=5)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_no_trial_is_stopped_before_its_last_task_has_begun() -> None:
    assert ScheduleConfig().grace(published()) == 16  # clustering may begin with the 16th epoch
    assert ScheduleConfig().grace(dataclasses.replace(published(), tasks=("contrastive",))) == 60 // 9
    assert ScheduleConfig(grace_epochs=20).grace(published()) == 20
    with pytest.raises(ValueError, match=r"schedule.grace_epochs: 3, but a task may start as late as epoch 15"):
        ScheduleConfig(grace_epochs=3).grace(published())


def test_reports_fall_on_the_rungs_and_on_the_end() -> None:
    space = dataclasses.replace(laptop(), epochs=40)
    assert ScheduleConfig(grace_epochs=4).milestones(space, "asha") == (4, 12, 36, 40)
    assert ScheduleConfig(grace_epochs=4, report_epochs=10).milestones(space, "asha") == (4, 10, 12, 20, 30, 36, 40)
    assert ScheduleConfig().milestones(space, "none") == (40,)
    assert ScheduleConfig(exchange_epochs=15).milestones(space, "pbt") == (15, 30, 40)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--space.tasks", "[]"], "a space without one has no trial"),
        (["--trials", "0"], "a sweep without trials finds nothing"),
        (["--objective", "probe_acc"], "did you mean 'probe_accuracy'"),
        (["--objective", "loss"], "unknown value 'loss'"),
        (["--data.validation_view", "test"], "--data.validation-view: 'test' is a test view"),
        (["--data.view", "everything"], "overlaps the test view 'test'"),
        (["--data", "/nowhere/at-all"], "/nowhere/at-all"),
        (["--data.label", "emotoin"], "did you mean 'emotion'"),
        (["--data.label", "null"], "needs labels; give data.label"),
        (["--space.modalities", '["vide"]'], "did you mean 'video'"),
        (["--space.global_batch", "[100000]"], "--space.global-batch: 100000: "),
        (["--space.global_batch", "[100000]"], "fewer than one global batch"),
        (["--space.start_epoch", "[20]"], "is not before the end of a trial"),
        (["--scheduler", "pbt"], "the trials of a population take over each other's states"),
        (["--scheduler", "pbt", "--resources.workers", "2"], "needs trials of one process"),
        (["--search", "grid", "--space.global_batch", "[32]"], "more than 10,000 points"),
        (["--search", "gird"], "search"),
        (["--measure.fusion", "sum"], "--measure.fusion: 'sum'"),
        (["--tracking_uri", "sqlite:///relative.db"], "is relative"),
        (["--run", "../up"], "cannot name a folder"),
        (["--space.clustres", "[4]"], "did you mean --space.clusters?"),
    ],
)
def test_what_cannot_work_is_said_before_a_trial_starts(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    given = ["--data", str(shards), "--label", "emotion", "--run", "refused", "--output", str(tmp_path)]
    try:
        status = COMMAND.main([*given, *flags])
        said = capsys.readouterr().err
    except ValueError as error:
        status, said = 2, str(error)
    assert status != 0 and message in said, said
    assert "Traceback" not in said
    assert not (tmp_path / "refused" / "trials").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--space", "laptpo"], "error: --space: unknown value 'laptpo' (did you mean 'laptop'?)"),
        (["--trials", "0"], "error: --trials: "),
        (["--schedule.reduction", "1"], "error: --schedule.reduction: "),
    ],
)
def test_a_command_line_that_cannot_be_read_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["sweep", "--data", "anywhere", "--run", "refused", *given])
    assert COMMAND.main() == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(message)


class RawJudge:
    """Counts how often rows beside the trials are asked for."""

    classes = ("calm", "sad")

    def __init__(self) -> None:
        self.config, self.asked = MeasureConfig(), 0

    def rows_beside(self) -> dict[tuple[str, str], dict[str, float]]:
        self.asked += 1
        scores = {"probe_uar": 0.4, "probe_macro_f1": 0.35}
        rows = {("raw", "probe"): 0.55, ("raw balanced", "probe"): 0.62, ("raw balanced", "rbf_machine"): 0.6}
        found = {row: {"probe_accuracy": value, **scores} for row, value in rows.items()}
        found["raw balanced", "probe"] |= {
            "probe_recall/calm": 0.7,
            "probe_recall/sad": 0.1,
            "probe_confusion/0/0": 7.0,
        }
        return {("majority", "majority"): {"probe_accuracy": 0.8, "probe_uar": 0.5, "probe_macro_f1": 0.4}, **found}


def test_raw_rows_are_judged_once_and_stand_beside_the_best_trial(tmp_path: Path) -> None:
    """A constant is no raw row, however well it scores: trials are not compared with it."""
    kit, judge = Kit(tmp_path / "s", small_space().resolve(WIDTHS)), RawJudge()
    for _ in range(2):
        kit.store.judge_beside(judge)  # type: ignore[arg-type]
    assert judge.asked == 1 and list(kit.store.raw_rows) == ["raw", "raw balanced", "raw balanced, rbf machine"]
    assert next(iter(kit.store.baselines)) == "majority"
    proposal = kit.store.propose()
    assert proposal is not None
    measures = {"probe_accuracy": 0.7, "probe_uar": 0.5, "probe_recall/calm": 0.75, "probe_recall/sad": 0.25}
    measures |= {"with_raw/probe_accuracy": 0.72, "with_raw/probe_uar": 0.55}
    measures |= {
        "probe_confusion/0/0": 6.0,
        "probe_confusion/0/1": 2.0,
        "probe_confusion/1/0": 3.0,
        "probe_confusion/1/1": 1.0,
    }
    kit.store.finish(proposal.number, Outcome({9: 0.7}, "finished"), measures, {"seconds": 1.0})
    assert results.strongest_raw(kit.store) == ("raw balanced", "probe_accuracy", 0.62)
    told = results.table(kit.store, "max")
    assert "| raw balanced, rbf machine | raw row | 0.6000 | 0.400 |" in told
    assert "| majority | baseline | 0.8000 | 0.500 |" in told and "| 0000 + raw | trial | 0.7200 | 0.550 |" in told
    both = "probe_accuracy: +0.080; beside raw features +0.100 ("
    assert f"Trial 0000 minus raw balanced, the strongest raw row, {both}" in told
    assert "Recall by class, trial 0000: calm 0.75, sad 0.25." in told
    assert "Recall by class, raw balanced: calm 0.70, sad 0.10." in told
    (record,) = (r for r in kit.store.ledger.records() if r.kind == "trial")
    assert not any("confusion" in name for name in record.metrics)
    assert record.groups["class_rows"] == {"calm": 8.0, "sad": 4.0}
    assert record.groups["confusion/calm"] == {"calm": 6.0, "sad": 2.0}
    again = Kit(tmp_path / "s", small_space().resolve(WIDTHS))
    again.store.judge_beside(judge)  # type: ignore[arg-type]
    assert judge.asked == 1 and again.store.raw_rows == kit.store.raw_rows and len(again.store.outcomes) == 1
    assert results.table(again.store, "max") == told
    for file in (tmp_path / "s" / "ledger").glob("*.jsonl"):  # as a start leaves it that was killed amid the raw rows
        file.write_text("".join(line for line in file.read_text().splitlines(True) if "rbf_machine" not in line))
    again = Kit(tmp_path / "s", small_space().resolve(WIDTHS))
    again.store.judge_beside(judge)  # type: ignore[arg-type]
    assert judge.asked == 2 and again.store.raw_rows == kit.store.raw_rows
    assert sum(record.kind == "baseline" for record in again.store.ledger.history()) == 4
    page = report(tmp_path / "s")[1].read_text()
    assert (
        "| trial 0, the best | 0.7000 | 0.5000 | — |" in page and "| raw balanced | 0.6200 | 0.4000 | 0.3500 |" in page
    )
    assert "Strongest raw row by probe_accuracy: raw balanced (0.6200); the best trial minus it: +0.0800" in page
    assert "| trial 0, the best, + raw | 0.7200 | 0.5500 | — |" in page
    shown = page[page.index("confusion of trial 0") :]
    assert "| calm | 8 | 75.0 | 25.0 |" in shown and "| sad | 4 | 75.0 | 25.0 |" in shown


def test_without_an_objective_of_labels_raw_rows_are_compared_by_what_probes_are_chosen_by(tmp_path: Path) -> None:
    """Plain raw features are ahead in accuracy, balanced ones in UAR."""
    space, strongest = small_space().resolve(WIDTHS), {"accuracy": "raw", "uar": "raw balanced"}
    for select_by, name in strongest.items():
        folder = SweepFolder(tmp_path / select_by)
        folder.acquire({"space": 1})
        identity = {"manifest": "m", **({} if select_by == "accuracy" else {"select_by": select_by})}
        source = searcher("random", space, 3, "max", folder.path)
        store = TrialStore(folder, space, source, 2, "effective_rank", identity)
        judge = RawJudge()
        rows = {
            ("raw", "probe"): {"probe_accuracy": 0.7, "probe_uar": 0.3, "probe_macro_f1": 0.3},
            ("raw balanced", "probe"): {"probe_accuracy": 0.6, "probe_uar": 0.5, "probe_macro_f1": 0.3},
        }
        judge.rows_beside = lambda rows=rows: rows  # type: ignore[misc]
        store.judge_beside(judge)  # type: ignore[arg-type]
        measures = {"effective_rank": 3.0, "probe_accuracy": 0.65, "probe_uar": 0.4, "probe_macro_f1": 0.3}
        proposal = store.propose()
        assert proposal is not None
        store.finish(proposal.number, Outcome({9: 3.0}, "finished"), measures, {"seconds": 1.0})
        score = f"probe_{select_by}"
        assert results.strongest_raw(store) == (name, score, rows[name, "probe"][score])
        difference = measures[score] - rows[name, "probe"][score]
        assert f"minus {name}, the strongest raw row, {score}: {difference:+.3f} (" in results.table(store, "max")
        page = report(folder.path)[1].read_text()
        assert f"Strongest raw row by {score}: {name} (" in page


def test_the_heads_of_the_best_trial_are_judged_as_they_were_before_training(
    one_thread: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_sweep(shards, tmp_path, "beside", space=fixed_space(epochs=2, global_batch=(30,)))
    ready = prepare(job)
    folder = SweepFolder(job.folder)
    folder.acquire(identity(ready))
    source = searcher("random", ready.space, 0, "max", tmp_path)
    store = TrialStore(folder, ready.space, source, 1, "probe_accuracy", ready.identity)
    store.judge_beside(ready.shared.judge)
    assert set(store.baselines) == {"majority", "raw", "raw balanced", "best single modality"}
    proposal = store.propose()
    assert proposal is not None
    trial = Trial(store.config(proposal.number), ready.shared)
    before = ready.shared.judge.probe(trial.pretrainer)
    measures = trial.advance(2)
    assert "with_raw/probe_accuracy" in measures
    store.finish(proposal.number, Outcome({2: measures["probe_accuracy"]}, "finished"), measures, {"seconds": 1.0})
    store.judge_untrained(proposal.number, ready.shared)
    row = store.baselines["untrained heads, as trial 0000"]
    assert row.metrics == pytest.approx(before) and row.groups["class_rows"]
    assert "untrained heads, as trial 0000" not in store.raw_rows
    assert "| untrained heads, as trial 0000 | baseline | " in results.table(store, "max")
    monkeypatch.setattr(Judge, "probe", lambda *_: pytest.fail("judged again"))
    store.judge_untrained(proposal.number, ready.shared)
    written = results.write(store, job, "max")
    assert folder.plots / "confusion.png" in written and (folder.plots / "confusion.png").is_file()


def test_untrained_heads_carry_the_number_of_the_last_best_trial(tmp_path: Path) -> None:
    """Three starts, each with a new best trial: the second has heads of another width, the third those of the first."""
    space = fixed_space(representation_dim=(8, 16)).resolve(WIDTHS)
    asked: list[int] = []

    def probe(heads: int, ended: bool) -> dict[str, float]:
        asked.append(heads)
        return {"probe_accuracy": heads / 100, "probe_uar": 0.25, "with_raw/probe_accuracy": 0.9}

    shared: Any = SimpleNamespace(
        judge=SimpleNamespace(probe=probe), pretrainer=lambda c, _: c.model.representation_dim, plan=lambda _: None
    )
    kit = Kit(tmp_path / "s", space)
    kit.store.judge_beside(RawJudge())  # type: ignore[arg-type]
    widths = {}
    while (proposal := kit.store.propose()) is not None:
        widths[proposal.number] = kit.store.config(proposal.number).model.representation_dim
    second = next(n for n in widths if widths[n] != widths[0])
    third = next(n for n in widths if n > second and widths[n] == widths[0])
    for value, number in ((0.5, 0), (0.6, second), (0.7, third)):
        kit = Kit(tmp_path / "s", space)
        kit.store.judge_beside(RawJudge())  # type: ignore[arg-type]
        kit.end(number, value)
        for _ in range(2):  # a start in which nothing is better writes nothing
            kit.store.judge_untrained(number, shared)
        row, score = f"untrained heads, as trial {number:04d}", widths[number] / 100
        assert kit.store.baselines[row].metrics == {"probe_accuracy": score, "probe_uar": 0.25}
        (told,) = (line for line in results.table(kit.store, "max").splitlines() if "untrained heads" in line)
        assert told.startswith(f"| {row} | baseline | {score:.4f} |")
        (told,) = (line for line in report(tmp_path / "s")[1].read_text().splitlines() if "untrained heads" in line)
        assert told == f"| {row} | {score:.4f} | 0.2500 | — |"
    assert asked == [widths[0], widths[second]]
    (last,) = (r for r in kit.store.ledger.finished().values() if r.tags.get("row") == row)
    assert [r.tags["row"] for r in kit.store.ledger.history() if r.key == last.key] == [
        "untrained heads, as trial 0000",
        row,
    ]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_the_book_goes_on_where_it_was(tmp_path: Path, search: str) -> None:
    space = small_space().resolve(WIDTHS)
    first = Kit(tmp_path, space, search)
    begun = [first.store.propose() for _ in range(4)]
    first.end(0, 0.3)
    first.end(2, 0.5, "stopped")
    first.end(3, float("-inf"), "failed", "diverged: loss/contrastive not finite")

    second = Kit(tmp_path, space, search)
    assert set(second.store.outcomes) == {0, 2, 3} and second.store.left == 3 and second.store.resumed
    again = second.store.propose()
    assert again == begun[1]
    fresh = [second.store.propose() for _ in range(3)]
    assert [p.number for p in fresh if p is not None] == [4, 5] and fresh[2] is None
    second.end(1, 0.9, "failed", "died: the node was lost")
    third = Kit(tmp_path, space, search)
    redone = third.store.propose()
    assert redone is not None and redone.number == 1, "a trial that a machine killed is run again"
    assert third.store.ranking("max") == [0, 2] and third.store.ranking("min") == [0, 2]
    third.end(1, 0.2)
    assert third.store.ranking("max") == [0, 1, 2] and third.store.ranking("min") == [1, 0, 2]


@pytest.mark.parametrize("search", ["random", "tpe", "grid"])
def test_equal_trials_are_run_once(tmp_path: Path, search: str) -> None:
    """Six configurations in all: a sweep of twenty trials runs six, and says that there are no more."""
    space = fixed_space(
        representation_dim=(8, 16, 32), global_batch=(30, 60), tasks=("contrastive",)
    ).resolve(WIDTHS)  # fmt: skip
    kit = Kit(tmp_path, space, search, trials=20)
    seen: set[str] = set()
    for number in range(6):
        proposal = kit.store.propose()
        assert proposal is not None and proposal.number == number
        seen.add(kit.store.key(proposal.choices))
        if number != 3:
            kit.end(number, 0.1 * number)
    assert len(seen) == 6 and kit.store.propose() is None and kit.store.exhausted


def test_one_process_at_a_time(shards: Path, tmp_path: Path) -> None:
    job = small_sweep(shards, tmp_path, "one")
    with (
        folder_held(job.folder, "it is being tested", "another folder"),
        pytest.raises(ValueError, match=r"one: the sweep is being run by process \d+ on .* choose another --run"),
    ):
        sweep(job)
    assert not (job.folder / "trials").exists()


def test_a_folder_is_one_sweeps(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "one")
    folder.acquire({"space": 1})
    with pytest.raises(ValueError, match=r"space: 1 then, 2 now[\s\S]*Choose another --name"):
        folder.acquire({"space": 2})


def test_what_makes_a_sweep_the_same(shards: Path, tmp_path: Path) -> None:
    def of(**changes: Any) -> dict[str, Any]:
        job: SweepJob = small_sweep(shards, tmp_path, "same", **changes)
        return identity(prepare(job))

    base = of()
    assert of(trials=99) == base
    for changes in (
        {"space": small_space(epochs=6)},
        {"objective": "effective_rank"},
        {"search": "tpe"},
        {"search_seed": 1},
        {"scheduler": "none"},
    ):
        assert of(**changes) != base, changes


def test_a_grid_is_whole(tmp_path: Path) -> None:
    space = fixed_space(representation_dim=(8, 16), tasks=("contrastive",)).resolve(WIDTHS)
    source = searcher("grid", space, 0, "max", tmp_path)
    job = small_sweep(tmp_path, tmp_path, "grid", search="grid", trials=None)
    assert count(job, source) == 2
    with pytest.raises(ValueError, match=r"trials: 1, but the grid of this space has 2 points"):
        count(dataclasses.replace(job, trials=1), source)
    with pytest.raises(ValueError, match=r"'model\.representation_dim' has several values"):
        check_space(fixed_space(representation_dim=(8, 16)).resolve(WIDTHS))


def test_the_model_of_a_population_is_trained_again_and_exported(
    one_thread: None, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_sweep(shards, tmp_path, "population", space=fixed_space(epochs=3, global_batch=(30,)), scheduler="pbt")
    ready = prepare(job)
    folder = SweepFolder(job.folder)
    assert replay.main([str(folder.path)]) == 2  # nothing there yet
    assert "schedule.json: no schedule of a population-based sweep" in capsys.readouterr().err
    folder.acquire(identity(ready))
    save(job, folder.settings)
    choices = searcher("random", ready.space, 0, "max", tmp_path).ask(0, 0)
    assert choices is not None
    trial = Trial(ready.space.config(choices), ready.shared)
    trial.advance(1)
    trial.pretrainer.set_weights({"contrastive": 1.25, "reconstruction": 0.2})
    value = trial.advance(3)["probe_accuracy"]
    Schedule.of(trial.config, trial.pretrainer.weighting.state(), "probe_accuracy", value).save(
        folder.path / "schedule.json"
    )

    assert replay.main([str(folder.path)]) == 0
    said = capsys.readouterr().out
    assert f"probe_accuracy {value:.4f}, in the sweep {value:.4f}; weights changed 1 times in 3 epochs" in said
    model, rows = conclugen.load(folder.model), ready.shared.judge.validation
    z, _ = model.represent({m: rows.features[m] for m in trial.config.modalities})
    for modality, own in trial.pretrainer.embed(Batch.of(rows)).items():
        there = rows.present[modality]
        np.testing.assert_allclose(z[modality][there], own.numpy()[there], atol=1e-6)
    assert model.info["data"]["data.manifest"] == ready.manifest.digest
