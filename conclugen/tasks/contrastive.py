"""Multi-modal contrastive loss with a masked margin, or a learned temperature, over the global batch.

For a pair of modalities (a, b) with unit vectors a_i, b_j over rows where both are present, and s the inverse
temperature:

    L(a, b) = - 1/n  sum_i [ log softmax_j (s (a_i . b_j - margin [i = j]))_i  +  log softmax_j (s (b_i . a_j - margin
    [i = j]))_i ]

Ilharco, Zhang & Baldridge 2019 (arXiv 1909.08782, equations 1 to 3) with s = 1; the pairs form a ring and are summed
(ConCluGen, arXiv 2404.10904, equations 1 and 2). With margin 0 and a learned s it is the loss of CLIP.
Similarities exist in blocks of rows only (`conclugen.blockwise`).

Shape suffixes: B rows of this rank, N rows of all ranks, P projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conclugen.fields import FREE, IDENTITY, SCHEDULABLE, choose, require
from conclugen.mates import FEWEST_MATES, remedies
from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Run, Task, check_block_rows, check_two_modalities, check_weight
from conclugen.tasks.deferred import blockwise, distributed, functional, nn, torch

if TYPE_CHECKING:
    from torch import Tensor

    from conclugen.blockwise import Compared
    from conclugen.latents import Latents

NEGATIVES = ("all", "same_group")
# What a step reports of negatives of the same group: the share of its rows that had them.
SHARE = "same_speaker_negatives"
_ALL = ("video", "audio", "text")


@dataclass(frozen=True)
class ContrastiveConfig:
    """Cross-entropy of each row among the rows of the batch, for each pair of modalities.

    Attributes:
        weight: Factor of the loss in the mean over tasks.
        margin: Taken off the similarity of the matching row.
        temperature: What similarities are divided by, or where it starts if it is learned; None: nothing (published).
        learn_temperature: Make the temperature a parameter, kept within 0.01 to 1.
        negatives: "all" rows, or those of the "same_group" (a speaker), which can't be told apart by who is speaking.
        block_rows: Rows whose similarities are in memory at a time; None: all up to 4,096 rows, then as many as suit
            the device (2^24 scores on a CPU). Like the number of workers it changes rounding only.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)
    margin: float = field(default=0.001, metadata=IDENTITY)
    temperature: float | None = field(default=None, metadata=IDENTITY)
    learn_temperature: bool = field(default=False, metadata=IDENTITY)
    negatives: str = field(default="all", metadata=IDENTITY)
    block_rows: int | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        check_weight("contrastive", self.weight)
        require(0 <= self.margin < 1, "tasks.contrastive.margin", self.margin, "0 <= margin < 1")
        if self.temperature is not None:
            t = self.temperature
            require(0.01 <= t <= 1, "tasks.contrastive.temperature", t, "0.01 <= temperature <= 1")
        elif self.learn_temperature:
            raise ValueError("tasks.contrastive.learn_temperature: needs a temperature to start from, found None")
        choose("tasks.contrastive.negatives", self.negatives, NEGATIVES)
        check_block_rows("contrastive", self.block_rows)


def ring(count: int) -> list[tuple[int, int]]:
    """Pairs of `count` modalities, each with the next and the last with the first; two modalities give one pair."""
    return [(0, 1)] if count == 2 else [(m, (m + 1) % count) for m in range(count)]


