"""Learned task weights, projected gradients and weights that change while training: against slow loops and closed
forms."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conclugen import Pretrainer, random
from conclugen.config import WEIGHTINGS, TasksConfig
from conclugen.tasks.contrastive import ContrastiveConfig
from conclugen.tasks.reconstruction import ReconstructionConfig
from conclugen.training import checkpoint, gradient_conflicts, weighting
from tests.conclugen.runs import fresh, rows, small_config

TASKS = ("contrastive", "clustering", "reconstruction")


def two_tasks(**options: Any) -> TasksConfig:
    return TasksConfig(
        contrastive=ContrastiveConfig(weight=0.5),
        reconstruction=ReconstructionConfig(weight=2.0),
        divisor="configured",
        **options,
    )


def task_gradients(pretrainer: Pretrainer, batch: Any) -> dict[str, dict[str, Tensor]]:
    """Gradient of each active task's loss by itself, from one separate backward pass each, on a fresh copy."""
    found = {}
    tensors, meta = pretrainer.state()
    tensors = {name: x.clone() for name, x in tensors.items()}
    for task in pretrainer.model.active_tasks(pretrainer.epoch):
        copy = fresh(pretrainer.config, pretrainer.steps_per_epoch)
        copy.load_state(tensors, meta)
        copy.model.train()
        copy.model(copy._rows(batch), copy.step_number, copy.epoch)[task].backward()
        found[task] = {n: p.grad for n, p in copy.model.named_parameters() if p.grad is not None}
    return found


def slow_pcgrad(gradients: dict[str, Tensor], order: list[list[int]]) -> Tensor:
    """Algorithm 1 of the paper as it is written."""
    vectors = list(gradients.values())
    projected = [v.clone() for v in vectors]
    for i, others in enumerate(order):
        for j in others:
            if projected[i] @ vectors[j] < 0:
                projected[i] = projected[i] - (projected[i] @ vectors[j]) / (vectors[j] @ vectors[j]) * vectors[j]
    return torch.stack(projected).sum(0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_pcgrad_is_the_published_algorithm(count: int) -> None:
    for seed in range(20):
        g = random.uniform(seed, "vectors", 0, torch.arange(count), 5) - 0.5
        order = gradient_conflicts.projection_order(count, seed, 7)
        coefficient = gradient_conflicts.pcgrad(g @ g.T, order)
        expected = slow_pcgrad({str(i): v for i, v in enumerate(g)}, order)
        torch.testing.assert_close(coefficient @ g, expected, atol=1e-12, rtol=0)


def test_pcgrad_of_two_opposed_vectors_by_hand() -> None:
    """(1, 0) and (-1, 1): each loses its part along the other: (1/2, 1/2) and (0, 1)."""
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    coefficient = gradient_conflicts.pcgrad(g @ g.T, [[1], [0]])
    torch.testing.assert_close(coefficient @ g, torch.tensor([0.5, 1.5], dtype=torch.float64))
    agreeing = torch.eye(3, dtype=torch.float64) + 0.2
    assert gradient_conflicts.pcgrad(agreeing, [[1, 2], [0, 2], [0, 1]]).tolist() == [1, 1, 1]
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    assert gradient_conflicts.pcgrad(nothing, [[1], [0]]).tolist() == [1, 1]
    assert gradient_conflicts.cosines(nothing).tolist() == [[0, 0], [0, 0]]


def test_projection_order_is_a_shuffle_of_the_others_by_seed_and_step() -> None:
    orders = [gradient_conflicts.projection_order(4, 1, step) for step in range(200)]
    assert all(sorted(others) == [j for j in range(4) if j != i] for o in orders for i, others in enumerate(o))
    assert orders[3] == gradient_conflicts.projection_order(4, 1, 3) and len({str(o) for o in orders}) > 100
    first = np.bincount([o[0][0] for o in orders], minlength=4)
    assert first[0] == 0 and first[1:].min() > 40


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("weights", ["static", "uncertainty"])
def test_a_step_with_pcgrad(weights: str, micro_batch: int | None) -> None:
    """Against separate backward passes, the algorithm in a loop over what tasks share, and the sum of the rest."""
    tasks = {
        "gradients": "pcgrad",
        "weighting": weights,
        "contrastive": {"weight": 3.0},
        "clustering": {"start_epoch": 0},
        "reconstruction": {"weight": 0.7},
    }
    config = small_config("conclugen", precision="float64", tasks=tasks, clip_norm=None, micro_batch=micro_batch)
    pretrainer = fresh(config)
    for step in range(3):
        pretrainer.step(rows(step))
    by_task = task_gradients(pretrainer, rows(3))
    metrics = pretrainer.step(rows(3))
    factors = {name: float(metrics[f"weight/{name}"]) / 3 for name in TASKS}
    shared = [n for n in pretrainer.parameters if sum(n in g for g in by_task.values()) >= 2]
    assert {n.split(".")[0] for n in shared} == {"heads", "projection"}

    def flat(task: str) -> Tensor:
        parameters = pretrainer.parameters
        pieces = [by_task[task].get(n, torch.zeros_like(parameters[n])) for n in shared]
        return torch.cat([p.flatten() for p in pieces])

    vectors = {task: flat(task) for task in TASKS}
    order = gradient_conflicts.projection_order(3, config.seed, 3)
    expected = slow_pcgrad({task: factors[task] * v for task, v in vectors.items()}, order)
    found = torch.cat([pretrainer.parameters[n].grad.flatten() for n in shared])  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-10)
    for task, gradients in by_task.items():
        for name, gradient in gradients.items():
            if name not in shared:
                torch.testing.assert_close(pretrainer.parameters[name].grad, factors[task] * gradient)
    for i, a in enumerate(TASKS):
        for b in TASKS[i + 1 :]:
            cosine = torch.nn.functional.cosine_similarity(vectors[a], vectors[b], dim=0)
            assert float(metrics[f"conflict/{a}/{b}"]) == pytest.approx(float(cosine), abs=1e-10)


