"""What `python -m benchmarks.estimator` predicts follows from constants and counts; what it measures is a step."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import estimator
from benchmarks.estimator import Cpu
from conclugen.training import step_cost
from conclugen.training.step_cost import Kernel

SIZES = ["16x32x8x16", "24x16x8x8"]


def test_a_cpu_waits_for_what_it_starts() -> None:
    cpu = Cpu(
        "c", {"float32": 1e9, "bfloat16": 2e9}, memory=1e8, holds=0, inside=1.0, launch=1e-5, fresh=1e7, cache=1e6
    )
    assert cpu.seconds(Kernel("add", 1000)) == pytest.approx(1e-5 + 1e-5)
    assert cpu.seconds(Kernel("add", 1000, fresh=400)) == pytest.approx(1e-5 + 1e-5 + 4e-5)
    assert cpu.seconds(Kernel("mul_", 1000, fresh=400, drawn=True)) == pytest.approx(1e-5 + 1e-3)
    assert cpu.seconds(Kernel("mm", 1000, 10**6, "float32")) == pytest.approx(1e-5 + 1e-3)
    assert cpu.seconds(Kernel("mm", 1000, 10**6, "bfloat16")) == pytest.approx(1e-5 + 5e-4)


@pytest.mark.slow
def test_constants_are_rates_of_this_machine() -> None:
    """Within what any machine could be: a product of so many operations takes neither a nanosecond nor a minute."""
    machine = estimator.measured_machine(torch.device("cpu"), ["float32", "bfloat16"], repeats=1)
    assert isinstance(machine, Cpu) and set(machine.flops) == {"float32", "bfloat16", "tf32"}
    assert all(1e8 < rate < 1e14 for rate in machine.flops.values())
    assert 1e8 < machine.memory < 1e13 and 1e-7 < machine.launch < 1e-2 and min(machine.fresh, machine.cache) > 1e7


@pytest.mark.slow
def test_predictions_follow_from_the_constants_and_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    asked = ["--sizes", *SIZES, "--presets", "simclr:paper", "generative_only:improved", "--repeats", "1"]
    assert estimator.main([*asked, "--most", "1e9", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("| simclr:paper | ") == 2 and "error of a prediction:" in text
    report = json.loads(out.read_text())
    constants = report["machine"]
    for case in report["cases"]:
        config = estimator.configuration(case["preset"], case["size"], "float32")
        widths = {m: estimator.WIDTHS[m] for m in config.required_modalities}
        expected = 0.0
        for kernel, n in step_cost.count(config, widths, memory=None).kernels.items():
            work = max(kernel.bytes / constants["memory"], kernel.flops / constants["flops"]["float32"])
            work += kernel.fresh / constants["fresh"]
            expected += n * (constants["launch"] + (kernel.bytes / constants["cache"] if kernel.drawn else work))
        assert case["predicted"] == pytest.approx(expected)
        assert case["measured"] > 0 and case["ratio"] == pytest.approx(case["predicted"] / case["measured"])
    assert report["largest_error"] == pytest.approx(max(abs(case["ratio"] - 1) for case in report["cases"]))
    assert estimator.main([*asked[:2], "--presets", "simclr:paper", "--repeats", "1", "--most", "0"]) == 1


@pytest.mark.parametrize(
    "given", [["--sizes", "16x32x8"], ["--sizes", "ax1x1x1"], ["--presets", "simclrs:paper"], ["--repeats", "0"]]
)
def test_sizes_that_make_no_step_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert estimator.main(given) == 2
    assert capsys.readouterr().err.startswith("python -m benchmarks.estimator: ")


def test_a_step_is_measured_as_the_least_of_several() -> None:
    seconds = iter([9.0, 1.0, 3.0])

    def run() -> None:
        clock[0] += next(seconds)

    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator.time, "process_time", lambda: clock[0])
        assert math.isclose(estimator.seconds_of(run, torch.device("cpu"), 2), 1.0)
