"""`benchmarks.device` with small sizes on this machine: every part runs, and says so where one fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import device

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_runs_without_ray_and_the_data_plane(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from benchmarks import device\n"
        f"status = device.main(['--small', '--device', 'cpu', '--json', {str(tmp_path / 'found.json')!r}])\n"
        "taken = {name.partition('.')[0] for name in sys.modules} & {'ray', 'shards', 'ray_jobs', 'pyarrow'}\n"
        "assert not taken, taken\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == [] and len(found["checks"]) == 7
    assert all(said.startswith("ok: ") for said in found["checks"].values()), found["checks"]
    assert [(one["rows"], one["precision"]) for one in found["steps"]] == [(64, "float32"), (64, "bfloat16")]
    assert all(one["seconds"] > 0 and one["kernels"] > 100 and one["flops"] > 0 for one in found["steps"])
    # Parameters and both moments of AdamW of some thousand numbers, no more and no less than the model has.
    assert found["snapshot"]["bytes"] > 3 * 4 * 1000 and found["snapshot"]["seconds"] > 0
    assert found["prefetch"]["bytes"] == 64 * 4 * (24 + 16 + 8)
    assert set(found["encoders"]) == {"random-image", "random-audio", "random-text"}


def test_what_fails_is_told_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(where: object) -> str:
        return device._apart([1.0, 2.0], [1.0, 2.1], 1e-4)

    def broken(report: device.Report) -> None:
        raise RuntimeError("no such kernel")

    for name in ("_within_bfloat16", "_embeds", "_reads_back", "_of_its_moment", "_arrives", "_never_waits"):
        monkeypatch.setattr(device, name, lambda where: "made")
    monkeypatch.setattr(device, "_as_on_the_cpu", wrong)
    monkeypatch.setattr(device, "steps", broken)
    for name in ("snapshots", "batches"):
        monkeypatch.setattr(device, name, lambda report: report.tell("measured"))
    assert device.main(["--small", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: AssertionError: apart by 0.048 of the largest" in said and "no such kernel" in said
    assert said.count("measured") == 2 and "random-text" in said
    assert "failed: a step gives the CPU's losses, gradients and update, steps" in said


def test_no_part_begins_out_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(["--small", "--device", "cpu", "--seconds", "1e-9"]) == 0
    assert capsys.readouterr().out.count("left out: no time") == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seconds", "0"], "--seconds: found 0"),
        (["--batch", "4"], "--batch: found 4"),
        (["--encoders", "nothing"], "encoder 'nothing' is unknown"),
    ],
)
def test_numbers_and_names_that_measure_nothing_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device.main([*options, "--small", "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err