def keys_of_all(z_MBP: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[int, Tensor]:
    """The rows of all ranks (N, P), in one collective, of each modality that is the second of a pair: of two modalities
    only one travels."""
    first = min(b for _, b in pairs)  # a ring has all that follow
    z_NKP = distributed.gather(z_MBP[first:].transpose(0, 1))
    return dict(enumerate(z_NKP.unbind(1), first))


def comparisons(
    valid_B: Tensor,
    valid_N: Tensor,
    offset: int,
    group_N: Tensor | None = None,
    corpus_N: Tensor | None = None,
) -> tuple[Compared, Tensor]:
    """Which rows are compared, and which of all rows have a negative at all and so count, (N,) bool.

    With groups a row is compared with its own group, unless the batch holds fewer than FEWEST_MATES others of it or
    the row has no group (-1): then with all. With corpora "all" are those of its own corpus. A row counts if it is
    valid and has at least one other to compare with.
    """
    others_N = valid_N & (valid_N.sum() >= 2)
    if corpus_N is not None:
        of_corpus_N = torch.where(valid_N, corpus_N, -1)
        ordered_N = of_corpus_N.sort().values
        ends_N, begins_N = (torch.searchsorted(ordered_N, of_corpus_N, right=right) for right in (True, False))
        others_N = valid_N & (ends_N - begins_N >= 2)
    if group_N is None:
        return blockwise.Compared(valid_B, valid_N, offset, corpus_all=corpus_N), others_N
    grouped_N = torch.where(valid_N, group_N, -1)
    sorted_N = grouped_N.sort().values
    upper_N, lower_N = (torch.searchsorted(sorted_N, grouped_N, right=right) for right in (True, False))
    within_N = (grouped_N >= 0) & (upper_N - lower_N > FEWEST_MATES)
    counted_N = valid_N & within_N | others_N
    return blockwise.Compared(valid_B, valid_N, offset, grouped_N, within_N, corpus_N), counted_N


def pair_losses(
    a_BP: Tensor,
    b_BP: Tensor,
    row_B: Tensor,
    column_B: Tensor,
    counted_B: Tensor,
    margin: float,
    scale: Tensor | float,
) -> Tensor:
    """Both cross-entropies of a pair of modalities of each row, (B,); 0 where it does not count. Unit vectors, and the
    log-sums over their negatives by row and by column.

    With x the log-sum over the negatives and p the positive's logit, a cross-entropy is log(1 + exp(x - p)).
    """
    positive_B = ((a_BP * b_BP).sum(1) - margin) * scale
    losses_B = blockwise.softplus(row_B - positive_B) + blockwise.softplus(column_B - positive_B)
    return torch.where(counted_B, losses_B, 0)


class Contrastive(Task):
    """The loss over all pairs of the ring; owns the temperature where it is learned."""

    name, title = "contrastive", "multi-modal contrastive loss"
    Config = ContrastiveConfig
    order = 10
    similarities = True
    negatives = "corpus"
    absent_as_null = True
    recipes = {"improved": ContrastiveConfig(margin=0.0, temperature=0.3, negatives="same_group")}
    presets = {
        "conclugen": _ALL,
        "contrast_cluster": _ALL,
        "contrast_generative": _ALL,
        "contrast_only": _ALL,
        "contrast_only_video_audio": ("video", "audio"),
        "contrast_only_video_text": ("video", "text"),
    }
    searched = (
        Searched(
            "temperature",
            "tasks.contrastive.temperature",
            Range(0.05, 1.0),
            Range(0.05, 1.0),
            "Temperature of the contrastive task in the improved recipe; the published one has none.",
            recipes=("improved",),
        ),
    )
    variants = {
        "same group, learned temperature": {
            "negatives": "same_group",
            "temperature": 0.3,
            "learn_temperature": True,
        },
        "blocks of two rows": {"block_rows": 2, "temperature": 0.3},
        "wide margin": {"margin": 0.2},
    }

    @classmethod
    def inputs(cls, config: ContrastiveConfig, modalities: tuple[str, ...]) -> Inputs:
        check_two_modalities("contrastive", modalities)
        return Inputs(projection=True, representation=False, groups=config.negatives == "same_group")

    @classmethod
    def flops(cls, config: ContrastiveConfig, run: Run, widths: Mapping[str, int]) -> int:
        return len(ring(len(run.modalities))) * 6 * run.global_batch**2 * run.model.projection_dim

    @classmethod
    def build(cls, config: ContrastiveConfig, run: Run, widths: Mapping[str, int]) -> Contrastive:
        within = bool(run.corpora.names) and run.corpora.negatives == "within"
        return cls(config, tf32=run.precision == "bfloat16", within_corpus=within)

    def __init__(self, config: ContrastiveConfig, tf32: bool = False, within_corpus: bool = False) -> None:
        """tf32: similarities on a GPU are multiplied out in TensorFloat-32. within_corpus: no negative is of another
        corpus."""
        super().__init__(config)
        self.within_corpus = within_corpus
        self.sweep = blockwise.Sweep(config.block_rows, tf32)
        self._share: Tensor | None = None
        self.log_scale = None
        if config.temperature is not None and config.learn_temperature:
            self.log_scale = nn.Parameter(torch.tensor(config.temperature).double().log().neg().float())

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        self.sweep = replace(self.sweep, compiled=True)

    def metrics(self) -> dict[str, Tensor]:
        """The temperature, where it is learned; the share of compared rows whose negatives were of their own group,
        where they are to be, mean over pairs of modalities."""
        scale = self.scale()
        metrics = {"temperature": 1 / scale.detach()} if isinstance(scale, torch.Tensor) else {}
        return metrics if self._share is None else metrics | {SHARE: self._share}

    @classmethod
    def step_warnings(cls, metrics: Mapping[str, float]) -> list[str]:
        """Of too few speakers in a batch: negatives of all speakers can be recognised by voice and face."""
        share, remedy = metrics.get(SHARE, 1.0), remedies(metrics)
        if not share < 0.5 or not remedy:
            return []
        return [
            f"contrastive: {share:.0%} of the rows of a batch found negatives of the same speaker (at least "
            f"{FEWEST_MATES} others of it with the same modalities); the others got negatives of all speakers, "
            f"for which recognising the speaker suffices. {remedy}"
        ]

    def scale(self) -> Tensor | float:
        """Inverse temperature, 1 to 100."""
        if self.log_scale is not None:
            return self.log_scale.exp().clamp(1.0, 100.0)
        return 1.0 if self.config.temperature is None else 1.0 / self.config.temperature

    def forward(self, latents: Latents) -> Tensor:
        assert latents.projections is not None
        presence, scale = latents.presence, self.scale()
        z_MBP = functional.normalize(latents.projections, dim=2)
        pairs, own = ring(len(latents.modalities)), []
        key_NP = keys_of_all(z_MBP, pairs)
        counted, rows, columns = [], [], []
        for a, b in pairs:
            compared, counted_N = comparisons(
                presence.local[a] & presence.local[b],
                presence.all[a] & presence.all[b],
                presence.offset,
                presence.all_group if self.config.negatives == "same_group" else None,
                presence.all_corpus if self.within_corpus else None,
            )
            if compared.within_all is not None:
                own.append((compared.within_all & counted_N).sum() / counted_N.sum().clamp(min=1))
            row_B, column_N = blockwise.own_log_sums(z_MBP[a], key_NP[b], scale, compared, self.sweep)
            rows.append(row_B)
            columns.append(column_N)
            counted.append(counted_N)
        shares = []
        offset, local = presence.offset, z_MBP.shape[1]
        merged = blockwise.merge_columns(columns)
        for (a, b), row_B, column_B, counted_N in zip(pairs, rows, merged, counted, strict=True):
            counted_B = counted_N[offset : offset + local]
            losses_B = pair_losses(z_MBP[a], z_MBP[b], row_B, column_B, counted_B, self.config.margin, scale)
            self.note(f"{a}-{b}", losses_B, counted_B, presence)
            shares.append(losses_B.sum() / counted_N.sum().clamp(min=1))
        self._share = torch.stack(own).mean() if own else None
        return torch.stack(shares).sum()
