"""Is the representation alive? Measures of collapse, and warnings that name the likely cause and what to do."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def effective_rank(z_BR: Tensor) -> Tensor:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1): exp of the entropy of the normalised singular values.

    Between 1 (all rows on one line) and min(B, R); 0 for all zeros. Not centred, as published.
    """
    values = torch.linalg.svdvals(z_BR.double())
    p = values / values.sum().clamp(min=torch.finfo(torch.float64).tiny) + 1e-7
    p = torch.where(values.sum() > 0, p, 0)
    return torch.where(values.sum() > 0, torch.special.entr(p).sum().exp(), 0)


def cluster_usage(label_B: Tensor, clusters: int) -> dict[str, Tensor]:
    """used: share of the clusters that have a row, 0 to 1; perplexity: exp of the entropy of their shares, 1 to
    `clusters`."""
    count = torch.bincount(label_B, minlength=clusters).double()
    share = count / count.sum().clamp(min=1)
    return {"used": (count > 0).double().mean(), "perplexity": torch.special.entr(share).sum().exp()}


def retrieval(
    a_BP: Tensor, b_BP: Tensor, present_B: Tensor | None = None, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, Tensor]:
    """recall@k, averaged over both directions: is row i of the other modality among the k most similar by cosine?

    Ties count against the model (equal similarities rank before the match), so that a collapsed one scores low, not
    high.
    """
    if present_B is not None:
        a_BP, b_BP = a_BP[present_B], b_BP[present_B]
    if len(a_BP) == 0:
        return {f"recall@{k}": torch.zeros((), dtype=torch.float64) for k in ks}
    similarity = functional.normalize(a_BP.double(), dim=1) @ functional.normalize(b_BP.double(), dim=1).T
    own = similarity.diagonal()
    rank_ab = (similarity >= own.unsqueeze(1)).sum(1) - 1
    rank_ba = (similarity >= own.unsqueeze(0)).sum(0) - 1
    return {f"recall@{k}": ((rank_ab < k).double().mean() + (rank_ba < k).double().mean()) / 2 for k in ks}


def recall_interval(recall: float, rows: int) -> tuple[float, float]:
    """95 % interval of a share of so many rows (Wilson 1927, equation 9)."""
    z = 1.959963984540054
    middle = (recall + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(recall * (1 - recall) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def no_better_than_chance(recall: float, rows: int, k: int) -> bool:
    """Whether recall@k on so many rows shows that matches are found no better than by chance, k / rows: its interval
    holds chance, and is short enough to leave out twice that. Fewer than 4 k rows show nothing."""
    chance = k / rows
    low, high = recall_interval(recall, rows)
    return rows >= 4 * k and low <= chance and high < 2 * chance


def alignment(a_BP: Tensor, b_BP: Tensor) -> Tensor:
    """Mean squared distance of matching unit vectors, 0 to 4 (Wang & Isola 2020, arXiv 2005.10242, equation 4)."""
    return (functional.normalize(a_BP, dim=1) - functional.normalize(b_BP, dim=1)).square().sum(1).mean()


def uniformity(z_BP: Tensor) -> Tensor:
    """log of the mean Gaussian potential of pairs of unit vectors, t = 2; lower is more uniform, 0 is one point
    (equation 5)."""
    return torch.pdist(functional.normalize(z_BP, dim=1)).square().mul(-2).exp().mean().log()


def report(
    representations: Mapping[str, Tensor], projections: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> dict[str, float]:
    """All measures on held-out rows, by name. representations (B, R) and projections (B, P) by modality, present (B,)
    bool.

    Names: effective_rank/<m>, uniformity/<m>, and for each pair recall@k/<a>-<b>, alignment/<a>-<b>.
    """
    result: dict[str, float] = {}
    for m, r in representations.items():
        rows = r[present[m]]
        if len(rows) >= 2:
            result[f"effective_rank/{m}"] = float(effective_rank(rows))
    names = list(projections)
    for i, a in enumerate(names):
        if int(present[a].sum()) >= 2:
            result[f"uniformity/{a}"] = float(uniformity(projections[a][present[a]]))
        for b in names[i + 1 :]:
            both = present[a] & present[b]
            if int(both.sum()) >= 2:
                result[f"alignment/{a}-{b}"] = float(alignment(projections[a][both], projections[b][both]))
                for name, value in retrieval(projections[a], projections[b], both).items():
                    result[f"{name}/{a}-{b}"] = float(value)
    return result


@dataclass(frozen=True)
class Thresholds:
    """Below these something has collapsed. min_rank: effective rank; max_uniformity: close to 0 means all
    rows in one point. Retrieval is tested against chance: `no_better_than_chance`."""

    min_rank: float = 3.0
    max_uniformity: float = -0.1


def warnings(
    measures: Mapping[str, float], present: Mapping[str, Tensor], thresholds: Thresholds | None = None
) -> list[str]:
    """One sentence for each sign of collapse in `measures` (of `report`; tasks have their own, `Task.warnings`): what
    was found, the likely cause, the remedy. present: modality -> (B,) bool, as `report` was given it."""
    limit = thresholds or Thresholds()
    found = []
    for name, value in measures.items():
        kind, _, where = name.partition("/")
        if kind == "effective_rank" and value < limit.min_rank:
            found.append(
                f"effective rank of {where} is {value:.1f}: its representation has collapsed to a few directions. "
                "Likely the learning rate is too high or dead ReLUs end the head; lower lr, or "
                "set model.representation_activation='none'"
            )
        elif kind == "uniformity" and value > limit.max_uniformity:
            found.append(
                f"projections of {where} lie almost in one point (uniformity {value:.2f}). Likely nothing pushes "
                "them apart: give the task that compares rows a lower temperature, or use a larger global_batch, or "
                "a smaller weight of the tasks that draw rows together"
            )
    return found + list(unrelated(measures, present).values())


def unrelated(measures: Mapping[str, float], present: Mapping[str, Tensor]) -> dict[str, str]:
    """Pair of modalities, `<a>-<b>` -> the warning that each does not find the other (`no_better_than_chance`)."""
    found = {}
    for (a, x), (b, y) in itertools.permutations(present.items(), 2):
        recall, rows = measures.get(f"recall@10/{a}-{b}"), int((x & y).sum())
        if recall is not None and no_better_than_chance(recall, rows, 10):
            low, high = recall_interval(recall, rows)
            found[f"{a}-{b}"] = (
                f"retrieval {a}-{b} finds its match among 10 in {recall:.1%} of {rows} rows [{low:.1%}, {high:.1%}], "
                f"no better than chance ({10 / rows:.1%}). Likely the modalities do not belong together row by row, or "
                "training has not begun to work; check the packing, then lr and warm-up"
            )
    return found
