"""Each loss against a slow version that goes row by row over the present rows only, on random masks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conclugen.latents import Latents, Presence
from conclugen.layers.heads import Decoder
from conclugen.random import uniform
from conclugen.tasks.clustering import Clustering, ClusteringConfig, assignment_losses, joint_features
from conclugen.tasks.contrastive import FEWEST_MATES, Contrastive, ContrastiveConfig, comparisons, ring
from conclugen.tasks.reconstruction import Reconstruction, ReconstructionConfig
from conclugen.tasks.simclr import Simclr, SimclrConfig
from tests.conclugen.slow_kmeans import slow_kmeans

B, P = 9, 4
NAMES = ("video", "audio", "text")
WIDTHS = {"video": 5, "audio": 3, "text": 4}
PATTERNS = ["full", "random", "one row", "none"]


def presence(pattern: str, seed: int = 0, group: bool = False) -> Presence:
    g = torch.Generator().manual_seed(seed)
    masks = {
        "full": torch.ones(3, B, dtype=torch.bool),
        "random": torch.rand(3, B, generator=g) > 0.4,
        "one row": torch.zeros(3, B, dtype=torch.bool).index_fill(1, torch.tensor([4]), True),
        "none": torch.zeros(3, B, dtype=torch.bool),
    }
    # Two groups, of which one is large enough to be compared within, and a row without a group.
    groups = (torch.rand(B, generator=g) < 0.3).long().index_fill(0, torch.tensor([1]), -1) if group else None
    return Presence(masks[pattern], masks[pattern], torch.arange(B), groups, 0)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def latents(pattern: str, group: bool = False, **parts: Any) -> Latents:
    return Latents(NAMES, parts.get("x", {}), parts.get("r", {}), parts.get("z"), presence(pattern, group=group), 0, 0)


def cross_entropy(scores: list[float], index: int) -> float:
    """- log softmax(scores)[index], term by term."""
    return float(np.log(sum(np.exp(s - scores[index]) for s in scores)))


def slow_contrastive(z: Tensor, p: Presence, margin: float, temperature: float) -> float:
    unit = (z / z.norm(dim=2, keepdim=True)).numpy()
    total = 0.0
    for a, b in [(0, 1), (1, 2), (2, 0)]:
        rows = [i for i in range(B) if p.local[a, i] and p.local[b, i]]
        terms = []
        for i in rows:
            columns = rows
            if p.all_group is not None and p.all_group[i] >= 0:
                mates = [j for j in rows if p.all_group[i] == p.all_group[j]]
                columns = mates if len(mates) - 1 >= FEWEST_MATES else rows
            if len(columns) < 2:
                continue
            term = 0.0
            for query, key in ((a, b), (b, a)):
                s = [(float(unit[query, i] @ unit[key, j]) - margin * (i == j)) / temperature for j in columns]
                term += cross_entropy(s, columns.index(i))
            terms.append(term)
        total += float(np.mean(terms)) if terms else 0.0
    return total


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "config",
    [
        ContrastiveConfig(),
        ContrastiveConfig(margin=0.0, temperature=0.1, learn_temperature=True),
        ContrastiveConfig(margin=0.2, temperature=0.5, negatives="same_group"),
    ],
)
def test_contrastive(config: ContrastiveConfig, pattern: str) -> None:
    z = randn(3, B, P).requires_grad_()
    inputs = latents(pattern, group=config.negatives == "same_group", z=z)
    module = Contrastive(config).double()
    loss = module(inputs)
    expected = slow_contrastive(z.detach(), inputs.presence, config.margin, config.temperature or 1.0)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5 if config.learn_temperature else 1e-12)
    loss.backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())
    absent = ~inputs.presence.local
    assert bool((z.grad[absent] == 0).all())
    if pattern in ("full", "random"):
        assert float(z.grad.abs().sum()) > 0
    else:
        assert float(loss.detach()) == 0


def test_rows_are_compared_within_a_group_that_is_large_enough() -> None:
    group = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, -1])
    valid = torch.ones(9, dtype=torch.bool)
    valid[5] = False
    compared, counted = comparisons(valid, valid, 0, group)
    assert compared.within_all is not None
    assert compared.within_all.tolist() == [True] * 5 + [False] * 4  # five valid rows are four others for each
    assert counted.tolist() == valid.tolist()
    valid[4] = False
    fewer, _ = comparisons(valid, valid, 0, group)
    assert fewer.within_all is not None and not bool(fewer.within_all.any())


def test_a_row_alone_does_not_count() -> None:
    alone = torch.zeros(4, dtype=torch.bool).index_fill(0, torch.tensor([2]), True)
    for group in (None, torch.zeros(4, dtype=torch.int64)):
        assert not bool(comparisons(alone, alone, 0, group)[1].any())


def test_two_modalities_make_one_pair_and_three_a_ring() -> None:
    assert ring(2) == [(0, 1)]
    assert ring(3) == [(0, 1), (1, 2), (2, 0)]


def test_temperature_is_kept_between_its_bounds() -> None:
    module = Contrastive(ContrastiveConfig(temperature=0.05, learn_temperature=True))
    assert module.log_scale is not None
    for log_scale, expected in ((-9.0, 1.0), (9.0, 100.0)):
        module.log_scale.data.fill_(log_scale)
        assert float(torch.as_tensor(module.scale()).detach()) == expected


def test_gradient_of_contrastive() -> None:
    module = Contrastive(ContrastiveConfig(margin=0.1, temperature=0.5))

    def loss(z: Tensor) -> Tensor:
        return module(latents("random", z=z))

    assert torch.autograd.gradcheck(loss, (randn(3, B, P).requires_grad_(),))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("cross_modal", [False, True])
def test_reconstruction(pattern: str, cross_modal: bool) -> None:
    module = Reconstruction(ReconstructionConfig(1.0, "none", cross_modal), WIDTHS, P, 6).double()
    for i, p in enumerate(module.parameters()):
        p.data.copy_(randn(*p.shape, seed=i))
    x = {m: randn(B, d, seed=20 + d) for m, d in WIDTHS.items()}
    r = {m: randn(B, P, seed=30 + d) for m, d in WIDTHS.items()}
    inputs = latents(pattern, x=x, r=r)
    loss = module(inputs)
    present = {m: inputs.presence.local[i] for i, m in enumerate(NAMES)}
    expected = 0.0
    for target in NAMES:
        sources = [s for s in NAMES if s != target] if cross_modal else [target]
        for source in sources:
            decoder = module.decoders[target]
            assert isinstance(decoder, Decoder)
            errors = [
                float(((decoder(r[source][i]) - x[target][i]).detach() ** 2).sum()) / WIDTHS[target]
                for i in range(B)
                if present[target][i] and present[source][i]
            ]
            expected += float(np.mean(errors)) / len(sources) if errors else 0.0
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_simclr(pattern: str) -> None:
    z = randn(2, B, P).requires_grad_()
    valid = presence(pattern).local[0]
    there = Presence(valid.repeat(2, 1), valid.repeat(2, 1), torch.arange(B), None, 0)
    loss = Simclr(SimclrConfig(temperature=0.3))(Latents(("a", "b"), {}, {}, z, there, 0, 0))
    unit = (z / z.norm(dim=2, keepdim=True)).detach().numpy()
    views = [(v, i) for v in range(2) for i in range(B) if valid[i]]
    terms = []
    for view, i in views:
        others = [o for o in views if o != (view, i)]
        terms.append(cross_entropy([float(unit[view, i] @ unit[o]) / 0.3 for o in others], others.index((1 - view, i))))
    assert float(loss.detach()) == pytest.approx(float(np.mean(terms)) if terms else 0.0, abs=1e-12)
    loss.backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("pattern", ["full", "random"])
@pytest.mark.parametrize("mode", ["joint", "individual"])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_clustering(mode: str, score: str, pattern: str) -> None:
    K = 3
    config = ClusteringConfig(clusters=K, mode=mode, score=score, margin=0.05, temperature=0.5, start_epoch=0)
    module = Clustering(config, P, B, seed=7).double()
    module.head.weight.data.copy_(randn(K, P, seed=3))
    inputs = latents(pattern, z=randn(3, B, P))
    loss = module(inputs)
    features = torch.einsum("mbp,kp->mbk", inputs.projections, module.head.weight).detach().numpy()
    present: np.ndarray = inputs.presence.local.numpy()
    any_present = np.asarray(present.any(0))
    joint = np.stack([features[present[:, i], i].mean(0) if present[:, i].any() else np.zeros(K) for i in range(B)])
    centroids, labels = independent_clusters(joint, any_present, K)
    np.testing.assert_allclose(module.centroids.numpy(), centroids, atol=1e-10)
    parts = [(joint, any_present)] if mode == "joint" else [(features[m], present[m]) for m in range(3)]
    expected = 0.0
    for f, rows in parts:
        terms = []
        for i in np.flatnonzero(rows).tolist():
            scores = []
            for k in range(K):
                s = float(f[i] @ centroids[k])
                if score == "cosine":
                    s /= max(1e-12, float(np.linalg.norm(f[i]) * np.linalg.norm(centroids[k])))
                scores.append((s - 0.05 * (k == labels[i])) / 0.5)
            terms.append(cross_entropy(scores, labels[i]))
        expected += float(np.mean(terms))
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-10)


def independent_clusters(joint: np.ndarray, valid: np.ndarray, K: int) -> tuple[np.ndarray, dict[int, int]]:
    """Centroids, and row -> label, of the slow k-means from the drawn rows."""
    rows = np.flatnonzero(valid)
    draws = uniform(7, "kmeans", 0, torch.arange(K), 1).squeeze(1).tolist()
    centroids, labels = slow_kmeans(joint[rows], joint[[rows[int(u * len(rows))] for u in draws]])
    return centroids, dict(zip(rows.tolist(), labels, strict=True))


def test_assignment_without_valid_rows_is_zero_with_a_gradient_path() -> None:
    scores = randn(B, 3).requires_grad_()
    loss = assignment_losses(scores, torch.zeros(B, dtype=torch.int64), torch.zeros(B, dtype=torch.bool), 0.001).sum()
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None and float(scores.grad.abs().sum()) == 0


def test_clustering_before_its_epoch_is_zero_with_a_gradient_path() -> None:
    module = Clustering(ClusteringConfig(clusters=3, start_epoch=2), P, B, seed=7).double()
    module.head.weight.data.copy_(randn(3, P))
    loss = module(latents("full", z=randn(3, B, P)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert module.head.weight.grad is not None and float(module.head.weight.grad.abs().sum()) == 0
    assert module.queued == 0 and float(module.centroids.abs().sum()) == 0


def test_joint_features_are_the_mean_of_the_present() -> None:
    features = randn(2, 3, 4)
    present = torch.tensor([[True, True, False], [True, False, False]])
    joint = joint_features(features, present)
    torch.testing.assert_close(joint, torch.stack([features[:, 0].mean(0), features[0, 1], torch.zeros(4).double()]))


class TestQueue:
    """Rows of a batch are told apart by a constant: batch s holds s + 1 everywhere."""

    G, K = 4, 4

    def module(self, queue: str) -> Clustering:
        config = ClusteringConfig(clusters=self.K, queue_batches=2, start_epoch=0, queue=queue)
        module = Clustering(config, self.K, self.G, seed=1).double()
        module.head.weight.data.copy_(torch.eye(self.K))
        return module

    def push(self, module: Clustering, value: float) -> None:
        z = torch.full((1, self.G, self.K), value, dtype=torch.float64)
        everywhere = torch.ones(1, self.G, dtype=torch.bool)
        p = Presence(everywhere, everywhere, torch.arange(self.G), None, 0)
        module(Latents(("video",), {}, {}, z, p, int(value), 0))

    def test_newest_batch_comes_first_and_the_oldest_leaves(self) -> None:
        module = self.module("per_epoch")
        for value in (1.0, 2.0, 3.0):
            self.push(module, value)
        assert module.queue[:, 0].tolist() == [3.0] * 4 + [2.0] * 4
        module.begin_epoch()
        assert float(module.queue.abs().sum()) == 0 and not bool(module.queue_valid.any())

    def test_published_queue_counts_only_once_full(self) -> None:
        module = self.module("per_epoch")
        means = []
        for value in (1.0, 3.0, 5.0):
            self.push(module, value)
            means.append(float(module.centroids.max()))  # all rows are parallel, so one cluster has them all
        assert means == [1.0, 3.0, 3.0]

    def test_rolling_queue_counts_as_far_as_filled_and_outlives_the_epoch(self) -> None:
        module = self.module("rolling")
        means = []
        for value in (1.0, 3.0, 5.0):
            module.begin_epoch()
            self.push(module, value)
            means.append(float(module.centroids.max()))
        assert means == [1.0, 2.0, 3.0]


def test_warm_start_keeps_cluster_numbers() -> None:
    """On an unchanged batch warm centroids keep each row's number; random starts permute them."""
    z = torch.eye(3, dtype=torch.float64).repeat(3, 1).unsqueeze(0) + 0.01 * randn(1, 9, 3)
    everywhere = torch.ones(1, 9, dtype=torch.bool)
    p = Presence(everywhere, everywhere, torch.arange(9), None, 0)
    moved = {}
    for start in ("warm", "random"):
        module = Clustering(
            ClusteringConfig(clusters=3, queue_batches=0, start_epoch=0, kmeans_start=start), 3, 9, seed=1
        ).double()
        module.head.weight.data.copy_(torch.eye(3))
        history = []
        for step in range(8):
            module(Latents(("video",), {}, {}, z, p, step, 0))
            history.append(module.centroids.clone())
        moved[start] = max(float((a - b).abs().max()) for a, b in zip(history[2:], history[1:], strict=False))
    assert moved["warm"] < 1e-12
    assert moved["random"] > 0.5
