"""Multi-modal clustering: features are drawn to the centroid that k-means assigned to their row.

With f_i the cluster features of row i (their mean over present modalities, `joint`, or each modality's own,
`individual`), c_k the centroids and y_i the assignment, both without gradient, and s a similarity:

    L = - 1/n  sum_i  log softmax_k (s(f_i, c_k) - margin [k = y_i])  at y_i          (arXiv 2404.10904, equation 3)

`individual` sums over modalities and uses the joint assignment. The assignment comes from cosine k-means over a queue
of earlier batches and this batch, in global row order, so that every rank and every world size sees the same pool.

Shape suffixes: M modalities, B rows of this rank, G rows of the global batch, Q rows of the queue, K clusters and
cluster features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conclugen.fields import IDENTITY, SCHEDULABLE, choose, require
from conclugen.search_space import Searched
from conclugen.tasks.base import Inputs, Run, Task, check_weight
from conclugen.tasks.deferred import distributed, functional, heads, kmeans, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.latents import Latents, Presence

_ALL = ("video", "audio", "text")
_FEWEST_USED = 0.25  # share of clusters with a row below which most of them stand for nothing


@dataclass(frozen=True)
class ClusteringConfig:
    """Cross-entropy of each row's cluster scores against the cluster that k-means gave it.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        clusters: Number of clusters K.
        queue_batches: Earlier global batches among whose rows k-means clusters.
        start_epoch: First epoch (0-based) in which the task counts.
        mode: "joint": the mean over modalities is scored; "individual": each modality, and the losses are summed.
        margin: Taken off the score of the assigned cluster.
        score: "dot" (published), or "cosine" over `temperature`.
        temperature: What scores are divided by.
        kmeans_start: From "random" rows at each step (published; cluster numbers permute, an empty cluster becomes the
            zero vector), or "warm" from the last centroids (empty clusters are re-seeded from drawn rows).
        max_iterations: Iterations of k-means at most.
        queue: "per_epoch" (published: emptied at each epoch's start, used once full), or "rolling" (never emptied, used
            as far as filled).
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    clusters: int = field(default=32, metadata=IDENTITY)
    queue_batches: int = field(default=8, metadata=IDENTITY)
    start_epoch: int = field(default=3, metadata=IDENTITY)
    mode: str = field(default="joint", metadata=IDENTITY)
    margin: float = field(default=0.001, metadata=IDENTITY)
    score: str = field(default="dot", metadata=IDENTITY)
    temperature: float = field(default=1.0, metadata=IDENTITY)
    kmeans_start: str = field(default="random", metadata=IDENTITY)
    max_iterations: int = field(default=100, metadata=IDENTITY)
    queue: str = field(default="per_epoch", metadata=IDENTITY)

    def __post_init__(self) -> None:
        check_weight("clustering", self.weight)
        require(self.clusters >= 2, "tasks.clustering.clusters", self.clusters, "2 or more")
        require(self.queue_batches >= 0, "tasks.clustering.queue_batches", self.queue_batches, "0 or more")
        require(self.start_epoch >= 0, "tasks.clustering.start_epoch", self.start_epoch, "0 or more")
        choose("tasks.clustering.mode", self.mode, ("joint", "individual"))
        require(0 <= self.margin < 1, "tasks.clustering.margin", self.margin, "0 <= margin < 1")
        choose("tasks.clustering.score", self.score, ("dot", "cosine"))
        require(0 < self.temperature <= 1, "tasks.clustering.temperature", self.temperature, "0 < temperature <= 1")
        choose("tasks.clustering.kmeans_start", self.kmeans_start, ("random", "warm"))
        require(self.max_iterations >= 1, "tasks.clustering.max_iterations", self.max_iterations, "1 or more")
        choose("tasks.clustering.queue", self.queue, ("per_epoch", "rolling"))


def joint_features(features_MBK: Tensor, present_MB: Tensor) -> Tensor:
    """Mean over the present modalities, (B, K); zero where none is present."""
    mask_MB1 = present_MB.unsqueeze(2).to(features_MBK.dtype)
    return (features_MBK * mask_MB1).sum(0) / mask_MB1.sum(0).clamp(min=1)