def test_uncertainty_begins_as_static_weights_do() -> None:
    tasks = {"contrastive": {"weight": 0.4}, "reconstruction": {"weight": 3.0}}
    runs = [
        fresh(small_config("contrast_generative", precision="float64", tasks={"weighting": kind, **tasks}))
        for kind in ("static", "uncertainty")
    ]
    metrics = [run.step(rows()) for run in runs]
    for name in ("grad_norm", "weight/contrastive", "weight/reconstruction"):
        assert float(metrics[0][name]) == pytest.approx(float(metrics[1][name]), rel=1e-12), name
    assert float(metrics[0]["weight/reconstruction"]) == 3.0


def test_gradient_of_uncertainty_is_that_of_its_total() -> None:
    """The closed form against autograd through the formula; and where weight x loss is 1 it stands still."""
    module = weighting.make(two_tasks(weighting="uncertainty")).double()
    losses = {"contrastive": torch.tensor(3.0).double(), "reconstruction": torch.tensor(0.5).double()}
    module.learn(losses, None, list(losses))
    parameters = dict(module.named_parameters())
    s = {name: parameters[f"log_variance.{name}"].detach().clone().requires_grad_() for name in losses}
    total = sum((-s[n]).exp() * loss + s[n] for n, loss in losses.items()) / 2
    assert isinstance(total, Tensor)
    total.backward()
    assert float(module.total(losses, list(losses))) == pytest.approx(float(total.detach()), rel=1e-12)
    for name in losses:
        torch.testing.assert_close(parameters[f"log_variance.{name}"].grad, s[name].grad, atol=1e-12, rtol=0)
    assert float(s["reconstruction"].grad) == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]
    module.learn({"contrastive": torch.tensor(3.0), "reconstruction": torch.tensor(0.0)}, None, list(losses))
    assert float(parameters["log_variance.reconstruction"].grad) == 0  # type: ignore[arg-type]


