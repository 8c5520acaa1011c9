"""The training step: learning, totals, refusals, non-finite losses, precision, resuming."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conclugen import Batch, NonFiniteLossError, Pretrainer, presets, random
from conclugen.evaluation.health import retrieval
from conclugen.random import key
from shards import EpochPlan
from tests.conclugen.runs import WIDTHS, G, fresh, rows, small_config


def snapshot(pretrainer: Pretrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in pretrainer.parameters.items()}


@pytest.mark.parametrize("recipe", ["paper", "improved"])
def test_each_loss_falls(recipe: str) -> None:
    pretrainer = fresh(small_config("contrast_generative", recipe, optimizer={"lr": 5e-3, "restart_epochs": 50.0}))
    batches = [rows(s, missing=0.0) for s in range(6)]
    first = [pretrainer.step(b) for b in batches]
    for _ in range(10):
        last = [pretrainer.step(b) for b in batches]
    for name in ("loss/contrastive", "loss/reconstruction"):
        before, after = (np.mean([float(m[name]) for m in metrics]) for metrics in (first, last))
        assert after < (0.99 if recipe == "paper" else 0.8) * before, name


def test_modalities_of_one_row_come_together() -> None:
    """Retrieval on rows never seen, before and after: what the contrastive task is for."""
    pretrainer = fresh(small_config("contrast_only_video_audio", optimizer={"lr": 5e-3, "restart_epochs": 60.0}))
    held_out = rows(500, 100, 0.0)

    def recall() -> float:
        z = pretrainer.project(held_out)
        return float(retrieval(z["video"], z["audio"])["recall@10"])

    before = recall()
    for step in range(150):
        pretrainer.step(rows(step, missing=0.0))
    assert recall() > before + 0.2


def test_total_is_the_mean_over_active_tasks_of_weight_times_loss() -> None:
    weights = {"contrastive": 0.5, "clustering": 2.0, "reconstruction": 0.1}
    tasks = {name: {"weight": w} for name, w in weights.items()}
    for recipe, before in (("paper", 2), ("improved", 3)):
        pretrainer = fresh(small_config("conclugen", recipe, tasks=tasks), steps_per_epoch=2)
        for step in range(4):
            metrics = {name: float(x) for name, x in pretrainer.step(rows(step)).items()}
            active = [n for n in weights if f"loss/{n}" in metrics]
            assert ("clustering" in active) == (step >= 2)
            divisor = 3 if step >= 2 else before
            expected = sum(weights[n] * metrics[f"loss/{n}"] for n in active) / divisor
            assert metrics["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("recipe", "factor"), [("paper", 1.0), ("improved", 0.1)])
def test_a_single_published_task_runs_without_its_weight(recipe: str, factor: float) -> None:
    pretrainer = fresh(small_config("generative_only", recipe, tasks={"reconstruction": {"weight": 0.1}}))
    metrics = pretrainer.step(rows())
    assert float(metrics["loss"]) == pytest.approx(factor * float(metrics["loss/reconstruction"]))


def test_a_task_that_is_not_active_leaves_its_head_alone() -> None:
    pretrainer = fresh(small_config("contrast_cluster"), steps_per_epoch=2)
    head = "tasks.clustering.head.weight"
    before = snapshot(pretrainer)[head]
    for step in range(2):
        pretrainer.step(rows(step))
    assert torch.equal(snapshot(pretrainer)[head], before)
    pretrainer.step(rows(3))
    assert not torch.equal(snapshot(pretrainer)[head], before)


def test_one_step_is_adamws() -> None:
    """Against torch's unfused optimiser on the gradients of the step, with clipping and decay by group."""
    pretrainer = fresh(small_config("contrast_generative", clip_norm=0.5, precision="float64"))
    before = snapshot(pretrainer)
    metrics = pretrainer.step(rows())
    assert float(metrics["grad_norm"]) > 0.5
    clipped = torch.cat([p.grad.flatten() for p in pretrainer.parameters.values() if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-5)
    config = pretrainer.config.optimizer
    for name, parameter in pretrainer.parameters.items():
        copy = torch.nn.Parameter(before[name])
        copy.grad = parameter.grad
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        torch.optim.AdamW([copy], lr=float(metrics["lr"]), weight_decay=decay, foreach=False, fused=False).step()
        torch.testing.assert_close(parameter.detach(), copy.detach(), atol=1e-12, rtol=0)


def test_learned_temperature_moves_and_is_reported() -> None:
    learned = {"contrastive": {"temperature": 0.1, "learn_temperature": True}}
    pretrainer = fresh(small_config("contrast_only", tasks=learned))
    seen = [float(pretrainer.step(rows(s))["temperature"]) for s in range(5)]
    assert seen[0] == pytest.approx(0.1, abs=1e-3) and seen[4] != seen[0]


def test_feature_masking_depends_on_row_and_step_alone() -> None:
    pretrainer = fresh(small_config("contrast_only", model={"feature_mask": 0.4}))
    model = pretrainer.model.train()
    row = torch.arange(50)
    x = torch.ones(50, 40)
    masked = model._masked(x, row, key(127, "mask video", 3), 0.4, None)
    assert float(masked.mean()) == pytest.approx(0.6, abs=0.05)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model._masked(x, row[order], key(127, "mask video", 3), 0.4, None), masked[order])
    assert not torch.equal(model._masked(x, row, key(127, "mask video", 4), 0.4, None), masked)
    assert torch.equal(model.eval()._masked(x, row, key(127, "mask video", 3), 0.4, None), x)


