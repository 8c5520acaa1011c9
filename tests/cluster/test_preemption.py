"""Nodes that die or are taken away, in a cluster of several: in a process of its own, which starts that cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.faults import ON_NODES, REPOSITORY
from tests.cluster.runs import without_ray_of_the_test


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nodes_are_lost_and_the_results_are_the_same(tmp_path: Path) -> None:
    """A notice leads to a checkpoint in time; without one the run continues from the last; fewer workers do as well.

    A run for each, on one cluster.
    """
    results = tmp_path / "results.jsonl"
    only = [word for fault in ON_NODES for word in ("--only", fault)]
    command = [sys.executable, "-m", "tests.campaigns.faults", "--repeat", "1", "--results", str(results)]
    done = subprocess.run(
        [*command, *only, "--seed", "1"],
        cwd=REPOSITORY,
        env=without_ray_of_the_test(),
        capture_output=True,
        text=True,
        timeout=1780,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcomes = [json.loads(line) for line in results.read_text().splitlines()]
    assert [outcome["fault"] for outcome in outcomes] == list(ON_NODES)
    assert all(outcome["survived"] for outcome in outcomes), outcomes
