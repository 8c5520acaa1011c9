"""The benchmark of encoders, run small, on encoders that cost nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.encoders import command, worker
from benchmarks.encoders.command import Case
from conclugen.encoders import registry


@pytest.mark.parametrize("name", [*registry.SETS["random"], "prosody"])
def test_a_drawn_clip_is_what_an_encoder_takes(name: str) -> None:
    encoder = registry.create(name)
    vector = encoder.encode([worker.clip(encoder.info.takes, 1.0, 3)])[0]
    assert vector.shape == (encoder.info.width,) and np.isfinite(vector).all()


def test_states_are_compared_over_all_encoders() -> None:
    nothing: Any = None
    facts = {"width": 4, "starts": 0.5, "peak_mib": 100.0}
    cases = [
        Case("a", command.HERE, nothing, [[0.1, 0.3, 0.2], [0.4]], facts),
        Case("a", "old", nothing, [[1.0]], facts),
        Case("b", command.HERE, nothing, [[0.1]], facts),
        Case("b", "old", nothing, [[1.0]], facts),
    ]
    assert command.total(cases, command.HERE) == pytest.approx(0.3 + 0.1)
    assert command.total(cases, "old") == pytest.approx(2.0)
    lines = command.table(cases).splitlines()
    assert lines[2] == "| a | this code | 300.0 | 200.0 | 400.0 | 3.3 | 4 | 0.5 | 100 |"
    assert lines[-1] == "| all | old | 2,000.0 | | | 0.5 | | | |"


def test_what_makes_no_measurement_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--rounds", "0"], "--rounds: must be at least 1, got 0"),
        (["--seconds", "0"], "--seconds: must be above 0"),
        (["--encoders", "nobody"], "nobody"),
    ):
        assert command.main(words) == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_encoders_are_measured_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.json"
    words = ["--encoders", "random", "--rounds", "2", "--clips", "2", "--seconds", "0.5"]
    assert command.main([*words, "--json", str(out)]) == 0
    assert "| all | this code |" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert {case["encoder"] for case in report["cases"]} == set(registry.SETS["random"])
    assert all([len(each) for each in case["clips"]] == [2, 2] and case["peak_mib"] > 10 for case in report["cases"])