def test_uncertainty_finds_the_inverse_of_the_loss() -> None:
    """With losses that stand still, exp(-s) goes to 1 / L."""
    module = weighting.make(two_tasks(weighting="uncertainty"))
    losses = {"contrastive": torch.tensor(4.0), "reconstruction": torch.tensor(0.25)}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(500):
        module.learn(losses, None, list(losses))
        optimizer.step()
        module.constrain()
    found = {name: float(weight) for name, weight in module.weights(list(losses)).items()}
    assert found == pytest.approx({"contrastive": 0.25, "reconstruction": 4.0}, rel=1e-3)


def test_a_vanishing_loss_does_not_get_an_infinite_weight() -> None:
    module = weighting.make(two_tasks(weighting="uncertainty"))
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0)
    losses = {"contrastive": torch.tensor(1e-9), "reconstruction": torch.tensor(1e9)}
    for _ in range(50):
        module.learn(losses, None, list(losses))
        optimizer.step()
        module.constrain()
    found = module.weights(list(losses))
    assert float(found["contrastive"]) == pytest.approx(1000, rel=1e-4)
    assert float(found["reconstruction"]) == pytest.approx(0.001, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradient_of_gradnorm(alpha: float) -> None:
    """Against autograd through sum |G_i - target_i| with the target held constant (equations 1 and 2)."""
    module = weighting.make(two_tasks(weighting="gradnorm", gradnorm_alpha=alpha)).double()
    active = ["contrastive", "reconstruction"]
    norms = torch.tensor([2.0, 0.3], dtype=torch.float64)
    first = {"contrastive": torch.tensor(4.0).double(), "reconstruction": torch.tensor(1.0).double()}
    module.learn(first, norms, active)
    now = {"contrastive": torch.tensor(3.0).double(), "reconstruction": torch.tensor(0.2).double()}
    module.learn(now, norms, active)
    v = torch.tensor([math.log(0.5), math.log(2.0)], dtype=torch.float64, requires_grad=True)
    weight = 2.5 * v.softmax(0)
    ratio = torch.tensor([3 / 4, 0.2], dtype=torch.float64)
    target = (weight * norms).mean().detach() * (ratio / ratio.mean()) ** alpha
    (weight * norms - target).abs().sum().backward()
    found = torch.stack([p.grad for p in module.parameters() if p.grad is not None])
    torch.testing.assert_close(found, v.grad, atol=1e-12, rtol=1e-12)
    assert sum(float(w) for w in module.weights(active).values()) == pytest.approx(2.5)


def test_gradnorm_makes_gradients_equally_large_where_alpha_is_zero() -> None:
    module = weighting.make(two_tasks(weighting="gradnorm", gradnorm_alpha=0.0))
    losses = {"contrastive": torch.tensor(4.0), "reconstruction": torch.tensor(0.25)}
    norms = torch.tensor([6.0, 0.3])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(500):
        module.learn(losses, norms, list(losses))
        optimizer.step()
    weights = [float(w) for w in module.weights(list(losses)).values()]
    assert weights[0] * 6.0 == pytest.approx(weights[1] * 0.3, rel=0.05) and sum(weights) == pytest.approx(2.5)


def test_gradnorm_measures_what_the_tasks_share() -> None:
    """The first step's gradient of the weights from norms of separate backward passes; all rates are 1 then."""
    tasks = {"weighting": "gradnorm", "contrastive": {"weight": 3.0}}
    pretrainer = fresh(small_config("contrast_generative", precision="float64", tasks=tasks))
    by_task = task_gradients(pretrainer, rows())
    shared = by_task["contrastive"].keys() & by_task["reconstruction"].keys()
    assert {name.split(".")[0] for name in shared} == {"heads"}
    norms = [math.sqrt(sum(float(by_task[t][n].square().sum()) for n in shared)) for t in by_task]
    pretrainer.step(rows())
    sizes = [3.0 * norms[0], 1.0 * norms[1]]
    slopes = [math.copysign(n, size - sum(sizes) / 2) for n, size in zip(norms, sizes, strict=True)]
    # dw / dv of w = 4 softmax(v) at (3, 1): +-3/4 for either parameter.
    expected = 0.75 * (slopes[0] - slopes[1])
    found = [float(p.grad) for p in pretrainer.weighting.parameters() if p.grad is not None]
    assert found == pytest.approx([expected, -expected], rel=1e-9)


def norms_over_heads(pretrainer: Pretrainer, batch: Any) -> dict[str, float]:
    """Of each active task's loss by itself, from separate backward passes."""
    return {
        task: math.sqrt(sum(float(g.square().sum()) for n, g in found.items() if n.startswith("heads.")))
        for task, found in task_gradients(pretrainer, batch).items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"share_every": 1},
        {"share_every": 3},
        {"share_every": 0, "gradients": "pcgrad"},
        {"share_every": 0, "weighting": "gradnorm"},
    ],
)
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_shares_of_the_heads_gradient(options: dict[str, Any], micro_batch: int | None) -> None:
    """Weight times norm over their sum, by separate backward passes; alone, a task shares nothing."""
    weights = {"contrastive": {"weight": 3.0}, "reconstruction": {"weight": 0.7}}
    tasks = {**options, **weights, "clustering": {"start_epoch": 1}}
    config = small_config("conclugen", precision="float64", tasks=tasks, micro_batch=micro_batch)
    pretrainer = fresh(config)
    by_task = options["share_every"] == 0
    for step in range(4):
        norms = norms_over_heads(pretrainer, rows(step))
        found = pretrainer.step(rows(step))
        shares = {name.split("/")[1]: float(x) for name, x in found.items() if name.startswith("share/")}
        if not by_task and step % options["share_every"]:
            assert not shares
            continue
        sizes = {task: float(found[f"weight/{task}"]) * norm for task, norm in norms.items()}
        assert shares == pytest.approx({task: s / sum(sizes.values()) for task, s in sizes.items()}, rel=1e-9)
        assert len(shares) == (2 if step < 3 else 3)
    alone = fresh(small_config("contrast_only", tasks={"share_every": 1})).step(rows())
    assert not any(name.startswith("share/") for name in alone)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_measuring_shares_changes_no_bit_of_a_run(micro_batch: int | None) -> None:
    runs = []
    for every in (0, 1):
        run = fresh(small_config("conclugen", tasks={"share_every": every}, micro_batch=micro_batch))
        for step in range(4):
            run.step(rows(step))
        runs.append(run.state()[0])
    assert all(torch.equal(x, runs[1][name]) for name, x in runs[0].items())