def test_data_without_groups_is_compared_with_all_rows() -> None:
    batch = rows()
    batch.group = None
    by_group = {"contrastive": {"negatives": "same_group"}}
    losses = [
        fresh(small_config("contrast_only", tasks=tasks)).step(batch)["loss"]
        for tasks in (by_group, {"contrastive": {"negatives": "all"}})
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("bad", ["value", "weight"])
def test_a_loss_that_is_not_finite_changes_no_parameter(bad: str) -> None:
    pretrainer = fresh(small_config("contrast_generative", precision="float64"))
    pretrainer.step(rows(0))
    before, moments = snapshot(pretrainer), {n: x.clone() for n, x in pretrainer.state()[0].items() if "exp_avg" in n}
    batch = rows(1, missing=0.0)
    if bad == "value":
        batch.features["video"][3, 2] = np.nan
    else:
        pretrainer.parameters["tasks.reconstruction.decoders.text.output.bias"].data[0] = torch.inf
        before = snapshot(pretrainer)
    with pytest.raises(NonFiniteLossError, match=r"step 1: loss/.*reconstruction not finite") as error:
        pretrainer.step(batch)
    assert error.value.step == 1
    assert ("loss/contrastive" in error.value.tasks) == (bad == "value")
    for name, value in before.items():
        assert torch.equal(pretrainer.parameters[name].detach(), value), name
    with pytest.raises(NonFiniteLossError):
        pretrainer.state()
    for name, parameter in pretrainer.parameters.items():
        assert torch.equal(pretrainer.optimizer.state[parameter]["exp_avg"], moments[f"optimizer/{name}/exp_avg"])


def test_a_bad_step_that_is_noticed_late_has_changed_nothing_either() -> None:
    """As on a GPU, where the question is asked only now and then."""
    pretrainer = fresh(small_config("contrast_generative"))
    pretrainer._check_every = 4
    pretrainer.step(rows(0))
    before = snapshot(pretrainer)
    batch = rows(1, missing=0.0)
    batch.features["audio"][0, 0] = np.inf
    batch.features["audio"][1, 0] = np.nan
    pretrainer.step(batch)
    pretrainer.step(rows(2))
    with pytest.raises(NonFiniteLossError) as error:
        pretrainer.step(rows(3))
    assert error.value.step == 1
    for name, value in before.items():
        assert torch.equal(pretrainer.parameters[name].detach(), value), name


@pytest.mark.parametrize("name", list(presets.PRESETS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_every_preset_in_every_precision(name: str, precision: str) -> None:
    widths = {**WIDTHS, "video_3d": 6}
    config = small_config(name, "paper", precision=precision)
    pretrainer = Pretrainer(config, widths, 1)
    for step in range(3):
        metrics = pretrainer.step(rows(step, widths=widths))
    assert all(bool(torch.isfinite(x)) and x.dim() == 0 for x in metrics.values())
    dtype = torch.float64 if precision == "float64" else torch.float32
    assert all(p.dtype == dtype for p in pretrainer.parameters.values())


def test_bfloat16_is_float32_up_to_rounding() -> None:
    losses = [
        float(fresh(small_config("contrast_generative", precision=p)).step(rows())["loss"])
        for p in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_batch_without_anything_present_is_survived() -> None:
    pretrainer = fresh(small_config("conclugen", "paper", tasks={"clustering": {"start_epoch": 0}}))
    empty = rows(0, missing=1.1)
    assert float(pretrainer.step(empty)["loss"]) == 0
    assert all(bool(torch.isfinite(p).all()) for p in pretrainer.parameters.values())


def test_fewer_rows_than_the_batch_are_padded_with_masked_ones() -> None:
    config = small_config("contrast_generative", precision="float64")
    short = rows(0, count=7)
    padded = Batch.of(short, dtype=torch.float64).padded(G)
    one, other = fresh(config), fresh(config)
    assert float(one.step(short)["loss"]) == float(other.step(padded)["loss"])
    assert padded.rows == G and padded.row[7:].tolist() == [-1] * 5


def test_nothing_draws_from_the_ambient_generators() -> None:
    torch.random.default_generator.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), str(np.random.get_state())
    pretrainer = fresh(small_config("conclugen", model={"feature_mask": 0.2}))
    for step in range(4):
        pretrainer.step(rows(step))
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state


def test_embedding_zeroes_what_is_missing_and_leaves_training_alone() -> None:
    pretrainer = fresh(small_config("contrast_only"))
    batch = rows(0, missing=0.5)
    batch.features["video"][0] = 0
    batch.present["video"][0] = False
    r = pretrainer.embed(batch)
    assert {m: tuple(x.shape) for m, x in r.items()} == dict.fromkeys(WIDTHS, (G, 16))
    for m in WIDTHS:
        missing = ~torch.from_numpy(batch.present[m])
        assert float(r[m][missing].abs().sum()) == 0
        assert bool((r[m][~missing].abs().sum(1) > 0).all())
    norms = {m: z.norm(dim=1) for m, z in pretrainer.project(batch).items()}
    torch.testing.assert_close(norms["text"], torch.ones(G))
    assert pretrainer.project(batch)["text"].shape == (G, 8)
    assert fresh(small_config("generative_only")).project(batch) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.features.pop("text"), "modality 'text' is missing, found video, audio"),
        (lambda b: b.features.update(text=np.zeros((G, 9))), "text.*found width 9, expected 4"),
        (lambda b: b.features.update(text=np.zeros((G - 1, 4))), "text.*found 11 rows, expected 12"),
        (lambda b: b.features.update(text=np.zeros(G)), "text.*expected \\(rows, width\\)"),
    ],
)
def test_batches_that_do_not_fit_are_refused_by_name(change, words: str) -> None:
    batch = rows()
    change(batch)
    with pytest.raises(ValueError, match=words):
        fresh(small_config("contrast_only")).step(batch)


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="found 13 rows, expected at most 12"):
        fresh(small_config("contrast_only")).step(rows(count=13))


