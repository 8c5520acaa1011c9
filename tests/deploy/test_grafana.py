"""deploy/grafana/conclugen.json: every metric that it draws is one that a run tells, and the other way round."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ray_jobs.training.run_metrics import METRICS

BOARD = json.loads((Path(__file__).resolve().parents[2] / "deploy/grafana/conclugen.json").read_text())
_OWN = re.compile(r"\bray_conclugen_(\w+)")


def test_each_panel_draws_metrics_that_runs_tell_and_none_is_left_out() -> None:
    drawn = set()
    for panel in BOARD["panels"]:
        queries = [target["expr"] for target in panel["targets"]]
        named = [name for query in queries for name in _OWN.findall(query)]
        assert len(named) == len(queries) > 0, panel["title"]  # one metric a query, and no other's
        assert set(named) <= set(METRICS), panel["title"]
        assert all('{run=~"$run"}' in query for query in queries), panel["title"]
        drawn |= set(named)
    assert drawn == set(METRICS)
    [chosen] = [variable["query"] for variable in BOARD["templating"]["list"] if variable["name"] == "run"]
    assert set(_OWN.findall(chosen)) <= set(METRICS)


def test_panels_have_places_of_their_own() -> None:
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