SHARES = {
    "weighting": "share",
    "contrastive": {"weight": 0.3},
    "clustering": {"weight": 0.1},
    "reconstruction": {"weight": 0.6},
}


@pytest.mark.parametrize(("band", "micro_batch"), [(0.0, None), (0.3, None), (0.0, 5)])
def test_every_step_has_the_shares_asked_for(band: float, micro_batch: int | None) -> None:
    """From separate backward passes: within the band at each step, exact where it is 0, among the tasks that are
    active; and the sum of the sizes, where weights are set anew, is that of the shares as plain weights."""
    tasks = {**SHARES, "share_band": band}
    pretrainer = fresh(small_config("conclugen", precision="float64", tasks=tasks, micro_batch=micro_batch))
    moved = set()
    for step in range(8):
        norms = norms_over_heads(pretrainer, rows(step))
        found = pretrainer.step(rows(step))
        whole = sum(SHARES[task]["weight"] for task in norms)  # type: ignore[index]
        wanted = {task: SHARES[task]["weight"] / whole for task in norms}  # type: ignore[index]
        sizes = {task: float(found[f"weight/{task}"]) * norm for task, norm in norms.items()}
        for task, size in sizes.items():
            share = size / sum(sizes.values())
            assert share == pytest.approx(wanted[task], rel=max(band, 1e-9)), (step, task)
            assert float(found[f"share/{task}"]) == pytest.approx(share, rel=1e-9)
        if band == 0:
            assert sum(sizes.values()) == pytest.approx(sum(wanted[t] * norms[t] for t in norms), rel=1e-9)
        moved.add(float(found["weight/contrastive"]))
    assert len(moved) == 8 if band == 0 else 1 <= len(moved) < 8
    assert len(norms) == 3


