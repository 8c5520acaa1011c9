"""An ablation on a real local Ray: killed and started again, a cell that dies, nested runs, a report."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from conclugen.evaluation.config import JudgingConfig
from tests.tuning.labelled_shards import TINY, write_labelled
from tuning.ablation.cell import Cell
from tuning.ablation.plan import AblateJob, SizesConfig, plan
from tuning.ablation.run import connect, run_cells
from tuning.ablation.tracking import CellRuns
from tuning.dataset import open_set
from tuning.ledger import Ledger, Record
from tuning.report.report import report

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "faces", ("video", "audio"), published=True)


def records(folder: Path) -> list[str]:
    return [record.key for record in Ledger.open(folder).history() if record.status == "finished"]


@pytest.mark.slow
def test_killed_and_started_again_runs_no_cell_twice_and_its_runs_are_nested(shards: Path, tmp_path: Path) -> None:
    sizes = [word for name, value in {**TINY, "epochs": 6}.items() for word in (f"--sizes.{name}", str(value))]
    command = [sys.executable, "-m", "tuning.ablate", "--datasets.faces", str(shards), "--output", str(tmp_path)]
    command += ["--name", "first", "--seeds", "[1,2]", "--recipes", "[improved]", "--judging.fractions", "[0.3]"]
    command += ["--sections", "[combinations,presets,baselines]", "--judging.draws", "2", "--parallel", "2", *sizes]
    folder = tmp_path / "first"

    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while len(records(folder)) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = records(folder)
    assert before

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    # 7 combinations and untrained heads in two seeds, three plain raw ones, and the constant,
    # the balanced and the single raw row; presets are combinations again, or holes.
    assert "22 different cells" in done.stdout and f"of which {len(before)} are done" in done.stdout
    assert set(before) <= set(records(folder)) and Counter(records(folder)).most_common(1)[0][1] == 1
    assert len(records(folder)) == 22

    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "of which 22 are done" in again.stdout
    assert len(records(folder)) == 22

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("conclugen")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert parent.info.run_name == "first" and len(children) == 22
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = {run.info.run_name for run in children}
    assert "faces  contrastive+clustering  video+audio  improved  seed 2" in names and len(names) == 22
    by_name = {run.info.run_name: run for run in children}
    for record in Ledger.open(folder).finished().values():
        (name,) = [n for n, run in by_name.items() if run.data.tags["tasks"] == " ".join(record.tags["tasks"])
                   if run.data.tags["modalities"] == " ".join(record.tags["modalities"])
                   if run.data.tags["system"] == record.tags["system"]
                   if run.data.tags["seed"] == str(record.tags["seed"])]  # fmt: skip
        assert by_name[name].data.metrics["accuracy:0.3"] == pytest.approx(record.metrics["accuracy@0.3"])
        took_ms = by_name[name].info.end_time - by_name[name].info.start_time
        assert took_ms == pytest.approx(1000 * record.cost["seconds"], abs=2)
    files = report(folder)
    assert "contrastive + clustering + reconstruction" in files[0].read_text("utf-8")


def test_a_cell_that_dies_is_a_hole_and_the_others_go_on(shared_ray: None, shards: Path, tmp_path: Path) -> None:
    judging, sizes = JudgingConfig(fractions=(0.3,), draws=1), SizesConfig(**TINY)
    job = AblateJob({"faces": str(shards)}, seeds=(1, 2), recipes=("improved",), sizes=sizes, sections=("baselines",))
    data = open_set("faces", str(shards), judging)
    cells = list(plan(job, [data]).cells)[:3]
    cells.insert(1, replace(cells[0], key="broken", cell=Cell("raw", ("smell",))))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = CellRuns(tmp_path / "run", uri, experiment="e", name="run", params={}, tags={})
    ledger = Ledger.open(tmp_path / "run")
    (failed,) = run_cells(cells, {"faces": data}, {c.key: 1.0 for c in cells}, ledger, runs, connect(2))
    assert failed.key == "broken" and failed.reason == "KeyError: 'smell'"
    assert len(ledger.finished()) == 3
    with runs.parent.running(lambda: 1):
        pass
    assert runs.close() == []
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    states = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert states == {"FINISHED": 3, "FAILED": 2}, "a cell has failed, so the ablation is not finished"


def test_a_server_that_is_away_stops_nothing_and_gets_all_later(shards: Path, tmp_path: Path) -> None:
    data = open_set("faces", str(shards), JudgingConfig(fractions=(0.3,), draws=1))
    job = AblateJob({"faces": str(shards)}, seeds=(1, 2), sizes=SizesConfig(**TINY), sections=("baselines",))
    (first, *_) = plan(job, [data]).cells
    done = Record(first.key, "cell", "finished", tags=first.tags, metrics={"accuracy@0.3": 0.5})
    away = "http://127.0.0.1:9"  # the discard port: nobody answers
    runs = CellRuns(tmp_path / "run", away, experiment="e", name="run", params={}, tags={})
    runs.cell(done, first.title)
    assert len(runs.close(timeout_s=1)) == 2, "it ends, though nobody answers"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = CellRuns(tmp_path / "run", uri, experiment="e", name="run", params={}, tags={})
    runs.cell(done, first.title)
    assert runs.close() == []
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2
