"""The MLflow model gives what the exported model gives, without pickles, and without this project installed."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

import conclugen
from conclugen import presets
from ray_jobs.tracking import model_artifact
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_environment import default_tracking_uri
from ray_jobs.tracking.mlflow_sink import flush_journal

WIDTHS = {"video": 6, "audio": 5, "text": 4}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    config = presets.build(
        "conclugen",
        global_batch=8,
        model={"representation_dim": 8, "projection_dim": 4},
        tasks={"clustering": {"clusters": 2}},
    )
    scales = {name: (np.full(width, 0.5), np.full(width, 2.0)) for name, width in WIDTHS.items()}
    conclugen.export.save(folder, conclugen.Pretrainer(config, WIDTHS, steps_per_epoch=2, standardization=scales))
    return folder


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory) -> Path:
    return model_artifact.build(exported, tmp_path_factory.mktemp("built") / "mlflow-model")


def features(rows: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=(rows, width)).astype(np.float32) for name, width in WIDTHS.items()}
    values["audio"][1] = np.nan
    return values


def test_predicts_what_the_exported_model_embeds(exported, built):
    import mlflow

    model = mlflow.pyfunc.load_model(str(built))
    embedder = conclugen.load(exported)
    for fusion in ("concat", "mean", "audio"):
        expected = embedder.embed(features(), fusion=fusion)
        np.testing.assert_array_equal(model.predict(features(), params={"fusion": fusion}), expected)
    np.testing.assert_array_equal(model.predict(features()), embedder.embed(features()))
    assert np.abs(model.predict(features())).max() > 0


def test_building_and_loading_says_nothing(exported, tmp_path, capfd):
    """MLflow warns of missing type hints once in a process, through every filter."""
    import mlflow

    warnings.onceregistry.clear()  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as warned:
        mlflow.pyfunc.load_model(str(model_artifact.build(exported, tmp_path / "model")))
    said = capfd.readouterr()
    assert [str(warning.message) for warning in warned if "type hint" in str(warning.message)] == []
    assert said.out == said.err == ""


def test_the_folder_holds_source_and_safetensors_and_no_pickle(exported, tmp_path):
    built = model_artifact.build(
        exported, tmp_path / "model"
    )  # not one that was loaded, which compiles what it imports
    files = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc_model.py", "artifacts/model/model.safetensors", "code/conclugen/export.py"} <= files
    endings = {Path(name).suffix for name in files}
    assert not endings & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"}, endings
    for path in built.rglob("*"):
        if path.is_file():
            assert path.read_bytes()[:1] != b"\x80", f"{path} starts as a pickle does"
    description = yaml.safe_load((built / "MLmodel").read_text())
    assert "python_model" not in description["flavors"]["python_function"]


@pytest.mark.slow
def test_loads_where_the_project_is_not_installed(exported, built, tmp_path):
    program = (
        "import sys, numpy as np, mlflow\n"
        f"values = np.load({str(tmp_path / 'in.npz')!r}, allow_pickle=False)\n"
        f"out = mlflow.pyfunc.load_model({str(built)!r}).predict(dict(values))\n"
        f"import conclugen; assert conclugen.__file__.startswith({str(built)!r}), conclugen.__file__\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, out, allow_pickle=False)\n"
    )
    np.savez(tmp_path / "in.npz", **features())
    # Elsewhere this project is absent: neither its folder on the path nor the finder of an editable installation.
    project = str(Path(conclugen.__file__).parents[1])
    hide = (
        "import sys\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        f"sys.path[:] = [entry for entry in sys.path if entry not in ('', {project!r})]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", hide + program], check=True, cwd=tmp_path, capture_output=True)
    out = np.load(tmp_path / "out.npy", allow_pickle=False)
    np.testing.assert_array_equal(out, conclugen.load(exported).embed(features()))


def test_wrong_widths_and_missing_modalities_are_refused_by_the_signature(built):
    import mlflow
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(built))
    wrong = features() | {"text": np.zeros((3, 5), np.float32)}
    with pytest.raises(MlflowException, match=r"text|shape"):
        model.predict(wrong)
    short = features()
    del short["text"]
    with pytest.raises(MlflowException, match="text"):
        model.predict(short)


def test_stored_and_registered_once_through_the_journal(exported, tmp_path, capfd):
    import mlflow

    uri = default_tracking_uri(tmp_path)
    with Journal(tmp_path / "run" / "journal.jsonl", experiment="exp", name="run") as journal:
        for _ in range(2):
            model_artifact.log_model(journal, exported, registered_name="heads")
        run_id = flush_journal(journal.path, uri)
    client = mlflow.MlflowClient(uri, uri)
    [version] = client.search_model_versions("name = 'heads'")
    assert version.run_id == run_id
    assert capfd.readouterr().out == ""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        for address in (f"runs:/{run_id}/mlflow-model", f"models:/heads/{version.version}"):
            model = mlflow.pyfunc.load_model(address)
            np.testing.assert_array_equal(model.predict(features()), conclugen.load(exported).embed(features()))
    finally:
        mlflow.set_tracking_uri(before)


def test_a_foreign_folder_is_not_replaced(exported, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="no MLflow model"):
        model_artifact.build(exported, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_what_a_killed_build_left_is_removed(exported, tmp_path):
    left = tmp_path / ".mlflow-model.0123456789abcdef.partial"
    left.mkdir()
    (left / "MLmodel").write_text("half")
    folder = model_artifact.build(exported, tmp_path / "mlflow-model")
    assert yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow-model"]


def test_mlflow_says_what_goes_wrong_and_no_more(capfd, caplog):
    logger = logging.getLogger("mlflow")
    before = logger.level
    with model_artifact._quiet():
        print("a progress bar")
        warnings.warn("of a local path", stacklevel=1)
        assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
    assert logger.level == before and capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="x"), model_artifact._quiet():
        raise ValueError("x")
    assert logger.level == before
