"""Workers: number by number, that they make the representation tell clean columns, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from conclugen import Batch, Pretrainer, presets, random
from conclugen.layers import standardize
from conclugen.tasks.pase import PaseConfig
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config
from tests.distributed.parity import assert_rank_parity


def config(**settings: Any) -> Any:
    tasks = {"contrastive": None, "reconstruction": {}, "pase": {"weight": 1.0, **settings}}
    return small_config("contrast_only", precision="float64", tasks=tasks)


def test_each_worker_is_a_region_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    task = fresh(config(modality="audio", targets=("text", "video"))).model.task("pase")
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    task.compile_regions({"fullgraph": True})
    assert [module for module, _ in compiled] == list(task.workers.values()) and len(compiled) == 2
    assert all(options == {"fullgraph": True} for _, options in compiled)


def test_the_loss_number_by_number() -> None:
    """Of two columns, one of which is a modality that is learned as well, told from masked audio."""
    pretrainer = fresh(config(modality="audio", targets=("text", "video"), mask=0.4))
    batch = pretrainer._rows(rows(3))
    model, step = pretrainer.model.train(), 5
    loss = float(model(batch, step, 0)["pase"].detach())
    x = model.standardized("audio", batch.features["audio"])
    hidden = random.uniform(127, "pase distorted", step, batch.row, WIDTHS["audio"], torch.float32) < 0.4
    with torch.no_grad():
        r = model.heads["audio"](torch.where(hidden, 0, x))
        expected = 0.0
        for name in ("text", "video"):
            told = model.task("pase").get_submodule(f"workers.{name}")(r).numpy()
            here = batch.present[name].numpy()
            column = batch.features[name].numpy()
            clean = (column - column[here].mean(0)) / column[here].std(0)
            both = [i for i in range(batch.rows) if here[i] and bool(batch.present["audio"][i])]
            expected += np.mean([((told[i] - clean[i]) ** 2).mean() for i in both]) / 2
    assert loss == pytest.approx(expected, rel=1e-9)


def columns(seed: int, count: int = 200) -> dict[str, np.ndarray]:
    """Audio of much else and a little prosody; the prosody; and the same audio recorded badly."""
    g, mix = np.random.default_rng(seed), np.random.default_rng(5)
    prosody = g.standard_normal((count, 2))
    audio = prosody @ mix.standard_normal((2, 20)) + g.standard_normal((count, 6)) @ mix.standard_normal((6, 20)) * 2
    audio = audio + 0.2 * g.standard_normal(audio.shape)
    return {"audio": audio, "prosody": prosody, "audio_noisy": audio + g.standard_normal(audio.shape)}


def left(tasks: dict[str, Any], steps: int = 80) -> float:
    """Share of the prosody's variance that a linear map from a representation of four numbers leaves, on new rows."""
    config = presets.build(
        "contrast_only",
        modalities=("audio",),
        tasks={"contrastive": None, **tasks},
        global_batch=200,
        epochs=steps,
        model={"representation_dim": 4, "reconstruction_hidden_dim": 16, "feature_mask": 0.0},
        optimizer={"lr": 1e-2},
    )
    widths = {m: x.shape[1] for m, x in columns(0).items()}
    trained = Pretrainer(config, widths, 1, standardize.fit(columns(0)))
    for step in range(steps):
        features = {m: torch.from_numpy(x).float() for m, x in columns(step).items()}
        trained.step(Batch(features, {}, torch.arange(200) + 200 * step))
    parts = []
    for part in (1001, 1002):
        made = columns(part)
        batch = Batch({m: torch.from_numpy(x).float() for m, x in made.items()}, {}, torch.arange(200))
        parts.append((trained.embed(batch)["audio"].numpy(), made["prosody"]))
    (x, y), (new_x, new_y) = parts
    x, new_x = (np.column_stack([each, np.ones(len(each))]) for each in (x, new_x))
    found = new_x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(((found - new_y) ** 2).mean())


def test_a_narrow_representation_keeps_what_the_workers_ask_for() -> None:
    """Four numbers for six of everything else: reconstruction spends them on these, a worker on the prosody."""
    asked = {"pase": {"targets": ("prosody",), "distorted": "audio_noisy", "mask": 0.0}}
    assert left(asked) < 0.5 * left({"reconstruction": {}})


def test_a_column_that_the_data_lacks_is_refused_in_one_line() -> None:
    built = presets.build(
        "contrast_only", modalities=("audio",), tasks={"contrastive": None, "pase": {"targets": ("prosodi",)}}
    )
    words = r"task 'pase' needs target 'prosodi'.*'prosody'.*the data has: audio \(8\).*tasks\.pase\.targets"
    with pytest.raises(ValueError, match=words) as refused:
        built.check_serves({"audio": 8, "prosody": 2})
    assert "\n" not in str(refused.value)


def test_speakers_are_needed_where_their_rows_distort() -> None:
    batch = rows(3)
    batch.group = None
    with pytest.raises(ValueError, match="task 'pase' needs the speaker of each row"):
        fresh(config(distortion="same_group")).step(batch)
    assert float(fresh(config()).step(batch)["loss/pase"]) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": 0.0}, r"tasks\.pase\.mask: found 0\.0, expected 0 < share < 1, for no distorted clip is named"),
        ({"mask": 1.0, "distorted": "noisy"}, r"tasks\.pase\.mask: found 1\.0, expected 0 <= share < 1"),
        ({"distortion": "noise"}, r"tasks\.pase\.distortion"),
        ({"targets": ("a", "a")}, r"tasks\.pase\.targets.*distinct"),
        ({"distorted": "audio"}, r"tasks\.pase\.distorted"),
        ({"distorted": "noisy", "targets": ("noisy",)}, r"tasks\.pase\.targets.*clean columns"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PaseConfig(**settings)


def test_labelled_shards_need_neither_columns_nor_a_distorted_clip() -> None:
    built = presets.build(
        "contrast_only",
        modalities=("audio",),
        tasks={"contrastive": None, "pase": {"targets": ("prosody",), "distorted": "noisy", "mask": 0.0}},
    )
    assert built.required_modalities == ("audio", "noisy", "prosody")
    assert built.without_training_views().required_modalities == ("audio",)


@pytest.mark.slow
def test_ranks() -> None:
    assert_rank_parity("pase")