def assignment_losses(
    scores_BK: Tensor, label_B: Tensor, valid_B: Tensor, margin: float, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of (score - margin at the label) / temperature against the label, (B,); 0 in rows that are not
    valid."""
    own = (label_B.unsqueeze(1) == torch.arange(scores_BK.shape[1], device=label_B.device)).to(scores_BK.dtype)
    losses_B = functional.cross_entropy((scores_BK - margin * own) / temperature, label_B, reduction="none")
    return torch.where(valid_B, losses_B, 0)


class Clustering(Task):
    """Owns the cluster head, the centroids and the queue; the last two are the same on every rank."""

    name, title = "clustering", "multi-modal clustering"
    Config = ClusteringConfig
    order = 20
    absent_as_null = True
    recipes = {
        "improved": ClusteringConfig(
            weight=0.2,
            margin=0.0,
            score="cosine",
            temperature=0.1,
            kmeans_start="warm",
            max_iterations=10,
            queue="rolling",
        )
    }
    presets = {"conclugen": _ALL, "contrast_cluster": _ALL}
    searched = (
        Searched(
            "clusters",
            "tasks.clustering.clusters",
            (2, 4, 8, 32, 64, 128),
            (8, 16, 32),
            "K, where the clustering task is active.",
            ablation=32,
        ),
        Searched(
            "queue_batches",
            "tasks.clustering.queue_batches",
            (2, 4, 8, 16, 32, 64, 128),
            (0, 2, 4),
            "Earlier batches among which k-means clusters.",
            ablation=2,
        ),
        Searched(
            "start_epoch",
            "tasks.clustering.start_epoch",
            (0, 3, 6, 9, 12, 15),
            (0, 2),
            "First epoch of the clustering task; below `epochs`.",
            begins=True,
        ),
        Searched(
            "cluster_mode",
            "tasks.clustering.mode",
            ("joint", "individual"),
            ("joint",),
            "`joint` or `individual` clustering of modalities.",
        ),
    )
    tiny = {"clusters": 4, "queue_batches": 2, "start_epoch": 0}
    measured = ("clusters/used",)
    variants = {
        "individual": {"mode": "individual"},
        "warm, rolling queue": {"kmeans_start": "warm", "queue": "rolling", "score": "cosine", "temperature": 0.1},
        "no queue": {"queue_batches": 0},
    }

    centroids: Tensor
    queue: Tensor
    queue_valid: Tensor
    queue_corpus: Tensor
    assigned: Tensor

    @classmethod
    def inputs(cls, config: ClusteringConfig, modalities: tuple[str, ...]) -> Inputs:
        return Inputs(projection=True, representation=False)

    @classmethod
    def begins(cls, config: ClusteringConfig) -> int:
        return config.start_epoch

    @classmethod
    def within(cls, config: ClusteringConfig, epochs: int) -> ClusteringConfig:
        return replace(config, start_epoch=0) if config.start_epoch >= epochs else config

    @classmethod
    def flops(cls, config: ClusteringConfig, run: Run, widths: Mapping[str, int]) -> int:
        K, P, modalities = config.clusters, run.model.projection_dim, len(run.modalities)
        scored = 1 if config.mode == "joint" else modalities
        return run.global_batch * (modalities * 6 * P * K + scored * 4 * K * K)

    @classmethod
    def build(cls, config: ClusteringConfig, run: Run, widths: Mapping[str, int]) -> Clustering:
        apart = len(run.corpora.names) if run.corpora.clusters == "within" else 0
        return cls(config, run.model.projection_dim, run.global_batch, run.seed, apart)

    def __init__(
        self, config: ClusteringConfig, projection_dim: int, global_batch: int, seed: int, apart: int = 0
    ) -> None:
        """apart: corpora whose rows are clustered by themselves, K clusters each; 0: all rows together."""
        super().__init__(config)
        self.apart = apart
        self.global_batch, self.seed = global_batch, seed
        K, rows = config.clusters, config.queue_batches * global_batch
        self.head = heads.Linear(projection_dim, K, bias=False)
        self.register_buffer("centroids", torch.zeros(max(1, apart) * K, K))
        self.register_buffer("queue", torch.zeros(rows, K))
        self.register_buffer("queue_valid", torch.zeros(rows, dtype=torch.bool))
        if apart:
            self.register_buffer("queue_corpus", torch.full((rows,), -1))
        self.register_buffer("assigned", torch.zeros(max(1, apart) * K), persistent=False)
        self.queued = 0
        self.started = False

    def begin_epoch(self) -> None:
        if self.config.queue == "per_epoch":
            self.queue.zero_()
            self.queue_valid.zero_()
            self.queued = 0

    def metrics(self) -> dict[str, Tensor]:
        """How many clusters the batch's rows are in, and how evenly."""
        share = self.assigned / self.assigned.sum().clamp(min=1)
        return {
            "clusters/used": (share > 0).to(share.dtype).mean(),
            "clusters/perplexity": torch.special.entr(share).sum().exp(),
        }

    def measures(self) -> dict[str, float]:
        if not bool(self.assigned.any()):
            return {}
        return {"clusters/used": float((self.assigned > 0).double().mean())}

    @classmethod
    def warnings(cls, measures: Mapping[str, float]) -> list[str]:
        used = measures.get("clusters/used", 1.0)
        if used >= _FEWEST_USED:
            return []
        return [
            f"only {used:.0%} of the clusters have a row. Likely too many clusters for the data, or clustering began "
            "too early; use fewer, a later start_epoch, or kmeans_start='warm', which re-seeds empty ones"
        ]

    def saved(self) -> dict[str, Any]:
        return {"queued": self.queued, "started": self.started}

    def check_saved(self, saved: Any) -> None:
        known = isinstance(saved, Mapping) and set(saved) == {"queued", "started"}
        if not known or not isinstance(saved["started"], bool):
            raise ValueError(
                f"saved state: clustering is {saved!r}, expected queued (a number) and started (true or false)"
            )
        queued, most = saved["queued"], self.config.queue_batches
        if type(queued) is not int or not 0 <= queued <= most:
            raise ValueError(f"saved state: clustering.queued is {queued!r}, expected an integer from 0 to {most}")

    def restore(self, saved: Any) -> None:
        self.queued, self.started = saved["queued"], saved["started"]

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        features_MBK = self.head(latents.projections)
        if not self.active(latents.epoch):
            return (features_MBK * 0).nan_to_num().sum()
        presence = latents.presence
        joint_BK = joint_features(features_MBK, presence.local)
        with torch.no_grad():
            label_B = self._assign(joint_BK.detach(), presence, latents.step)
        if self.config.mode == "joint":
            return self._share("joint", joint_BK, label_B, presence.local.any(0), presence.all.any(0), presence)
        shares = [
            self._share(str(m), features_BK, label_B, presence.local[m], presence.all[m], presence)
            for m, features_BK in enumerate(features_MBK)
        ]
        return torch.stack(shares).sum()

    def _share(
        self, term: str, features_BK: Tensor, label_B: Tensor, valid_B: Tensor, valid_N: Tensor, presence: Presence
    ) -> Tensor:
        centroids = self.centroids
        if self.config.score == "cosine":
            features_BK, centroids = functional.normalize(features_BK, dim=1), functional.normalize(centroids, dim=1)
        scores_BK = features_BK @ centroids.T
        if self.apart:
            assert presence.corpus is not None
            own_B1K = presence.corpus.clamp(min=0).view(-1, 1, 1).expand(-1, 1, self.config.clusters)
            scores_BK = scores_BK.view(-1, self.apart, self.config.clusters).gather(1, own_B1K).squeeze(1)
        losses_B = assignment_losses(scores_BK, label_B, valid_B, self.config.margin, self.config.temperature)
        count, total = valid_N.sum(), losses_B.sum()
        self.note(term, losses_B, valid_B, presence)
        return torch.where(count >= 2, total / count.clamp(min=1), total * 0)

    def _assign(self, joint_BK: Tensor, presence: Presence, step: int) -> Tensor:
        """Cluster queue and batch, keep centroids and queue for the next step; labels of this rank's rows (B,), where
        corpora are clustered apart among the clusters of the row's own."""
        valid_N, offset = presence.all.any(0), presence.offset
        batch_GK = distributed.gather(joint_BK)[: self.global_batch]
        valid_G = valid_N[: self.global_batch]
        corpus_G = None
        if self.apart:
            assert presence.all_corpus is not None
            corpus_G = presence.all_corpus[: self.global_batch]
        like = torch.zeros_like(self.centroids), torch.zeros(len(batch_GK), dtype=torch.int64, device=joint_BK.device)
        centroids, label_G = distributed.agreed(lambda: self._cluster(batch_GK, valid_G, corpus_G, step), like)
        self.centroids.copy_(centroids)
        self.started = True
        number_G = label_G if corpus_G is None else label_G + corpus_G.clamp(min=0) * self.config.clusters
        of_cluster_GK = number_G.unsqueeze(1) == torch.arange(len(self.assigned), device=label_G.device)
        self.assigned.copy_((of_cluster_GK & valid_G.unsqueeze(1)).sum(0))
        self._push(batch_GK, valid_G, corpus_G)
        rows = len(valid_N)
        return functional.pad(label_G, (0, rows - len(label_G)))[offset : offset + len(joint_BK)]

    def _cluster(self, batch_GK: Tensor, valid_G: Tensor, corpus_G: Tensor | None, step: int) -> tuple[Tensor, Tensor]:
        """Centroids, of one corpus after another where they are clustered apart, and the batch's labels."""
        if corpus_G is None:
            return self._cluster_some(batch_GK, valid_G, self.queue_valid, self.centroids, step)
        found, label_G = [], torch.zeros(len(batch_GK), dtype=torch.int64, device=batch_GK.device)
        for corpus, centroids in enumerate(self.centroids.chunk(self.apart)):
            mine_G = corpus_G == corpus
            queued = self.queue_valid & (self.queue_corpus == corpus)
            own, own_label_G = self._cluster_some(batch_GK, valid_G & mine_G, queued, centroids, step)
            found.append(own)
            label_G = torch.where(mine_G, own_label_G, label_G)
        return torch.cat(found), label_G

    def _cluster_some(
        self, batch_GK: Tensor, valid_G: Tensor, queued: Tensor, last_KK: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        full = self.queued >= self.config.queue_batches
        if full or self.config.queue == "rolling":
            pool, valid = torch.cat([self.queue, batch_GK]), torch.cat([queued, valid_G])
        else:
            pool, valid = batch_GK, valid_G
        drawn_KK = kmeans.draw_rows(pool, valid, self.config.clusters, self.seed, step)
        warm = self.config.kmeans_start == "warm"
        result = kmeans.cosine_kmeans(
            pool,
            valid,
            last_KK.clone() if warm and self.started else drawn_KK,
            reseed_KC=drawn_KK if warm else None,
            max_iterations=self.config.max_iterations,
        )
        return result.centroids.contiguous(), result.labels[-len(batch_GK) :].contiguous()

    def _push(self, batch_GK: Tensor, valid_G: Tensor, corpus_G: Tensor | None) -> None:
        """Put the batch in front of the queue: the newest rows come first."""
        keep = max(0, len(self.queue) - len(batch_GK))
        if self.config.queue_batches:
            self.queue.copy_(torch.cat([batch_GK, self.queue[:keep]]))
            self.queue_valid.copy_(torch.cat([valid_G, self.queue_valid[:keep]]))
            if corpus_G is not None:
                self.queue_corpus.copy_(torch.cat([corpus_G, self.queue_corpus[:keep]]))
        self.queued = min(self.queued + 1, self.config.queue_batches)
