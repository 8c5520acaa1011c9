"""What is measured on held-out rows: by which names, and that a collapsed representation is said so."""

import pytest
import torch

from conclugen import Pretrainer, presets
from ray_jobs.run_config import DataConfig
from ray_jobs.training.validation import Validation
from shards import Manifest
from tests.feature_corpus import write_corpus


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards", speakers=6, takes=6)


def untrained(preset: str, manifest: Manifest) -> Pretrainer:
    config = presets.build(preset, global_batch=20, model={"representation_dim": 8, "projection_dim": 4})
    widths = {
        name: sum(manifest.schema.column(column).width for column in columns)
        for name, columns in manifest.schema.resolve(None).items()
    }
    moments = {name: (torch.zeros(width), torch.ones(width)) for name, width in widths.items()}
    standardization = moments if config.model.standardize else None
    return Pretrainer(config, widths, steps_per_epoch=3, standardization=standardization)


def test_a_collapsed_representation_is_warned_of(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    pretrainer = untrained("contrast_only", manifest)
    with torch.no_grad():
        for parameter in pretrainer.model.parameters():
            parameter.zero_()
    validation = Validation.open(DataConfig(folder=manifest.folder), manifest, pretrainer.config.modalities)
    assert validation is not None
    validation.measure(pretrainer)
    assert "warning: effective rank of video is" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["conclugen", "contrast_only_video_audio", "generative_only"])
def test_names_are_known_before_the_first_step(preset: str, manifest: Manifest) -> None:
    """Those of tasks too, which are measured only after a step with them."""
    pretrainer = untrained(preset, manifest)
    data = DataConfig(folder=manifest.folder, label="emotion")
    validation = Validation.open(data, manifest, pretrainer.config.modalities)
    assert validation is not None
    for name, buffer in pretrainer.model.named_buffers():
        if name.endswith(".assigned"):
            buffer += 1
    measured = validation.measure(pretrainer)
    assert sorted(validation.names(pretrainer.config, pretrainer.widths)) == sorted(measured)
    assert {"effective_rank/video", "warnings", "neighbour_accuracy"} <= measured.keys()