def test_shares_without_a_gradient_and_beyond_the_bounds() -> None:
    """A task without gradient keeps its weight, the others divide the whole; a vanishing one can't have its share."""
    tasks = TasksConfig(
        contrastive=ContrastiveConfig(weight=0.25),
        reconstruction=ReconstructionConfig(weight=0.75),
        weighting="share",
        share_band=0.0,
    )
    module, active = weighting.make(tasks).double(), ["contrastive", "reconstruction"]
    module.balance(torch.tensor([2.0, 6.0]), active)
    found = {name: float(w) for name, w in module.weights(active).items()}
    assert found == pytest.approx({"contrastive": 0.25 * 5 / 2, "reconstruction": 0.75 * 5 / 6})
    for nothing in (0.0, math.nan):
        module.balance(torch.tensor([nothing, 3.0]), active)
        kept = {name: float(w) for name, w in module.weights(active).items()}
        assert kept == pytest.approx({"contrastive": 0.625, "reconstruction": 0.625})
    module.balance(torch.tensor([1e-9, 3.0]), active)
    found = {name: float(w) for name, w in module.weights(active).items()}
    assert found == pytest.approx({"contrastive": 250, "reconstruction": 0.5625})


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    words = r"must sum to 1, got 2.5 \(contrastive 0.5, reconstruction 2\); divide each by 2.5"
    with pytest.raises(ValueError, match=words):
        two_tasks(weighting="share")
    with pytest.raises(ValueError, match=r"sum to 1, got 2.2 .*clustering 0.2"):
        small_config("conclugen", tasks={"weighting": "share"})
    pretrainer = fresh(small_config("conclugen", tasks=SHARES))
    with pytest.raises(ValueError, match=r"sum to 1, got 1.2"):
        pretrainer.set_weights({"contrastive": 0.5})
    pretrainer.set_weights({"contrastive": 0.5, "reconstruction": 0.4})
    assert pretrainer.state()[1]["weights"]["current"] == {
        "contrastive": 0.5,
        "clustering": 0.1,
        "reconstruction": 0.4,
    }


