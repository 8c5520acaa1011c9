"""What docs/extending.md prints is a package: it is written down, installed and used, as somebody does who has read no
other page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import installed

PATH = Path(__file__).resolve().parents[2] / "docs/extending.md"
PAGE = PATH.read_text("utf-8")
FILES = (
    *("my_package/margin.py", "parity_margin.py", "try_margin.py"),
    *("my_package/loudness.py", "try_loudness.py", "my_package/crema_d.py"),
)

USE = """
import json, runpy, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
from my_package.margin import Margin, MarginConfig
from conclugen import Batch, encoders, export
from conclugen.encoders import registry
from conclugen.latents import Latents, Presence
from ray_jobs import build_shards
from shards.adapters import IncompleteError, read_clips
from tests.conclugen.runs import fresh, rows, small_config
from tests.docs.test_site import command_of, typed

names, rng = ("video", "audio", "text"), np.random.default_rng(0)
z, present = rng.normal(size=(3, 7, 4)), rng.random((3, 7)) > 0.3
batch = Batch.of(
    SimpleNamespace(features={m: np.zeros((7, 1)) for m in names}, present=dict(zip(names, present)), row=np.arange(7))
)
presence = Presence.asked(batch, names)()
loss = Margin(MarginConfig(margin=0.3))(Latents(names, {}, {}, torch.from_numpy(z), presence, 0, 0))

config = small_config("contrast_only", tasks={"margin": {"weight": 0.5, "margin": 0.3}})
run = fresh(config)
losses = [float(run.step(rows(step % 3))["loss/margin"]) for step in range(60)]
export.save(Path(sys.argv[1]) / "model", run)
sound = np.repeat([0.5, 0.25], 1600).astype(np.float32)
encoder = encoders.create("loudness")
try:
    read_clips("crema-d", Path(sys.argv[2]))
    told = ""
except IncompleteError as error:
    told = str(error)
clips = read_clips("crema-d", Path(sys.argv[2]), allow_incomplete=True)
import my_package.crema_d
my_package.crema_d.NAME = None
try:
    read_clips("crema-d", Path(sys.argv[2]))
    fault = ""
except ValueError as error:
    fault = str(error)
typed = [command_of(words) for words in typed(Path(sys.argv[3]))]
jobs = [command.parse(arguments) for command, arguments in typed]
print(json.dumps({
    "z": z.tolist(), "present": present.tolist(), "loss": float(loss),
    "tasks": list(config.tasks.active), "losses": losses,
    "sequence": encoder.encode_sequence([sound])[0].tolist(), "vector": encoder.encode([sound]).tolist(),
    "clips": [[clip.key, clip.video, dict(clip.labels), clip.group, dict(clip.meta)] for clip in clips.clips],
    "left_out": clips.left_out, "told": told, "fault": fault,
    "tried": runpy.run_path(sys.argv[4] + "/try_margin.py")["losses"],
    "vectors": runpy.run_path(sys.argv[4] + "/try_loudness.py")["vectors"].tolist(),
    "about": registry.offers()["loudness"].about,
    "adapters": build_shards._known(),
    "jobs": [type(job).__name__ for job in jobs], "weight": jobs[0].pretrain.tasks.margin.weight,
    "loaded": export.load(Path(sys.argv[1]) / "model").modalities,
}))
"""

PARITY = """
import json
from tests.distributed.parity import assert_rank_parity

print(json.dumps(assert_rank_parity("margin", steps=3)))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is printed: each block of Python names its file in the first line."""
    place = tmp_path_factory.mktemp("package")
    (place / "my_package").mkdir()
    (place / "my_package/__init__.py").touch()
    programs = {code.partition("\n")[0].removeprefix("# "): code for code in blocks("python")}
    assert tuple(programs) == FILES
    for name, code in programs.items():
        (place / name).write_text(code)
    [toml] = blocks("toml")
    (place / "pyproject.toml").write_text(toml)
    return place


def run(package: Path, place: Path, code: str, *arguments: str) -> dict[str, object]:
    environment = installed.environment(package, place / "site")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_loops(z: np.ndarray, present: np.ndarray, margin: float) -> float:
    """The equation as the page's docstring has it."""
    unit, total = z / np.linalg.norm(z, axis=2, keepdims=True), 0.0
    for a, b in ((0, 1), (1, 2), (2, 0)):
        both = np.flatnonzero(present[a] & present[b])
        terms = [
            max(0.0, margin - unit[a, i] @ unit[b, i] + unit[a, i] @ unit[b, j]) for i in both for j in both if i != j
        ]
        total += sum(terms) / (len(both) * (len(both) - 1))
    return total


def test_a_task_an_encoder_and_a_data_set_are_added_by_the_page_alone(package: Path, tmp_path: Path) -> None:
    videos = tmp_path / "CREMA-D/VideoFlash"
    videos.mkdir(parents=True)
    for name in ("1001_DFA_ANG_XX", "1002_IEO_HAP_HI", "1091_WSI_SAD_XX_again"):
        (videos / f"{name}.flv").write_bytes(b"FLV")
    found = run(package, tmp_path, USE, str(tmp_path), str(videos.parent), str(PATH), str(package))
    assert found["loss"] == pytest.approx(by_loops(np.array(found["z"]), np.array(found["present"]), 0.3), abs=1e-12)
    assert found["tasks"] == ["contrastive", "margin"] and found["loaded"] == ["video", "audio", "text"]
    losses = found["losses"]
    assert isinstance(losses, list) and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert found["sequence"] == [[0.5], [0.25]] and found["vector"] == [[0.375]]
    assert found["vectors"] == [[0.0], [1.0]]
    assert found["clips"] == [
        ["1001_DFA_ANG_XX", "VideoFlash/1001_DFA_ANG_XX.flv", {"emotion": "anger"}, "1001", {"sentence": "DFA"}],
        ["1002_IEO_HAP_HI", "VideoFlash/1002_IEO_HAP_HI.flv", {"emotion": "happiness"}, "1002", {"sentence": "IEO"}],
    ]
    assert found["left_out"] == {"VideoFlash/1091_WSI_SAD_XX_again.flv": "not a name of this set"}
    assert "clips: expected 7,442, found 2" in str(found["told"])
    assert found["jobs"] == ["PretrainJob", "ExtractJob", "BuildJob", "CheckJob"] and found["weight"] == 0.5
    tried = found["tried"]
    assert isinstance(tried, list) and len(tried) == 10 and tried[-1] < tried[0]
    assert found["about"] == "Margin ranking, loudness, CREMA-D (my-package 0.1)"
    line = 1 + (package / "my_package/crema_d.py").read_text().partition("match = NAME.fullmatch")[0].count("\n")
    assert re.match(rf"adapter crema-d \(.*/my_package/crema_d\.py:{line}\): AttributeError: ", str(found["fault"]))
    assert "crema-d       CREMA-D: VideoFlash/" in str(found["adapters"])


@pytest.mark.slow  # two and three gloo ranks
def test_the_task_of_the_page_does_not_depend_on_the_number_of_ranks(package: Path, tmp_path: Path) -> None:
    worst = run(package, tmp_path, PARITY)
    assert worst and max(float(value) for value in worst.values()) <= 1e-9  # type: ignore[arg-type]
