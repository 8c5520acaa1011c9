"""Cross-modal masked prediction: number by number, and that what is asked for is what the heads did not see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conclugen import presets, random
from conclugen.batch import Batch
from conclugen.tasks.masked_prediction import MaskedPredictionConfig
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config

ONLY = {"contrastive": None, "clustering": None, "reconstruction": None}


def config(mask: float = 0.5, **others: Any) -> Any:
    return small_config(
        "contrast_only", precision="float64", tasks={"contrastive": None, "masked_prediction": {"mask": mask}}, **others
    )


def test_the_loss_number_by_number() -> None:
    pretrainer = fresh(config(0.4))
    batch = pretrainer._rows(rows(3))
    model = pretrainer.model.train()
    step = 5
    loss = model(batch, step, 0)["masked_prediction"]
    x = {m: model.standardized(m, batch.features[m]) for m in WIDTHS}
    hidden = {m: random.uniform(127, f"masked {m}", step, batch.row, WIDTHS[m], torch.float32) < 0.4 for m in WIDTHS}
    seen = {m: model.heads[m](torch.where(hidden[m], 0, x[m])) * batch.present[m].unsqueeze(1) for m in WIDTHS}
    row = torch.cat(list(seen.values()), dim=1)
    expected = 0.0
    decoders = model.task("masked_prediction").get_submodule("decoders")
    for m, width in WIDTHS.items():
        predicted = decoders.get_submodule(m)(row)
        errors = [
            float((predicted[i, j].detach() - x[m][i, j]) ** 2)
            for i in range(batch.rows)
            for j in range(width)
            if bool(batch.present[m][i]) and bool(hidden[m][i, j])
        ]
        expected += sum(errors) / (int(batch.present[m].sum()) * 0.4 * width)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    assert len(WIDTHS) == 3 and 0 < float(hidden["video"].double().mean()) < 1


def test_hidden_features_can_be_told_from_another_modality() -> None:
    """Of a modality whose features are those of another one: trained, the error of hidden ones is far below that of
    their mean (1)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=g, dtype=torch.float64)
    pretrainer = fresh(
        presets.build(
            "contrast_only_video_audio",
            tasks={"contrastive": None, "masked_prediction": {"mask": 0.5}},
            precision="float64",
            global_batch=60,
            epochs=100,
            model={"representation_dim": 24, "standardize": False, "reconstruction_hidden_dim": 24},
            optimizer={"lr": 1e-2},
        )
    )

    def batch(step: int) -> Batch:
        features: dict[str, Tensor] = {"video": x, "audio": x[:, :5]}
        return Batch.of(Batch(features, {m: torch.ones(60, dtype=torch.bool) for m in features}, torch.arange(60)))

    first = float(pretrainer.step(batch(0))["loss/masked_prediction"])
    for step in range(1, 150):
        last = float(pretrainer.step(batch(step))["loss/masked_prediction"])
    # Half of each feature's copies are hidden as well: a quarter of audio, and of video's sixth all, is guesswork.
    assert first > 1.8 and last < 1.1


def test_one_modality_is_refused() -> None:
    with pytest.raises(ValueError, match=r"modalities.*two or more: the masked_prediction task compares modalities"):
        presets.build("conclugen", modalities=("video",), tasks={**ONLY, "masked_prediction": {}})


@pytest.mark.parametrize("mask", [0.0, 1.0, float("nan")])
def test_settings_that_cannot_be_are_refused(mask: float) -> None:
    with pytest.raises(ValueError, match=r"tasks\.masked_prediction\.mask: found"):
        MaskedPredictionConfig(mask=mask)
