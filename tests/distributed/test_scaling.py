"""The arithmetic of `python -m benchmarks.scaling` against what real ranks send and what a real checkpoint holds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.flops import step_flops
from benchmarks.scaling import Rates, bare_model, collectives, estimate, parameters, state_bytes
from conclugen import Pretrainer, presets
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
@pytest.mark.parametrize("world", [2, 3])
def test_collectives_are_those_of_real_ranks(workers: Pool, case: str, world: int) -> None:
    preset, recipe, more = CASES[case]
    config = presets.build(preset, recipe, **{**SETTINGS, **more})
    model = bare_model(config, ranks.WIDTHS)
    predicted = collectives(config, model, world)
    assert predicted[-1].name == "gradients of parameters"
    expected = Counter((each.kind, each.bytes) for each in predicted)
    for found in workers.run(world, ranks.collectives_of_a_step, config.to_dict(), ranks.make_batch(10, 0)):
        assert Counter((kind, size) for kind, size in found) == expected


def test_a_task_whose_collectives_are_not_listed_is_refused() -> None:
    config = presets.build("conclugen", "improved", **SETTINGS, tasks={"siglip": {}})
    with pytest.raises(ValueError, match="no estimate of siglip: its collectives are not listed"):
        collectives(config, bare_model(config, ranks.WIDTHS), 2)


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


def test_times_follow_from_bytes_and_rates() -> None:
    config = presets.build("contrast_only", "improved", global_batch=4096)
    widths = {"video": 4096, "audio": 1024, "text": 768}
    rates = Rates(peak=1e15, tf32=4e14, utilisation=0.5, inside=1e11, between=1e10, node=8)
    alone, node, cluster = (estimate(config, widths, world, rates) for world in (1, 8, 64))
    assert alone.moved == alone.gradients == alone.blocking == 0 and alone.bound == "compute"
    assert alone.compute == pytest.approx(8 * node.compute) == pytest.approx(64 * cluster.compute)
    # Three pairs, four products of 2 B^2 P for each, in TF32; all else in bfloat16.
    flops = step_flops(config, widths)
    similarities = 3 * 8 * 4096**2 * config.model.projection_dim
    assert alone.similarities == pytest.approx(similarities / (4e14 * 0.5))
    assert alone.compute - alone.similarities == pytest.approx((flops["heads"] + flops["projection"]) / (1e15 * 0.5))
    size = 4 * parameters(bare_model(config, widths))
    assert node.gradients == pytest.approx(2 * size * 7 / 8 / 1e11)
    assert cluster.gradients == pytest.approx(2 * size * 63 / 64 / 1e10) and cluster.bound == "gradients"
    hidden = (cluster.compute - cluster.similarities) * 2 / 3
    assert cluster.step == pytest.approx(cluster.compute - hidden + cluster.blocking + cluster.gradients)
    assert cluster.node_read == pytest.approx(8 * 64 * 4 * sum(widths.values()) / cluster.step)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--representation", "64", "--projection", "8", "--hidden", "16", "--batch", "64", "--gpus", "1", "16"]
    out = tmp_path / "scale.json"
    assert scaling.main([*small, "--checkpoint", str(tmp_path), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "| 16 | 64 | 4 |" in text and "| projections | gather |" in text and "One checkpoint of" in text
    report = json.loads(out.read_text())
    assert report["checkpoint"]["bytes"] > report["state_bytes"][0]
    assert list(tmp_path.iterdir()) == [out], "what was written to be measured is gone"
    assert scaling.main(["--gpus", "0"]) == 2
