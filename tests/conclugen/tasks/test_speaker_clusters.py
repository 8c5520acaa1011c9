"""Clusters within a speaker: number by number, their limit, and that they are not the speakers."""

from typing import Any

import numpy as np
import pytest
import torch

from conclugen import presets
from conclugen.latents import Latents, Presence
from conclugen.tasks.contrastive import Contrastive, ContrastiveConfig
from conclugen.tasks.speaker_clusters import SpeakerClusters, SpeakerClustersConfig, centred, class_sums
from conclugen.training.model import Model
from tests.conclugen.runs import fresh, rows, small_config
from tests.distributed.parity import assert_rank_parity

M, B, P, T = 3, 18, 6, 0.3
GROUP = torch.tensor([3, 8] * 8 + [5, -1])  # two speakers with eight rows, one with one, and a row of nobody


def run_config(**settings: Any) -> Any:
    tasks = {"contrastive": None, "speaker_clusters": {"start_epoch": 0, **settings}}
    model = {"projection_dim": P, "representation_dim": 16}
    return presets.build("contrast_only", tasks=tasks, model=model, global_batch=B, precision="float64")


def task(**settings: Any) -> SpeakerClusters:
    config = run_config(**settings)
    made = Model(config, {"video": 4, "audio": 4, "text": 4}).double().task("speaker_clusters")
    assert isinstance(made, SpeakerClusters)
    return made


def projections(seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(M, B, P, generator=g, dtype=torch.float64).requires_grad_()


def latents(z: torch.Tensor, share: float = 0.8, group: torch.Tensor = GROUP) -> Latents:
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(M, B, generator=g) < share
    there = Presence(mask, mask, torch.arange(B), group, 0)
    return Latents(("video", "audio", "text"), {}, {}, z, there, 0, 0)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("use", ["positives", "target"])
def test_the_loss_number_by_number(use: str) -> None:
    made, z = task(use=use, clusters=3, temperature=T), projections()
    seen = latents(z)
    labels: list[np.ndarray] = []
    assign = made._assign
    made._assign = lambda *a: labels.append((found := assign(*a)).numpy()) or found  # type: ignore[method-assign]
    loss = made(seen)
    (label,), mask, group = labels, seen.presence.local.numpy(), GROUP.numpy()
    vectors = unit(z.detach().numpy())
    there = mask.any(0)
    f = np.stack([vectors[mask[:, i], i].mean(0) if there[i] else np.zeros(P) for i in range(B)])
    mates = {i: [j for j in range(B) if there[j] and group[j] == group[i]] for i in range(B)}
    counted = [i for i in range(B) if there[i] and group[i] >= 0 and len(mates[i]) > 4]
    assert len(counted) == 16
    expected = 0.0
    if use == "target":
        centroids = unit(made.centroids.numpy())
        for i in counted:
            scores = unit(f[i] - f[mates[i]].mean(0)) @ centroids.T / T
            expected += (np.log(np.exp(scores).sum()) - scores[label[i]]) / len(counted)
    else:
        for a, b in ((0, 1), (1, 2), (2, 0)):
            both = [i for i in counted if mask[a, i] and mask[b, i]]
            own = {i: [j for j in both if group[j] == group[i]] for i in both}
            both = [i for i in both if len(own[i]) > 4]
            for i in both:
                positives = [j for j in own[i] if label[j] == label[i]]
                for x, y in ((a, b), (b, a)):
                    scores = {j: vectors[x, i] @ vectors[y, j] / T for j in own[i]}
                    total = np.log(sum(np.exp(s) for s in scores.values()))
                    expected += sum(total - scores[p] for p in positives) / (len(positives) * len(both))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert z.grad is not None and z.grad.abs().max() > 1e-4
    assert (z.grad[:, 16:] == 0).all(), "rows without enough of their speaker teach nothing"
    assert float(made.metrics()["speaker_clusters/counted"]) == pytest.approx(16 / there.sum())


def test_rows_that_are_clusters_of_their_own_are_contrast_within_the_speaker() -> None:
    z, group = projections(), torch.tensor([3, 8] * 9)
    seen = latents(z, 1.0, group)
    made = task(clusters=B, temperature=T)
    made._assign = lambda u, counted, step: torch.arange(B)  # type: ignore[method-assign]
    contrast = Contrastive(ContrastiveConfig(margin=0.0, temperature=T, negatives="same_group"))
    own, other = made(seen), contrast(seen)
    assert float(own.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
    (mine,), (theirs,) = (torch.autograd.grad(loss, z) for loss in (own, other))
    torch.testing.assert_close(mine, theirs)


def test_clusters_are_what_rows_have_beyond_their_speaker() -> None:
    """Speakers far apart, two ways of speaking that all share: k-means finds these, whoever speaks."""
    g = torch.Generator().manual_seed(2)
    way = torch.arange(B) // 2 % 2
    group = torch.tensor([3, 8] * 9)
    z = 10 * torch.randn(2, P, generator=g, dtype=torch.float64)[(group == 8).long()]
    z = z + 2 * torch.randn(2, P, generator=g, dtype=torch.float64)[way]
    made = task(clusters=2)
    labels: list[torch.Tensor] = []
    assign = made._assign
    made._assign = lambda *a: labels.append(found := assign(*a)) or found  # type: ignore[method-assign]
    made(latents(z.expand(M, B, P), 1.0, group))
    assert len({*zip(labels[0].tolist(), way.tolist(), strict=True)}) == 2, "one cluster for each way of speaking"


def test_means_and_sums_by_class() -> None:
    x = projections()[0].detach()
    valid = torch.arange(B) != 4
    mean, enough = centred(x, valid, GROUP)
    for i in range(B):
        mates = [j for j in range(B) if valid[j] and GROUP[j] == GROUP[i] and GROUP[j] >= 0]
        assert bool(enough[i]) == (bool(valid[i]) and len(mates) > 4)
        if bool(enough[i]):
            torch.testing.assert_close(mean[i], x[mates].mean(0))
    number = torch.tensor([4, 1, 4, 0] * 4 + [4, 1])
    sums, count = class_sums(x, number, valid)
    torch.testing.assert_close(sums[4], x[valid & (number == 4)].sum(0))
    assert count[4] == 8 and count[7] == 0


def test_data_without_speakers_is_refused_in_one_line() -> None:
    batch = rows(3)
    batch.group = None
    config = small_config("contrast_only", tasks={"contrastive": None, "speaker_clusters": {"start_epoch": 0}})
    with pytest.raises(ValueError, match=r"task 'speaker_clusters' needs the speaker of each row.*data\.speaker"):
        fresh(config).step(batch)


def test_few_rows_of_a_speaker_are_warned_of() -> None:
    [line] = SpeakerClusters.step_warnings({"speaker_clusters/counted": 0.2})
    assert "20% of the rows" in line and "data.speaker" in line
    assert SpeakerClusters.step_warnings({"speaker_clusters/counted": 0.9}) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("clusters", 1), ("use", "both"), ("temperature", 0.0), ("start_epoch", -1), ("max_iterations", 0)],
)
def test_settings_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"tasks\.speaker_clusters\.{field}"):
        SpeakerClustersConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_ranks() -> None:
    assert_rank_parity("speaker_clusters")
