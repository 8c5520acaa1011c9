"""Nodes that die or are taken away, in a cluster of several: in a process of its own, which starts that cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.faults import ON_NODES, REPOSITORY
from tests.cluster.runs import without_ray_of_the_test


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ON_NODES)
def test_a_node_is_lost_and_the_result_is_the_same(tmp_path: Path, fault: str) -> None:
    """A notice leads to a checkpoint in time; without one the run goes on from the last; fewer workers do as well."""
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.campaigns.faults", "--repeat", "1", "--results", str(results)]
    done = subprocess.run(
        [*command, "--only", fault, "--seed", "1"],
        cwd=REPOSITORY,
        env=without_ray_of_the_test(),
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (outcome,) = map(json.loads, results.read_text().splitlines())
    assert outcome["survived"], outcome
