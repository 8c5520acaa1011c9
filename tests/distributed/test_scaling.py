"""What `python -m benchmarks.scaling` counts against what real ranks send and what a real checkpoint holds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling import bare_model, parameters, state_bytes
from conclugen import Pretrainer, presets
from conclugen.training import step_cost
from tests.distributed import ranks
from tests.distributed.pool import Pool

SIZES = {"representation_dim": 16, "projection_dim": 6, "reconstruction_hidden_dim": 8}
SETTINGS: dict[str, Any] = {"global_batch": 10, "model": SIZES}
CASES = {
    "improved": ("conclugen", "improved", {"tasks": {"clustering": {"start_epoch": 0, "clusters": 5}}}),
    "paper": ("conclugen", "paper", {"tasks": {"clustering": {"start_epoch": 0, "clusters": 5}}}),
    "two modalities": ("contrast_only_video_text", "improved", {}),
    "no projection": ("generative_only", "paper", {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_collectives_are_those_of_real_ranks(workers: Pool, case: str, world: int) -> None:
    preset, recipe, more = CASES[case]
    config = presets.build(preset, recipe, **{**SETTINGS, **more})
    cost, on_gpus = (step_cost.count(config, ranks.WIDTHS, world, memory) for memory in (None, 10**9))
    expected = Counter((each.kind, each.bytes) for each in cost.collectives)
    # What GPUs scatter and gather, ranks on CPUs send each other in parts.
    moved, as_much = (sum(each.moved(world) for each in c.collectives) for c in (cost, on_gpus))
    assert moved == pytest.approx(as_much)
    assert {each.kind for each in on_gpus.collectives} <= {"gather", "scatter", "exchange", "sum"}
    expected["sum", cost.gradients] += 1
    for found in workers.run(world, ranks.collectives_of_a_step, config.to_dict(), ranks.make_batch(10, 0)):
        assert Counter((kind, size) for kind, size in found) == expected


def test_parameters_and_checkpoint_are_those_of_a_pretrainer() -> None:
    config = presets.build("conclugen", "paper", **SETTINGS)
    pretrainer = Pretrainer(config, ranks.WIDTHS, 3)
    pretrainer.step(ranks.own_rows(ranks.make_batch(10, 0), config))
    model = bare_model(config, ranks.WIDTHS)
    assert parameters(model) == sum(p.numel() for p in pretrainer.model.parameters())
    tensors, _ = pretrainer.state()
    counters = [x for name, x in tensors.items() if name.startswith("optimizer/") and name.endswith("/step")]
    held = sum(x.numel() * x.element_size() for x in tensors.values()) - sum(x.element_size() for x in counters)
    assert state_bytes(model) == held


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--representation", "64", "--projection", "8", "--hidden", "16", "--batch", "64", "--gpus", "1", "16"]
    out = tmp_path / "scale.json"
    small += ["--machine", "L4", "H100", "--network", "10", "400"]
    assert scaling.main([*small, "--checkpoint", str(tmp_path), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("\n| 16 | 64 | 4 | ") == 4, "sizes and times of two machines"
    assert "\n| gradients | " in text and "One checkpoint of" in text
    report = json.loads(out.read_text())
    many = [machine["estimates"][1]["seconds"] for machine in report["machines"]]
    assert all(seconds["10"]["step"] > seconds["400"]["step"] for seconds in many)
    assert report["checkpoint"]["bytes"] > report["state_bytes"][0]
    assert list(tmp_path.iterdir()) == [out], "what was written to be measured is gone"
    assert scaling.main(["--gpus", "0"]) == 2
