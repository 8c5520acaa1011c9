"""A representation that has collapsed is said so while the run goes on."""

from pathlib import Path

import pytest
import torch

from conclugen import Pretrainer, presets
from ray_jobs.run_config import DataConfig
from ray_jobs.training.validation import Validation
from shards import Manifest
from tests.feature_corpus import write_corpus


def test_a_collapsed_representation_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "shards", speakers=6, takes=6)
    config = presets.build("contrast_only", global_batch=20, model={"representation_dim": 8, "projection_dim": 4})
    manifest = Manifest.open(str(tmp_path / "shards"))
    widths = {
        name: sum(manifest.schema.column(column).width for column in columns)
        for name, columns in manifest.schema.resolve(None).items()
    }
    moments = {name: (torch.zeros(width), torch.ones(width)) for name, width in widths.items()}
    standardization = moments if config.model.standardize else None
    pretrainer = Pretrainer(config, widths, steps_per_epoch=3, standardization=standardization)
    with torch.no_grad():
        for parameter in pretrainer.model.parameters():
            parameter.zero_()
    validation = Validation.open(DataConfig(folder=str(tmp_path / "shards")), manifest, config.modalities)
    assert validation is not None
    validation.measure(pretrainer)
    assert "warning: effective rank of video is" in capsys.readouterr().out
