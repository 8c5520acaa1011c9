"""A pretrainer whose state is quickly written."""

import pytest

from conclugen import Pretrainer, presets


@pytest.fixture(scope="module")
def pretrainer() -> Pretrainer:
    config = presets.build(
        "contrast_only",
        recipe="paper",
        modalities=("video", "audio"),
        global_batch=4,
        model={"representation_dim": 8, "projection_dim": 4},
    )
    return Pretrainer(config, {"video": 3, "audio": 2}, steps_per_epoch=2)
