"""A task of another package through the jobs: two workers, a resumed run, a sweep that draws it, an ablation and
its report.

Each job is a process of its own with a Ray of its own, as a user starts it; Ray's workers find the package as
the driver does.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import installed
from tests.feature_corpus import write_corpus
from tests.tuning.labelled_shards import write_labelled
from tuning.ledger import Ledger

SIZES = ["--pretrain.model.representation_dim", "12", "--pretrain.model.projection_dim", "6"]


def job(environment: dict[str, str], module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_task_of_another_package_goes_through_every_job(tmp_path: Path) -> None:
    shards, faces = tmp_path / "shards", write_labelled(tmp_path / "faces", ("video", "audio"), published=True)
    write_corpus(shards, speakers=9, takes=6)
    out, environment = str(tmp_path / "out"), installed.environment(Path(__file__).parent, tmp_path / "site")
    run = ["--data", str(shards), "--run", "both", "--output", out, "--preset", "contrast_only", "--workers", "2"]
    run += ["--modalities", "video,audio", "--pretrain.tasks.alignment.weight", "0.5", "--batch", "24", *SIZES]
    job(environment, "ray_jobs.pretrain", *run, "--epochs", "1")
    saved = json.loads((tmp_path / "out" / "both" / "config.json").read_text("utf-8"))
    assert saved["pretrain"]["tasks"]["alignment"] == {"weight": 0.5, "power": 2.0}
    print(job(environment, "ray_jobs.pretrain", *run, "--epochs", "3"))  # continues, longer
    model = json.loads((tmp_path / "out" / "both" / "model" / "config.json").read_text("utf-8"))
    assert model["providers"] == {"alignment": "conclugen-alignment 0.1"}

    space = ["--space.tasks", "contrastive+alignment", "--space.modalities", "video+audio", "--space.epochs", "2"]
    space += ["--space.representation_dim", "12", "--space.projection_dim", "6", "--space.global_batch", "24"]
    search = ["--data", str(shards), "--run", "search", "--output", out, "--label", "emotion", "--trials", "3"]
    print(job(environment, "tuning.sweep", *search, "--search", "random", "--scheduler", "none", *space))
    best = (tmp_path / "out" / "search" / "best.yaml").read_text("utf-8")
    assert "alignment:" in best and "power:" in best

    ablate = ["--data", f"faces={faces}", "--run", "ablation", "--output", out, "--tasks", "contrastive,alignment"]
    ablate += ["--sections", "combinations", "--recipes", "improved", "--seeds", "1,2", "--parallel", "2"]
    ablate += [
        "--judging.fractions",
        "0.3",
        "--judging.draws",
        "1",
        "--sizes.global_batch",
        "24",
        "--sizes.epochs",
        "2",
    ]
    ablate += ["--sizes.representation_dim", "12", "--sizes.projection_dim", "6"]
    print(job(environment, "tuning.ablate", *ablate))
    records = Ledger.open(tmp_path / "out" / "ablation").finished()
    tasks = {tuple(record.tags["tasks"]) for record in records.values()}
    assert tasks == {("contrastive",), ("alignment",), ("contrastive", "alignment")}
    job(environment, "tuning.report", str(tmp_path / "out" / "ablation"))
    page = next((tmp_path / "out" / "ablation").rglob("report.html")).read_text("utf-8")
    assert "contrastive + alignment" in page