def test_gradient_of_dynamic_weights() -> None:
    """Against autograd through sum_i mean_n p_n,i / (L_i + 0.01) with p_n = softmax(A z_n + b) over present rows; they
    begin as configured, and where the losses stay the harder task comes to weigh more."""
    module = weighting.make(two_tasks(weighting="dynamic"), 3).double()
    losses = {"contrastive": torch.tensor(4.0).double(), "reconstruction": torch.tensor(0.5).double()}
    active = list(losses)
    rows_NR = random.uniform(5, "rows", 0, torch.arange(7), 3) - 0.5
    present = torch.tensor([True, True, False, True, True, False, True])
    z = rows_NR[present] / rows_NR[present].norm(dim=1, keepdim=True)
    module.see(rows_NR, present, active)
    start = {name: float(w) for name, w in module.weights(active).items()}
    assert start == pytest.approx({"contrastive": 0.5, "reconstruction": 2.0})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(200):
        module.see(rows_NR, present, active)
        module.learn(losses, None, active)
        parameters = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
        p = (z @ parameters["matrix"].T + parameters["bias"]).softmax(1).mean(0)
        found = torch.stack(list(module.weights(active).values()))
        torch.testing.assert_close(found, 2.5 * p.detach(), atol=1e-12, rtol=1e-9)
        (p / (torch.stack(list(losses.values())) + 0.01)).sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-12, rtol=1e-9)
        optimizer.step()
    module.see(rows_NR, present, active)
    found = {name: float(w) for name, w in module.weights(active).items()}
    assert found["contrastive"] > 2.4 and sum(found.values()) == pytest.approx(2.5)
    bias = dict(module.named_parameters())["bias"]
    before = bias.detach().clone()
    module.learn({"contrastive": torch.tensor(0.0), "reconstruction": torch.tensor(1.0)}, None, active)
    optimizer.step()
    torch.testing.assert_close(bias.detach(), before, atol=1e-12, rtol=0)
    module.see(rows_NR, torch.zeros_like(present), active)
    nobody = torch.stack(list(module.weights(active).values()))
    torch.testing.assert_close(nobody, 2.5 * bias.detach().softmax(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_dynamic_weights_follow_the_representations_of_the_batch(micro_batch: int | None) -> None:
    tasks = {"weighting": "dynamic", "clustering": {"start_epoch": 0}}
    config = small_config("conclugen", precision="float64", tasks=tasks, micro_batch=micro_batch)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, feature_mask=0.0))
    pretrainer = fresh(config)
    with torch.no_grad():
        pretrainer.parameters["weighting.matrix"].copy_(random.uniform(1, "matrix", 0, torch.arange(3), 16) * 4)
    batch = rows(2)
    embedded = pretrainer.embed(batch)
    present = torch.stack([torch.as_tensor(batch.present[m]) for m in embedded])
    each = torch.stack(list(embedded.values()))[present]
    scores = (each / each.norm(dim=1, keepdim=True)) @ pretrainer.parameters["weighting.matrix"].detach().T
    expected = (scores + torch.tensor([1.0, 0.2, 1.0], dtype=torch.float64).log()).softmax(1).mean(0) * 2.2
    found = pretrainer.step(batch)
    assert [float(found[f"weight/{t}"]) for t in TASKS] == pytest.approx(expected.tolist(), rel=1e-9)
    total = sum(w * float(found[f"loss/{t}"]) for w, t in zip(expected.tolist(), TASKS, strict=True))
    assert float(found["loss"]) == pytest.approx(total / 3, rel=1e-9)


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm", "dynamic", "share"])
def test_learned_weights_resume_bitwise(kind: str, tmp_path: Path) -> None:
    tasks = {**(SHARES if kind == "share" else {}), "weighting": kind, "gradients": "pcgrad"}
    through = fresh(small_config("conclugen", tasks=tasks))
    for step in range(8):
        if step == 5:
            checkpoint.save(tmp_path / "state", through, {})
        expected = through.step(rows(step))
    resumed = fresh(small_config("conclugen", tasks=tasks))
    checkpoint.load(tmp_path / "state").restore(resumed)
    for step in range(5, 8):
        found = resumed.step(rows(step))
    assert {n: float(x) for n, x in found.items()} == {n: float(x) for n, x in expected.items()}
    moved = [float(expected[f"weight/{t}"]) for t in TASKS]
    assert moved != [through.config.tasks.active[t].weight for t in TASKS]


def test_learned_weights_are_not_decayed() -> None:
    decay = {"weight_decay": 0.5, "decay": "all"}
    pretrainer = fresh(small_config("contrast_generative", tasks={"weighting": "uncertainty"}, optimizer=decay))
    [group] = [g for g in pretrainer.optimizer.param_groups if len(g["params"]) == 2]
    assert group["weight_decay"] == 0.0 and group["peak_lr"] == 0.01
    assert {id(p) for p in group["params"]} == {id(p) for p in pretrainer.weighting.parameters()}


