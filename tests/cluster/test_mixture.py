"""A run over corpora through Ray: what it records of each, and that other workers continue the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import conclugen
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import PretrainJob, RunConfig
from ray_jobs.tracking.journal import metric_history
from shards import View
from tests.ray_jobs.test_mixture import config, data
from tests.shards.reading import test_mixed_reader as corpora

pytestmark = pytest.mark.slow


def test_a_run_over_corpora_resumes_with_other_workers_and_weights_and_says_what_it_saw(
    shared_ray: None, tmp_path: Path
) -> None:
    folders = {}
    for name in corpora.COLUMNS:
        manifest = corpora.write(tmp_path / "data", name)
        View.where(manifest, np.arange(manifest.rows) % 6 != 1, "train").save()
        View.where(manifest, np.arange(manifest.rows) % 6 == 1, "valid").save()
        folders[name] = tmp_path / "data" / name

    equal, last = {"own": 1.0, "tv": 1.0, "vox": 1.0}, {"own": 0.0, "tv": 1.0, "vox": 1.0}

    def run(name: str, workers: int, epochs: int, later: dict[str, dict[str, float]]) -> Path:
        method = config(
            modalities=("video", "audio", "text"),
            epochs=epochs,
            precision="float64",
            optimizer={"schedule": "restarts"},  # a single descent would end with the first of two epochs
            corpora={"standardize": "corpus", "negatives": "within"},
        )
        weights = {"3": equal, **later}
        place = RunConfig(name, str(tmp_path / "runs"), workers=workers, checkpoint_every=2, report_every=1)
        return pretrain(PretrainJob(method, data(folders, weights_from=weights), place)).folder.path

    whole = run("whole", 1, 2, {"9": last})
    run("parts", 2, 1, {"11": equal})
    with pytest.raises(ValueError, match=r"^data\.weights_from\.5: .*is at step 6; .*from step 6 on"):
        run("parts", 1, 2, {"5": last})
    parts = run("parts", 1, 2, {"9": last})
    one, two = (metric_history(path / "journal.jsonl") for path in (whole, parts))
    assert len(one["loss"]) == 12 and one.keys() == two.keys()
    for name in one:
        if name.startswith(("loss", "share", "weight", "grad_norm")):
            assert [step for step, _ in one[name]] == [step for step, _ in two[name]]
            assert np.allclose([v for _, v in one[name]], [v for _, v in two[name]], rtol=1e-9, equal_nan=True), name
    assert {f"loss/contrastive/{name}" for name in corpora.COLUMNS} <= one.keys()
    shares = [value for _, value in one["share/vox"]]
    assert shares[:3] == pytest.approx([0.5] * 3)
    assert sum(shares[3:9]) / 6 == pytest.approx(1 / 3, abs=3.36 / (6 * 16)), "batches are of 16 rows"
    assert [value for _, value in one["share/own"]][9:] == [0, 0, 0]
    assert {"validation/own/effective_rank/video", "validation/tv/effective_rank/text"} <= one.keys()
    model = conclugen.load(parts / "model")
    assert list(model.info["corpora"]) == ["own", "tv", "vox"]
    weights = json.loads((parts / "run.json").read_text())["data.weights"]
    assert list(weights) == ["0", "3", "9"] and weights["9"] == {"own": 0, "tv": 1, "vox": 1}
    video = {"video": np.full((1, 4), 315.0)}  # within what was seen: far from it, each standardisation clips alike
    assert (model.embed(video) != model.embed(video, corpus="own")).any()
