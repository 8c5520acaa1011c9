"""The heads as a program: equal to the model at any number of rows, with modalities missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import conclugen
from conclugen import export, portable
from conclugen.portable import PortableError
from tests.conclugen.runs import fresh, rows, small_config


@pytest.mark.parametrize("recipe", [pytest.param("paper", marks=pytest.mark.slow), "improved"])
def test_a_program_gives_what_the_model_gives(recipe: str, tmp_path: Path) -> None:
    pretrainer = fresh(small_config("conclugen", recipe))
    pretrainer.step(rows(0))
    export.save(tmp_path / "model", pretrainer)
    embedder = conclugen.load(tmp_path / "model")
    written = portable.write(embedder, tmp_path)
    assert tmp_path / "heads.pt2" in written
    program = torch.export.load(tmp_path / "heads.pt2").module()
    rng = np.random.default_rng(1)
    for count in (1, 3, 64):
        arrays = {m: rng.normal(size=(count, width)).astype(np.float32) for m, width in embedder.widths.items()}
        arrays[embedder.modalities[count % 3]][0] = np.nan
        tensors = [torch.from_numpy(x).to(next(embedder.modules.parameters()).dtype) for x in arrays.values()]
        np.testing.assert_allclose(program(*tensors).detach().numpy(), embedder.embed(arrays), atol=1e-5)


def test_a_program_that_differs_is_refused() -> None:
    with pytest.raises(PortableError, match=r"heads.pt2: differs from the model by 0.1"):
        portable._compare("heads.pt2", np.zeros((2, 2)), np.full((2, 2), 0.1))
    with pytest.raises(PortableError):
        portable._compare("heads.pt2", np.zeros((2, 2)), np.full((2, 2), np.nan))
