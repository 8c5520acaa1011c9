"""The step benchmark: its FLOPs against torch's counter, its figures, its plots."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contrastive_memory, plots, step
from benchmarks import memory as bench_memory
from benchmarks.flops import similarity_flops, step_flops
from benchmarks.step import WIDTHS, random_batch
from conclugen import Pretrainer, presets
from conclugen.tasks.clustering import Clustering

B = 16
SIZES = {"representation_dim": 24, "projection_dim": 12, "reconstruction_hidden_dim": 20}
TINY = [
    *("--batch", "16", "--representation", "16", "--projection", "8", "--hidden", "8"),
    *("--rounds", "2", "--steps", "1", "--warmup", "1", "--threads", "1"),
]


@pytest.mark.parametrize(
    ("preset", "recipe", "options"),
    [
        ("conclugen", "paper", {}),
        ("conclugen", "improved", {"tasks": {"reconstruction": {"cross_modal": True}}}),
        ("contrast_cluster", "paper", {"tasks": {"clustering": {"mode": "individual"}}}),
        ("contrast_only_video_audio", "paper", {}),
        ("simclr", "paper", {}),
    ],
)
def test_products_are_those_that_torch_counts(
    preset: str, recipe: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shares of the gradient are measured every so many steps, by further products.
    options = {name: dict(value) for name, value in options.items()}
    tasks = options.setdefault("tasks", {})
    tasks["share_every"] = 0
    if "clustering" in presets.PRESETS[preset][1]:
        tasks["clustering"] = {**tasks.get("clustering", {}), "start_epoch": 0}
        # k-means is left out of the count, by definition.
        monkeypatch.setattr(Clustering, "_assign", lambda self, joint, *_: torch.zeros(len(joint), dtype=torch.int64))
    config = presets.build(preset, recipe, global_batch=B, model=SIZES, **options)
    fitted = {m: ([0.0] * d, [1.0] * d) for m, d in WIDTHS.items()} if config.model.standardize else None
    pretrainer = Pretrainer(config, WIDTHS, 3, fitted)
    batch = random_batch(B, "cpu")
    with FlopCounterMode(display=False) as counter:
        pretrainer.step(batch)
    flops = step_flops(config, WIDTHS)
    # Similarities are multiplied out once more in the backward pass, which is not counted as needed: 4 instead of 3.
    needed = flops.get("contrastive", 0) + flops.get("simclr", 0)
    assert counter.get_total_flops() == sum(flops.values()) - needed + similarity_flops(flops)


def test_published_size() -> None:
    """About 110 M parameters, used in two products of 2 FLOPs forward and backward each, less the lowest gradients."""
    config = presets.build("contrast_generative", "paper")
    flops = step_flops(config, WIDTHS)
    rows = sum(flops[part] for part in ("heads", "projection", "reconstruction")) / config.global_batch
    assert rows == pytest.approx(0.66e9, rel=0.1)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.svg")]
    try:
        assert step.main([*TINY, "--recipes", "improved", "--precisions", "bfloat16", "--peak", "2", *files]) == 0
    finally:
        torch.set_num_threads(threads)
    report = json.loads((tmp_path / "b.json").read_text())
    assert list(report["cases"]) == ["paper float32 eager B16", "improved bfloat16 eager B16"]
    for case in report["cases"].values():
        low, high = case["step_seconds_spread"]
        assert 0 < low <= case["step_seconds"] <= high
        assert case["samples_per_second"] == pytest.approx(16 / case["step_seconds"])
        assert case["flops_per_second"] == pytest.approx(sum(case["flops"].values()) / case["step_seconds"])
        assert case["utilisation"] == pytest.approx(case["flops_per_second"] / 2e12)
        assert math.fsum(case["part_shares"].values()) == pytest.approx(1)
        assert set(case["part_shares"]) == {
            *("heads", "projection", "contrastive", "clustering", "reconstruction", "optimizer")
        }
    plain, ours = report["cases"].values()
    assert ours["speedup"] == pytest.approx(plain["step_seconds"] / ours["step_seconds"])
    assert "improved bfloat16 eager B16" in capsys.readouterr().out
    assert ElementTree.parse(tmp_path / "b.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own file


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--rounds", "0"], "--rounds: found 0"), (["--plot", "a.png"], "ends in .svg"), (["--batch", "1"], "2 rows")],
)
def test_numbers_that_make_no_measurement(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_memory_report(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "m.json"), "--plot", str(tmp_path / "m.svg")]
    sizes = ["--batch", "1024", "2048", "--whole", "2048", "--projection", "4", "--block-rows", "16"]
    assert contrastive_memory.main([*sizes, *files]) == 0
    report = json.loads((tmp_path / "m.json").read_text())
    blocks, whole = (report[name]["2048"]["bytes"] for name in ("in blocks", "whole matrix"))
    assert blocks < 2048 * 2048 * 4 <= whole
    assert ElementTree.parse(tmp_path / "m.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own file


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_peak_sees_what_is_given_back_again() -> None:
    with bench_memory.Peak(torch.device("cpu")) as peak:
        torch.ones(50_000_000).sum()
    assert 190e6 < peak.bytes < 260e6


def test_lines_of_slope_two_are_twice_as_steep() -> None:
    [axes] = plots.lines({"a": [(1, 1), (4, 4)], "b": [(1, 1), (4, 16)]}, "t", "x", "y").axes
    rises = []
    for line in axes.lines:
        (_, low), (_, high) = axes.transData.transform(line.get_xydata())
        rises.append(high - low)
    assert rises[1] == pytest.approx(2 * rises[0]) and rises[0] > 0
