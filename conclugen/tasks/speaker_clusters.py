"""Clusters within each speaker: what a speaker's rows differ in, as targets or as positives of a contrast.

With f_i the mean of row i's unit projections over its modalities and S(i) the rows of its speaker in the global batch,

    u_i = (f_i - mean_S(i) f) / |f_i - mean_S(i) f|

is what the row has beyond its speaker. Cosine k-means clusters the u of the batch; y_i is the cluster of row i. Then
either the clusters are predicted, with unit centroids c_k and a temperature T,

    "target"        L = - 1/n  sum_i  log softmax_k (u_i . c_k / T)  at y_i

or they say which rows belong together: with P(i) the rows of S(i) in the cluster of i, itself among them,

    "positives"     L(a, b) = - 1/n  sum_i  mean over p in P(i) of  log [ exp(a_i . b_p / T) / sum_j exp(a_i . b_j / T)
                    ]  +  the same from b to a,    j over S(i),

over the pairs (a, b) of the ring of modalities: where each row is a cluster of its own, the contrastive loss with
negatives of the same speaker. That emotions are clusters within a speaker, whose rows make positives and whose other
rows negatives, is of Ulgen, Du, Busso & Sisman 2024 (arXiv 2401.11017), who cluster each speaker's frozen speaker
embeddings by itself; the form with several positives is of Khosla et al. 2020 (arXiv 2004.11362, equation 2). Ours: the
clusters are of what is being learned, centred by speaker, and shared by all speakers. A row counts whose speaker has at
least 4 others in the batch.

Shape suffixes: M modalities, B rows of this rank, N rows of all ranks, G rows of the global batch, P projection, K
clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conclugen.fields import IDENTITY, SCHEDULABLE, choose, require
from conclugen.mates import FEWEST_MATES, remedies
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, check_two_modalities, check_weight
from conclugen.tasks.clustering import assignment_losses, joint_features
from conclugen.tasks.contrastive import comparisons, ring
from conclugen.tasks.deferred import blockwise, distributed, functional, kmeans, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents, Presence

TARGET, POSITIVES = "target", "positives"
_COUNTED = "speaker_clusters/counted"


@dataclass(frozen=True)
class SpeakerClustersConfig:
    """Clusters of what rows have beyond their speaker, told or taken as positives.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        clusters: Number of clusters K, the same ones for all speakers.
        use: "positives": rows of a speaker in one cluster belong together, in a contrast of modalities; "target": each
            row's cluster is predicted from it.
        temperature: What similarities are divided by.
        start_epoch: First epoch (0-based) in which the task counts.
        max_iterations: Iterations of k-means at most, from the last step's centroids.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    clusters: int = field(default=8, metadata=IDENTITY)
    use: str = field(default=POSITIVES, metadata=IDENTITY)
    temperature: float = field(default=0.3, metadata=IDENTITY)
    start_epoch: int = field(default=3, metadata=IDENTITY)
    max_iterations: int = field(default=10, metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("speaker_clusters", self.weight)
        require(self.clusters >= 2, "tasks.speaker_clusters.clusters", self.clusters, "2 or more")
        choose("tasks.speaker_clusters.use", self.use, (POSITIVES, TARGET))
        place = "tasks.speaker_clusters.temperature"
        require(0.01 <= self.temperature <= 1, place, self.temperature, "0.01 <= temperature <= 1")
        require(self.start_epoch >= 0, "tasks.speaker_clusters.start_epoch", self.start_epoch, "0 or more")
        require(self.max_iterations >= 1, "tasks.speaker_clusters.max_iterations", self.max_iterations, "1 or more")


def centred(f_NP: Tensor, valid_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, P) of the valid rows of each row's group, without gradient, and which rows have enough of them (N,)."""
    number_N = first_of(torch.where(valid_N & (group_N >= 0), group_N, -1))
    among_N = valid_N & (group_N >= 0)
    sums_NP, count_N = class_sums(f_NP.detach(), number_N, among_N)
    return sums_NP[number_N] / count_N[number_N].clamp(min=1).unsqueeze(1), among_N & (count_N[number_N] > FEWEST_MATES)


def first_of(key_N: Tensor) -> Tensor:
    """A number (N,) from 0 to N - 1 for each row, equal where the keys are: how many keys are smaller."""
    return torch.searchsorted(key_N.sort().values, key_N)


def class_sums(x_NP: Tensor, number_N: Tensor, valid_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (N, P) and count (N,) of the valid rows of each number; differentiable in `x`."""
    # Unlike `index_add`, this sums in a fixed order on a GPU as well, and so does its gradient.
    zero_NP, zero_N = torch.zeros_like(x_NP), torch.zeros_like(x_NP[:, 0])
    sums_NP = zero_NP.index_put((number_N,), torch.where(valid_N.unsqueeze(1), x_NP, 0), accumulate=True)
    return sums_NP, zero_N.index_put((number_N,), valid_N.to(x_NP.dtype), accumulate=True)


class SpeakerClusters(Task):
    """Owns the centroids, which are the same on every rank."""

    name, title = "speaker_clusters", "clusters within each speaker"
    Config = SpeakerClustersConfig
    order = 100
    similarities = True
    searched = (
        Searched(
            "speaker_clusters",
            "tasks.speaker_clusters.clusters",
            (4, 8, 16, 32),
            (4, 8, 16),
            "K of the speaker_clusters task.",
        ),
        Searched(
            "speaker_clusters_temperature",
            "tasks.speaker_clusters.temperature",
            Range(0.05, 1.0),
            Range(0.1, 1.0),
            "Temperature of the speaker_clusters task.",
        ),
    )
    tiny = {"clusters": 2, "start_epoch": 0}
    variants = {"told": {"use": TARGET, "temperature": 0.1}}

    centroids: Tensor

    @classmethod
    def inputs(cls, config: SpeakerClustersConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("speaker_clusters", modalities)
        return Inputs(projection=True, representation=False, groups=True, needs_groups=True)

    @classmethod
    def begins(cls, config: SpeakerClustersConfig) -> int:
        return config.start_epoch

    @classmethod
    def within(cls, config: SpeakerClustersConfig, epochs: int) -> SpeakerClustersConfig:
        return replace(config, start_epoch=0) if config.start_epoch >= epochs else config

    @classmethod
    def flops(cls, config: SpeakerClustersConfig, run: Run, widths: Mapping[str, int]) -> int:
        rows, P = run.global_batch, run.model.projection_dim
        assigned = (config.max_iterations * 4 + (4 if config.use == TARGET else 0)) * rows * config.clusters * P
        return assigned + (len(ring(len(run.modalities))) * 6 * rows**2 * P if config.use == POSITIVES else 0)

    @classmethod
    def build(cls, config: SpeakerClustersConfig, run: Run, widths: Mapping[str, int]) -> SpeakerClusters:
        return cls(config, run)

    def __init__(self, config: SpeakerClustersConfig, run: Run) -> None:
        super().__init__(config)
        self.seed, self.global_batch = run.seed, run.global_batch
        self.sweep = blockwise.Sweep(None, run.precision == "bfloat16")
        self.register_buffer("centroids", torch.zeros(config.clusters, run.model.projection_dim))
        self._found: dict[str, Tensor] = {}

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        self.sweep = replace(self.sweep, compiled=True)

    def metrics(self) -> dict[str, Tensor]:
        """The share of the rows that count, and of the clusters that have a row."""
        return self._found

    @classmethod
    def step_warnings(cls, metrics: Mapping[str, float]) -> list[str]:
        share, remedy = metrics.get(_COUNTED, 1.0), remedies(metrics)
        if not share < 0.5 or not remedy:
            return []
        return [
            f"speaker_clusters: {share:.0%} of the rows of a batch have at least {FEWEST_MATES} others of their "
            f"speaker; the others are left out. {remedy}"
        ]

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        presence = latents.presence
        if not self.active(latents.epoch):
            return (latents.projections * 0).nan_to_num().sum()
        assert presence.all_group is not None
        z_MBP = functional.normalize(latents.projections, dim=2)
        z_MNP = distributed.gather(z_MBP.transpose(0, 1)).transpose(0, 1)
        valid_N, own = presence.all.any(0), slice(presence.offset, presence.offset + z_MBP.shape[1])
        with torch.no_grad():
            f_NP = joint_features(z_MNP, presence.all)
            mean_NP, counted_N = centred(f_NP, valid_N, presence.all_group)
            label_N = self._assign(functional.normalize(f_NP - mean_NP, dim=1), counted_N, latents.step)
        self._found |= {_COUNTED: counted_N.sum() / valid_N.sum().clamp(min=1)}
        if self.config.use == TARGET:
            f_BP = joint_features(z_MBP, presence.local) - mean_NP[own]
            scores_BK = functional.normalize(f_BP, dim=1) @ functional.normalize(self.centroids, dim=1).T
            losses_B = assignment_losses(scores_BK, label_N[own], counted_N[own], 0.0, self.config.temperature)
            return losses_B.sum() / counted_N.sum().clamp(min=1)
        shares = [
            self._between(z_MBP, z_MNP, pair, label_N, counted_N, presence) for pair in ring(len(latents.modalities))
        ]
        return torch.stack(shares).sum()

    def _between(
        self,
        z_MBP: Tensor,
        z_MNP: Tensor,
        pair: tuple[int, int],
        label_N: Tensor,
        counted_N: Tensor,
        presence: Presence,
    ) -> Tensor:
        """This rank's share of the contrast between two modalities."""
        (a, b), scale = pair, 1 / self.config.temperature
        both_B, both_N = (mask[a] & mask[b] for mask in (presence.local, presence.all))
        compared, _ = comparisons(both_B, both_N, presence.offset, presence.all_group)
        assert compared.group_all is not None and compared.within_all is not None
        counted_N = counted_N & compared.within_all & both_N
        counted_B, own = compared.local(counted_N), slice(presence.offset, presence.offset + z_MBP.shape[1])
        number_N = first_of(first_of(compared.group_all) * self.config.clusters + label_N)
        losses = []
        sums = blockwise.log_sums(z_MBP[a], z_MNP[b], scale, compared, self.sweep)
        for other_B, (anchor, mate) in zip(sums, ((a, b), (b, a)), strict=True):
            positive_B = (z_MBP[anchor] * z_MBP[mate]).sum(1) * scale
            class_NP, count_N = class_sums(z_MNP[mate], number_N, counted_N)
            mean_BP = class_NP[number_N[own]] / count_N[number_N[own]].clamp(min=1).unsqueeze(1)
            losses.append(torch.logaddexp(other_B, positive_B) - (z_MBP[anchor] * mean_BP).sum(1) * scale)
        total = torch.where(counted_B, losses[0] + losses[1], 0).sum()
        return total / counted_N.sum().clamp(min=1)

    def _assign(self, u_NP: Tensor, counted_N: Tensor, step: int) -> Tensor:
        """The cluster of each row (N,), from k-means over the global batch; keeps the centroids for the next step."""
        u_GP, counted_G = u_NP[: self.global_batch], counted_N[: self.global_batch]
        label_G = torch.zeros(len(u_GP), dtype=torch.int64, device=u_GP.device)

        def clustered() -> tuple[Tensor, ...]:
            drawn_KP = kmeans.draw_rows(u_GP, counted_G, self.config.clusters, self.seed, step)
            start_KP = torch.where(self.centroids.any(), self.centroids, drawn_KP)
            found = kmeans.cosine_kmeans(
                u_GP, counted_G, start_KP, reseed_KC=drawn_KP, max_iterations=self.config.max_iterations
            )
            return found.centroids.contiguous(), found.labels.contiguous()

        centroids, label_G = distributed.agreed(clustered, (torch.zeros_like(self.centroids), label_G))
        self.centroids.copy_(centroids)
        clusters_K = torch.arange(self.config.clusters, device=label_G.device)
        used_K = ((label_G.unsqueeze(1) == clusters_K) & counted_G.unsqueeze(1)).any(0)
        self._found = {"speaker_clusters/used": used_K.to(u_GP.dtype).mean()}
        return functional.pad(label_G, (0, len(u_NP) - len(label_G)))