def test_construction_refuses_what_cannot_work() -> None:
    config = small_config("contrast_only")
    with pytest.raises(ValueError, match="needs modality 'text'"):
        Pretrainer(config, {"video": 6, "audio": 5}, 3)
    with pytest.raises(ValueError, match="steps_per_epoch: found 0"):
        Pretrainer(config, WIDTHS, 0)
    with pytest.raises(ValueError, match="standardization: nothing for modality 'video'"):
        Pretrainer(config, WIDTHS, 3)
    with pytest.raises(ValueError, match="standardization: given"):
        Pretrainer(small_config("contrast_only", "paper"), WIDTHS, 3, {"video": (np.zeros(6), np.ones(6))})


@pytest.mark.parametrize(("total", "batch"), [(70, 24), (96, 24), (49, 24)])
def test_a_batch_counts_to_the_epoch_of_its_last_row(total: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the remainder is carried over, an epoch is a fraction of steps; clustering begins each anew, once."""
    from conclugen.tasks.clustering import Clustering

    plan = EpochPlan([total], seed=1, global_batch=batch, remainder="carry")
    pretrainer = fresh(small_config("conclugen"), plan.steps_per_epoch)
    began: list[int] = []
    monkeypatch.setattr(Clustering, "begin_epoch", lambda self: began.append(pretrainer.step_number))
    epochs = []
    for step in range(12):
        epochs.append(pretrainer.epoch)
        pretrainer.step(rows(step))
    assert epochs == [((step + 1) * batch - 1) // total for step in range(12)]
    assert epochs == [plan.cursor_at(step).epoch for step in range(12)]
    assert began == [step for step in range(12) if step == 0 or epochs[step] > epochs[step - 1]]
    tensors, meta = pretrainer.state()
    again = fresh(small_config("conclugen"), plan.steps_per_epoch)
    again.load_state(tensors, json.loads(json.dumps(meta)))
    assert again.epoch == pretrainer.epoch


def test_what_stands_in_a_padding_row_has_no_effect() -> None:
    features = {"a": [[1.0, 2.0], [float("nan"), 3.0]]}
    for present in ({}, {"a": [True, True]}):
        batch = Batch.of(SimpleNamespace(features=features, present=present, row=[7, -1]))
        assert batch.present["a"].tolist() == [True, False]
        assert batch.features["a"].tolist() == [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"present": {"vidoe": [True]}},
            r"'vidoe' is missing, found video, but `present` names it \(did you mean 'video'\?\)",
        ),
        ({"group": [1, 2, 3]}, "batch group: found 3 rows, expected 1"),
        ({"present": {"video": True}}, r"batch present\['video'\]: found no rows, expected 1"),
    ],
)
def test_a_batch_that_does_not_fit_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch.of(SimpleNamespace(**{"features": {"video": [[1.0]]}, "present": {}, "row": [7]} | given))


def test_batch_of_plain_objects() -> None:
    plain = SimpleNamespace(features={"a": [[1.0, 2.0]]}, present={}, row=[7])
    batch = Batch.of(plain)
    assert batch.present["a"].tolist() == [True] and batch.row.dtype == torch.int64
    assert batch.features["a"].dtype == torch.float32 and batch.group is None and batch.labels == {}


@pytest.mark.parametrize("recipe", ["paper", "improved"])
def test_going_on_from_a_state_is_bitwise_never_having_stopped(recipe: str) -> None:
    """Stopped in mid-epoch, with centroids, a queue, running statistics and moments on the way."""
    config = small_config("conclugen", recipe, model={"feature_mask": 0.1})
    through = fresh(config)
    for step in range(11):
        through.step(rows(step))
    stopped = fresh(config)
    for step in range(5):
        stopped.step(rows(step))
    tensors, meta = stopped.state()
    tensors = {name: x.clone() for name, x in tensors.items()}
    resumed = fresh(config)
    resumed.load_state(tensors, meta)
    assert resumed.step_number == 5 and resumed.epoch == 1
    for step in range(5, 11):
        resumed.step(rows(step))
    expected, expected_meta = through.state()
    found, found_meta = resumed.state()
    assert found_meta == expected_meta
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("recipe", ["paper", "improved"])
def test_what_stands_where_a_modality_is_missing_has_no_effect(recipe: str) -> None:
    metrics = []
    for junk in (0.0, float("nan"), 1e30):
        batch = rows(1, missing=0.4)
        for m, x in batch.features.items():
            x[~batch.present[m]] = junk
        metrics.append({name: float(x) for name, x in fresh(small_config(recipe=recipe)).step(batch).items()})
    assert metrics[1] == metrics[0] and metrics[2] == metrics[0]


@pytest.mark.parametrize(("preset", "masks"), [("conclugen", 3), ("simclr", 2)])
def test_every_mask_of_every_step_is_a_draw_of_its_own(
    preset: str, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mask for both views would make simclr trivial; one for all modalities, or for all steps, would tie them."""
    keys: list[int] = []
    draws = random.draws

    def noted(key: int | torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        keys.append(int(key))
        return draws(key, *rest, **options)

    only = {"modalities": ("video",)} if preset == "simclr" else {}
    pretrainer = fresh(small_config(preset, **only))
    monkeypatch.setattr(random, "draws", noted)
    batch = rows(0, missing=0.0)
    for _ in range(3):
        pretrainer.step(batch)
    assert len(set(keys)) == len(keys) >= 3 * masks


def test_tasks_are_told_of_each_epoch_s_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrainer = fresh(small_config(recipe="paper"), steps_per_epoch=3)
    told: list[int] = []
    monkeypatch.setattr(pretrainer.model.task("clustering"), "begin_epoch", lambda: told.append(pretrainer.step_number))
    for step in range(7):
        pretrainer.step(rows(step))
    assert told == [0, 3, 6]
