"""A task of another package, in processes that have it installed, and what is said where it is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import conclugen
from conclugen import PretrainConfig
from conclugen.export import ExportError
from conclugen.training import checkpoint
from tests import installed
from tests.conclugen.runs import fresh, small_config

TRAIN = """
import sys
from conclugen import export, presets
from conclugen.training import checkpoint
from tests.conclugen.runs import fresh, rows, small_config

config = small_config("contrast_only", tasks={"alignment": {"weight": 0.5}})
assert list(config.tasks.active) == ["contrastive", "alignment"], config.tasks
whole, first = fresh(config), fresh(config)
for step in range(4):
    metrics = whole.step(rows(step))
    if step < 2:
        first.step(rows(step))
checkpoint.save(sys.argv[1] + "/state", first, {})
second = fresh(config)
checkpoint.load(sys.argv[1] + "/state").restore(second)
for step in (2, 3):
    resumed = second.step(rows(step))
assert float(resumed["alignment/steps"]) == float(metrics["alignment/steps"]) == 4
assert float(resumed["loss"]) == float(metrics["loss"]) and float(metrics["loss/alignment"]) > 0
export.save(sys.argv[1] + "/model", second)
print(export.load(sys.argv[1] + "/model").modalities)
"""


def run(code: str, place: Path, *points: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = installed.environment(Path(__file__).parent, place / "site", *points)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)


def test_it_trains_resumes_and_is_loaded_and_is_named_where_it_is_missing(tmp_path: Path) -> None:
    done = run(TRAIN, tmp_path, arguments=(str(tmp_path),))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('video', 'audio', 'text')"
    words = (
        r"tasks\.alignment: task 'alignment' comes from conclugen-alignment 0\.1, which is not installed here: install"
    )
    with pytest.raises(ExportError, match=words):
        conclugen.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"tasks\.alignment: no installed package provides task 'alignment'.*install"):
        checkpoint.load(tmp_path / "state").restore(fresh(small_config("contrast_only")))
    # A configuration that was written where the package is installed, and does not run its task, is any other's.
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    document["config"]["tasks"]["alignment"] = None
    assert list(PretrainConfig.from_dict(document["config"]).tasks.active) == ["contrastive"]


LIST = """
from conclugen.tasks import registry
print(*registry.registered())
"""


def test_what_can_t_be_registered_is_told_in_one_line_and_left_out(tmp_path: Path) -> None:
    further = {
        "alignment = conclugen_alignment:Alignment": ["'alignment' is registered twice", "uninstall one of them"],
        "gone = no_such_module:Gone": ["task 'gone' of further-1 1.0 (no_such_module:Gone)", "uninstall"],
        "clustering = conclugen_alignment:Alignment": ["'clustering'", "conclugen has a task of this name"],
    }
    done = run(LIST, tmp_path, *further)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == len(further), lines
    for words in further.values():
        assert any(all(word in line for word in words) for line in lines), (words, lines)
    names = done.stdout.split()
    assert names[:3] == ["contrastive", "clustering", "reconstruction"]
    assert "alignment" not in names and "gone" not in names


def test_flags_of_it_are_flags_like_others(tmp_path: Path) -> None:
    place = ["-m", "ray_jobs.pretrain", "--preset", "contrast_only", "--data", "/nowhere", "--run", "x"]
    environment = installed.environment(Path(__file__).parent, tmp_path / "site")
    flags = ["--pretrain.tasks.alignment.power", "9"]
    done = subprocess.run([sys.executable, *place, *flags], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "tasks.alignment.power: found 9" in done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "ray_jobs.pretrain", "--help-all"], capture_output=True, text=True, env=environment
    )
    assert "--tasks.alignment.power" in listed.stdout or "--pretrain.tasks.alignment.power" in listed.stdout
    assert "Exponent alpha of the distance" in listed.stdout
