"""Measures of health against closed forms, and warnings that fire when something has collapsed, and only then."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from conclugen.evaluation import health
from conclugen.tasks.registry import registered
from tests.conclugen.runs import fresh, rows, small_config


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions(rank: int) -> None:
    z = torch.zeros(40, 10, dtype=torch.float64)
    z[torch.arange(40), torch.arange(40) % rank] = 1 / math.sqrt(len(range(0, 40, rank)))
    for k in range(rank):  # equal singular values whatever 40 / rank leaves
        z[:, k] /= z[:, k].norm()
    assert float(health.effective_rank(z)) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_by_the_definition() -> None:
    z = randn(30, 6) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1, 0.0])
    s = np.linalg.svd(z.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert float(health.effective_rank(z)) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-9)
    assert float(health.effective_rank(torch.zeros(4, 3))) == 0


def test_cluster_usage() -> None:
    usage = health.cluster_usage(torch.tensor([0, 0, 1, 1, 3, 3]), 6)
    assert float(usage["used"]) == 0.5 and float(usage["perplexity"]) == pytest.approx(3.0)


def test_retrieval_against_sorting() -> None:
    a, b = randn(25, 4), randn(25, 4, seed=1)
    present = torch.rand(25, generator=torch.Generator().manual_seed(2)) > 0.2
    x, y = (t[present].numpy() / np.linalg.norm(t[present].numpy(), axis=1, keepdims=True) for t in (a, b))
    for k in (1, 5, 10):
        hits = [i in np.argsort(-(x @ y.T)[i])[:k] for i in range(len(x))] + [
            i in np.argsort(-(y @ x.T)[i])[:k] for i in range(len(x))
        ]
        assert float(health.retrieval(a, b, present)[f"recall@{k}"]) == pytest.approx(float(np.mean(hits)))
    assert float(health.retrieval(a, a)["recall@1"]) == 1.0


def test_a_collapsed_space_retrieves_nothing() -> None:
    same = torch.ones(20, 3)
    assert float(health.retrieval(same, same)["recall@10"]) == 0
    assert float(health.retrieval(torch.zeros(0, 3), torch.zeros(0, 3))["recall@1"]) == 0


def test_alignment_and_uniformity() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert float(health.alignment(x, y)) == pytest.approx(1.0)
    assert float(health.uniformity(x)) == pytest.approx(-4.0)  # one pair at squared distance 2
    assert float(health.uniformity(torch.ones(5, 3))) == pytest.approx(0.0, abs=1e-6)


def test_a_healthy_model_raises_no_warning_and_a_collapsed_one_does() -> None:
    pretrainer = fresh(small_config("contrast_only", optimizer={"lr": 5e-3, "restart_epochs": 60.0}))
    for step in range(100):
        pretrainer.step(rows(step, missing=0.0))
    batch = rows(300, 80, 0.0)
    present = {m: torch.from_numpy(p) for m, p in batch.present.items()}
    r, z = pretrainer.embed(batch), pretrainer.project(batch)
    healthy = health.report(r, z, present)
    assert health.warnings(healthy, present) == []
    one = {m: torch.ones_like(x) for m, x in z.items()}
    collapsed = health.report({m: torch.ones_like(x) for m, x in r.items()}, one, present)
    told = health.warnings(collapsed, present) + registered()["clustering"].warnings({"clusters/used": 0.1})
    text = "\n".join(told)
    for words in (
        "effective rank of video is 1.0",
        "uniformity",
        "retrieval video-audio",
        "10% of the clusters",
        "lower lr",
    ):
        assert words in text


def test_chance_is_that_of_the_rows_that_have_both_modalities() -> None:
    """Recall@10 of 10 % is chance where 100 rows of 2,000 have both, and far above it where all have."""
    everywhere, few = torch.ones(2000, dtype=torch.bool), torch.arange(2000) < 100
    measures = {"recall@10/video-audio": 0.1}
    (warning,) = health.warnings(measures, {"video": everywhere, "audio": few})
    assert "10.0% of 100 rows [5.5%, 17.4%], no better than chance (10.0%)" in warning
    assert health.warnings(measures, {"video": everywhere, "audio": everywhere}) == []


@pytest.mark.parametrize(
    ("recall", "rows", "alarm"),
    [
        (17 / 46, 46, False),  # above chance, which is 0.22
        (10 / 46, 46, True),  # chance itself, and twice that is left out
        (14 / 46, 46, False),  # chance is not left out, nor is twice that
        (1 / 12, 12, False),  # of 12 rows 10 are nearly all: nothing is shown
        (0.0, 46, True),
        (0.015, 2000, False),
        (0.005, 2000, True),
    ],
)
def test_a_retrieval_alarm_is_a_test_against_chance(recall: float, rows: int, alarm: bool) -> None:
    found = health.recall_interval(recall, rows)
    known = binomtest(round(recall * rows), rows).proportion_ci(0.95, "wilson")
    assert found == pytest.approx((known.low, known.high))
    assert health.no_better_than_chance(recall, rows, 10) is alarm


def test_report_counts_present_rows_only() -> None:
    r = {"video": randn(10, 4), "audio": randn(10, 4, seed=1)}
    present = {"video": torch.arange(10) < 6, "audio": torch.arange(10) > 3}
    found = health.report(r, r, present)
    assert found["effective_rank/video"] == pytest.approx(float(health.effective_rank(r["video"][:6])))
    assert found["alignment/video-audio"] == pytest.approx(float(health.alignment(r["video"][4:6], r["audio"][4:6])))
    none = {m: torch.zeros(10, dtype=torch.bool) for m in r}
    assert health.report(r, r, none) == {}
