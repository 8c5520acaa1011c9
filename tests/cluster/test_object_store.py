"""Every job that takes a data set takes one in an S3-compatible store, and comes to what it comes to beside the files.

One Ray and one store for all of them; each job runs twice, from a folder and from the store.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from ray_jobs import embed, evaluate, extract_features, pretrain
from shards.format.manifest import Manifest
from shards.planning.split import make_views
from tests.cluster.servers import S3_KEYS, s3_server
from tests.ray_jobs.embedding.test_embed import NAMES, make_run
from tests.ray_jobs.extraction.extraction_loop import make_clips, make_plan, run_loop
from tests.tuning.labelled_shards import TINY, write_labelled
from tuning import ablate
from tuning.ledger import Ledger
from tuning.sweep.__main__ import COMMAND as SWEEP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
_BUCKET = "s3://sets"
_SMALL = ["--pretrain.model.representation-dim", "12", "--pretrain.model.projection-dim", "6"]
_SMALL += ["--pretrain.model.reconstruction-hidden-dim", "8", "--pretrain.tasks.clustering.clusters", "3"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, _ray_folder: str) -> Iterator[tuple[str, str]]:
    """A folder and a bucket that hold the same data sets: `faces` (features; views train and test), `speakers`
    (features; views train and valid) and `clips`."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    folder = tmp_path_factory.mktemp("sets")
    write_labelled(folder / "faces", ("video", "audio"), published=True)
    speakers = Manifest.open(write_labelled(folder / "speakers", ("video", "audio")))
    for view in make_views(speakers, parts={"train": 0.75, "valid": 0.25})[0]:
        view.save()
    make_clips(folder / "clips", 2, 6, pictures=25)
    # The store's address is in the environment before Ray starts, whose workers inherit it.
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("sets")
        for name in ("faces", "speakers", "clips"):
            store.put(str(folder / name), f"sets/{name}", recursive=True)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # another test's server had another address
        ray.init("local", num_cpus=6, include_dashboard=False, logging_level="warning", _temp_dir=_ray_folder)
        try:
            yield str(folder), _BUCKET
        finally:
            ray.shutdown()
            fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def runs(sets: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data set's place -> folder with a run `first`, pretrained from there."""
    found = {}
    for place in sets:
        found[place] = tmp_path_factory.mktemp("runs")
        given = ["--data", f"{place}/faces", "--output", str(found[place]), "--run", "first", "--modalities"]
        given += ["video,audio", "--batch", "24", "--epochs", "2", "--workers", "2", *_SMALL]
        assert pretrain.main(["--preset", "conclugen", *given]) == 0
    return found


def test_pretraining_ends_with_the_same_model(sets: tuple[str, str], runs: dict[str, Path]) -> None:
    here, there = (json.loads((runs[place] / "first/model/config.json").read_text()) for place in sets)
    assert here["info"]["data"] == there["info"]["data"]
    assert here["digest"] == there["digest"] and here["info"]["steps"] == there["info"]["steps"] > 0


def test_evaluations_score_the_same(sets: tuple[str, str], runs: dict[str, Path]) -> None:
    cells = []
    for place in sets:
        given = ["--run", "first", "--label", "emotion", "--data", f"{place}/faces", "--output", str(runs[place])]
        given += ["--data.validation-view", "null", "--comparison.draws", "2", "--comparison.fractions", "[0.3,1.0]"]
        assert evaluate.main(given) == 0
        scores = json.loads((runs[place] / "first/evaluation/faces-emotion/scores.json").read_text())
        cells.append({(c["system"], c["method"], c["fraction"]): c["scores"] for c in scores["cells"]})
    assert cells[0] == cells[1] and len(cells[0]) >= 4


def test_extracted_shards_have_the_same_bytes(sets: tuple[str, str], tmp_path: Path) -> None:
    written = []
    for number, place in enumerate(sets):
        out = tmp_path / str(number)
        given = ["--data", f"{place}/clips", "--output", str(out), "--encoders", "random", "--quiet"]
        assert extract_features.main(given) == 0
        written.append({path.name: path.read_bytes() for path in sorted(out.glob("clips-*"))})
    assert written[0] == written[1] and len(written[0]) >= 4
    assert Manifest.open(tmp_path / "0").digest == Manifest.open(tmp_path / "1").digest


def test_embeddings_of_clips_and_of_features_are_the_same(sets: tuple[str, str], tmp_path: Path) -> None:
    """The features lie in the store too."""
    run_loop(make_plan(make_clips(tmp_path / "clips", 2, 6, pictures=25), tmp_path / "features", NAMES))
    make_run(tmp_path, "run", ("video", "audio"))
    fsspec.filesystem("s3").put(str(tmp_path / "features"), "sets/features", recursive=True)
    tables = []
    for number, source in enumerate((str(tmp_path / "features"), f"{_BUCKET}/features", f"{_BUCKET}/clips")):
        out = tmp_path / f"out{number}"
        given = ["--run", "run", "--output", str(tmp_path / "runs"), "--data", source, "--out", str(out)]
        assert embed.main(given) == 0
        tables.append(pq.read_table(sorted(out.glob("*.parquet"))).sort_by("key"))
    keys = [table["key"].to_pylist() for table in tables]
    assert keys[0] == keys[1] == keys[2] == sorted(f"c{i}" for i in range(12))
    vectors = [np.array(table["embedding"].to_pylist()) for table in tables]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[0], vectors[2], rtol=1e-5, atol=1e-6)


def test_sweeps_find_the_same(sets: tuple[str, str], tmp_path: Path) -> None:
    found = []
    for number, place in enumerate(sets):
        given = ["--data", f"{place}/speakers", "--label", "emotion", "--output", str(tmp_path), "--run", f"s{number}"]
        given += ["--trials", "2", "--search", "random", "--space.modalities", "[video+audio]", "--space.epochs", "2"]
        given += ["--space.tasks", "[contrastive]", "--space.global-batch", "[24]"]
        given += ["--space.representation-dim", "[12]", "--space.projection-dim", "[6]", "--measure.inner-folds", "2"]
        assert SWEEP.main(given) == 0
        records = Ledger.open(tmp_path / f"s{number}").finished().values()
        found.append({r.tags.get("number", r.tags.get("system")): dict(r.metrics) for r in records})
    assert found[0] == found[1] and {0, 1} <= set(found[0])


def test_ablations_measure_the_same(sets: tuple[str, str], tmp_path: Path) -> None:
    found = []
    for number, place in enumerate(sets):
        given = ["--data.faces", f"{place}/faces", "--output", str(tmp_path), "--run", f"a{number}", "--seeds", "[1,2]"]
        given += ["--recipes", "[improved]", "--sections", "[combinations,baselines]", "--judging.fractions", "[0.3]"]
        given += ["--judging.draws", "2", "--parallel", "2"]
        given += [word for name, value in TINY.items() for word in (f"--sizes.{name}", str(value))]
        assert ablate.main(given) == 0
        records = Ledger.open(tmp_path / f"a{number}").finished().values()
        tags = ("system", "tasks", "modalities", "seed")
        found.append({json.dumps([r.tags.get(tag) for tag in tags]): dict(r.metrics) for r in records})
    assert found[0] == found[1] and len(found[0]) >= 10
