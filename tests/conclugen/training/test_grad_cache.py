"""Micro-batches change memory and rounding, nothing else."""

import pytest
import torch

from conclugen import Pretrainer, presets
from conclugen.training import checkpoint
from conclugen.training.model import Model
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config

SIMCLR_WIDTHS = {**WIDTHS, "video_3d": 6}


def trained(name: str, micro_batch: int | None, **overrides: object) -> Pretrainer:
    config = small_config(name, "paper", precision="float64", micro_batch=micro_batch, **overrides)
    pretrainer = Pretrainer(config, SIMCLR_WIDTHS, 3)
    for step in range(4):
        pretrainer.step(rows(step, widths=SIMCLR_WIDTHS))
    return pretrainer


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_every_preset_trains_as_in_one_pass(name: str) -> None:
    model = {"feature_mask": 0.0 if name == "simclr" else 0.2}  # simclr masks its views itself
    expected, _ = trained(name, None, model=model).state()
    for micro_batch in (5, 100):
        found, _ = trained(name, micro_batch, model=model).state()
        for tensor, value in expected.items():
            torch.testing.assert_close(found[tensor], value, atol=1e-9, rtol=1e-9, msg=f"{tensor}, {micro_batch} rows")


def test_heads_never_see_more_than_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrainer = fresh(small_config("conclugen", micro_batch=5))
    sizes, kept = [], []
    encode = Model.representations

    def counting(model: Model, inputs: dict, row: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        sizes.append(len(row))
        kept.append(torch.is_grad_enabled())
        return encode(model, inputs, row, step)

    monkeypatch.setattr(Model, "representations", counting)
    pretrainer.step(rows())
    assert sizes == [5, 5, 2] * 2 and kept == [False] * 3 + [True] * 3


def test_a_run_may_go_on_with_other_micro_batches(tmp_path) -> None:
    first = trained("conclugen", None)
    checkpoint.save(tmp_path / "state", first, {})
    other = Pretrainer(small_config("conclugen", "paper", precision="float64", micro_batch=4), SIMCLR_WIDTHS, 3)
    checkpoint.load(tmp_path / "state").restore(other)
    batch = rows(9, widths=SIMCLR_WIDTHS)
    mine, theirs = other.step(batch), first.step(batch)
    assert {n: float(x) for n, x in mine.items()} == pytest.approx({n: float(x) for n, x in theirs.items()}, rel=1e-9)


def test_bfloat16_heads_get_their_gradients() -> None:
    """The first pass must not leave low-precision copies of weights behind that have no graph."""
    norms = [
        float(fresh(small_config("conclugen", precision="bfloat16", micro_batch=m)).step(rows())["grad_norm"])
        for m in (None, 4)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch: found 0, expected None or 1 row or more"):
        small_config("conclugen", micro_batch=0)