def test_setting_weights_changes_the_next_step_and_is_remembered(tmp_path: Path) -> None:
    pretrainer = fresh(small_config("contrast_generative", precision="float64"))
    assert float(pretrainer.step(rows(0))["weight/contrastive"]) == 1.0
    pretrainer.set_weights({"contrastive": 0.3, "reconstruction": 1.0})
    metrics = pretrainer.step(rows(1))
    assert float(metrics["weight/contrastive"]) == 0.3
    total = 0.3 * float(metrics["loss/contrastive"]) + float(metrics["loss/reconstruction"])
    assert float(metrics["loss"]) == pytest.approx(total / 2, rel=1e-12)
    checkpoint.save(tmp_path / "state", pretrainer, {})
    meta = checkpoint.load(tmp_path / "state").meta
    assert meta["weights"]["changes"] == [{"step": 1, "weights": {"contrastive": 0.3}}]

    resumed = fresh(small_config("contrast_generative", precision="float64"))
    checkpoint.load(tmp_path / "state").restore(resumed)
    mine, theirs = resumed.step(rows(2)), pretrainer.step(rows(2))
    assert {n: float(x) for n, x in mine.items()} == {n: float(x) for n, x in theirs.items()}
    assert float(mine["weight/contrastive"]) == 0.3

    other = fresh(small_config("contrast_generative", precision="float64", tasks={"reconstruction": {"weight": 7.0}}))
    checkpoint.load(tmp_path / "state").restore(other)
    metrics = other.step(rows(2))
    assert [float(metrics[f"weight/{t}"]) for t in ("contrastive", "reconstruction")] == [0.3, 7.0]
    assert other.state()[1]["weights"]["changes"][1:] == [{"step": 2, "weights": {"reconstruction": 7.0}}]


def test_a_state_without_weights_has_the_configured_ones() -> None:
    pretrainer = fresh(small_config("contrast_generative"))
    tensors, meta = pretrainer.state()
    meta = {name: value for name, value in json.loads(json.dumps(meta)).items() if name != "weights"}
    pretrainer.load_state({n: x.clone() for n, x in tensors.items()}, meta)
    assert float(pretrainer.step(rows())["weight/contrastive"]) == 1.0


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"contrastiv": 1.0}, "'contrastiv'.*did you mean 'contrastive'"),
        ({"clustering": 1.0}, "'clustering'.*allowed: contrastive, reconstruction"),
        ({"reconstruction": 2.0, "contrastive": 0.0}, r"weights\['contrastive'\]: found 0.0"),
        ({"contrastive": math.nan}, "found nan"),
        ({"contrastive": "1"}, "found '1'"),
        ({"contrastive": True}, "found True"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: dict[str, Any], words: str) -> None:
    pretrainer = fresh(small_config("contrast_generative"))
    with pytest.raises(ValueError, match=words):
        pretrainer.set_weights(weights)
    assert pretrainer.state()[1]["weights"]["changes"] == []
    assert float(pretrainer.step(rows())["weight/reconstruction"]) == 1.0


def test_learned_weights_cannot_be_set() -> None:
    pretrainer = fresh(small_config("contrast_generative", tasks={"weighting": "gradnorm"}))
    with pytest.raises(ValueError, match=r"tasks.weighting='gradnorm' learns them.*'static'"):
        pretrainer.set_weights({"contrastive": 0.3})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weighting": "uncertain"}, "tasks.weighting.*'uncertain'.*did you mean 'uncertainty'"),
        ({"gradients": "pcgrd"}, "tasks.gradients.*did you mean 'pcgrad'"),
        ({"learned_weight_lr": -1.0}, "tasks.learned_weight_lr: found -1.0"),
        ({"gradnorm_alpha": math.inf}, "tasks.gradnorm_alpha: found inf"),
        ({"share_band": 1.0}, "tasks.share_band: found 1.0"),
        ({"share_every": -1}, "tasks.share_every: found -1"),
    ],
)
def test_options_are_checked_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        two_tasks(**options)
    with pytest.raises(ValueError, match=words):
        small_config("contrast_generative", tasks=options)


@pytest.mark.parametrize(
    "option", [*({"weighting": kind} for kind in WEIGHTINGS if kind != "static"), {"gradients": "pcgrad"}]
)
def test_one_task_has_nothing_to_be_weighed_against(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"tasks.{next(iter(option))}.*contrastive alone.*two tasks"):
        small_config("contrast_only", tasks=option)


def test_what_is_learned_decides_what_a_run_is() -> None:
    base = small_config("contrast_generative")
    changed = dataclasses.replace(base, tasks=dataclasses.replace(base.tasks, gradients="pcgrad"), micro_batch=3)
    assert base.differences(changed) == {"tasks.gradients": ("sum", "pcgrad")}
