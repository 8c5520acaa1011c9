"""The heads as programs of their own, run by what others run them with, and a model that comes from a hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import conclugen
from conclugen import Embedder, export, portable
from conclugen.export import ExportError
from tests.conclugen.runs import fresh, rows, small_config

COMMIT = "c" * 40


@pytest.fixture(scope="module", params=["paper", "improved"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, exported with its programs."""
    pretrainer = fresh(small_config("conclugen", request.param))
    for step in range(3):
        pretrainer.step(rows(step))
    place = tmp_path_factory.mktemp(request.param) / "model"
    export.save(place, pretrainer)
    portable.write(conclugen.load(place), place)
    return place


def asked(embedder: Embedder, count: int) -> dict[str, np.ndarray]:
    """Rows that are far from one another in size, some without a modality, some without any."""
    rng = np.random.default_rng(count)
    scale = 10.0 ** rng.integers(-2, 3, size=(count, 1))
    x = {m: (rng.normal(size=(count, width)) * scale).astype(np.float32) for m, width in embedder.widths.items()}
    for values in x.values():
        values[rng.random(count) < 0.3] = np.nan
    return x


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 33])
def test_onnx_runtime_gives_what_the_model_gives(folder: Path, count: int) -> None:
    """To 1e-5 of each number's own size, or of 1, whatever the number of rows."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(folder / portable.ONNX), providers=["CPUExecutionProvider"])
    embedder = conclugen.load(folder)
    x = asked(embedder, count)
    assert [each.name for each in session.get_inputs()] == list(embedder.modalities)
    (found,) = session.run(None, x)
    expected = embedder.embed(x)
    assert found.dtype == np.float32 and np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_torchs_program_gives_what_the_model_gives(folder: Path) -> None:
    program = torch.export.load(folder / portable.PROGRAM).module()
    embedder = conclugen.load(folder)
    for count in (1, 33):
        x = asked(embedder, count)
        found = program(*(torch.from_numpy(values) for values in x.values())).detach().numpy()
        np.testing.assert_allclose(found, embedder.embed(x), rtol=1e-5, atol=1e-5)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache as a download leaves it: snapshots by commit, a file for each branch; the hub is out of reach."""
    pytest.importorskip("huggingface_hub", reason="an extra that the light tests of other Pythons do without")
    place = tmp_path / "model"
    export.save(place, fresh(small_config("conclugen", "improved")))
    home = tmp_path / "hub/models--owner--own.model"
    shutil.copytree(place, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place


def test_a_model_of_a_hub_is_read_from_its_cache(cached: Path) -> None:
    pytest.importorskip("huggingface_hub")
    mine = conclugen.load(cached)
    x = asked(mine, 5)
    for address in ("hf://owner/own.model", f"hf://owner/own.model@{COMMIT}", "hf://owner/own.model@main"):
        np.testing.assert_array_equal(conclugen.load(address).embed(x), mine.embed(x))
    for address in ("hf://owner/other", "hf://owner/own.model@v2"):
        with pytest.raises(ExportError, match=rf"^{address}: \w+"):
            conclugen.load(address)


@pytest.mark.parametrize("name", ["", "model", "owner/../x", "owner/model@", "owner/model@../x", "owner/m/x", "-/."])
def test_what_is_no_name_on_a_hub_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=r"expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION"):
        conclugen.load(f"hf://{name}")
