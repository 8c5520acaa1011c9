"""What each task's loss is multiplied by in the total: configured weights, or weights that follow the training.

With L_i the loss of task i over the global batch, and n the divisor (`TasksConfig.divisor`):

    static        1/n  sum_i  w_i L_i
    uncertainty   1/n  sum_i  exp(-s_i) L_i + s_i      (Kendall, Gal & Cipolla 2018, arXiv 1705.07115, equation 7)
    gradnorm      1/n  sum_i  w_i L_i                  with w_i after Chen et al. 2018 (arXiv 1711.02257, equation 2)
    dynamic       1/n  sum_i  w_i L_i                  with w_i after Ming et al. 2019 (arXiv 1911.03281)
    share         1/n  sum_i  w_i L_i                  with w_i |grad L_i| in proportion to the configured weights

A learned weight begins at the configured one. Its gradient follows in closed form from values that are the same on all
ranks, so no graph is needed for it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from conclugen import distributed, fields
from conclugen.config import TasksConfig, check_shares

# exp(-s) grows without end as a loss goes to zero; beyond this factor a task has the optimiser to itself anyway.
_LARGEST_WEIGHT = 1000.0
# Added to a loss before it divides (Ming et al.).
_SOLVED = 0.01


class Weighting(nn.Module):
    """Configured weights; the base of the learned ones. Methods take the tasks that are active now, in their order."""

    needs_norms = False
    """Each task's gradient is taken by itself."""
    needs_feature = False
    """It reads the representations of the batch."""

    def __init__(self, tasks: TasksConfig) -> None:
        super().__init__()
        self.tasks = tasks
        self.configured = {name: float(task.weight) for name, task in tasks.active.items()}
        self.current = dict(self.configured)
        self.changes: list[dict[str, Any]] = []

    def divisor(self, active: Sequence[str]) -> int:
        return max(1, len(active)) if self.tasks.divisor == "active" else len(self.configured)

    def weights(self, active: Sequence[str]) -> dict[str, Tensor | float]:
        """Each active task's weight, before the divisor, without gradient. A single published task runs without
        one."""
        if self.tasks.divisor == "active" and len(self.configured) == 1:
            return dict.fromkeys(active, 1.0)
        return {name: self.current[name] for name in active}

    def factors(self, active: Sequence[str]) -> dict[str, Tensor | float]:
        """What the gradient of each active task's loss is multiplied by: weight over divisor."""
        divisor = self.divisor(active)
        return {name: weight / divisor for name, weight in self.weights(active).items()}

    def total(self, losses: Mapping[str, Tensor], active: Sequence[str]) -> Tensor:
        """The total of the global losses, as it is minimised; 0-d."""
        return weighted_sum(losses, self.factors(active))

    def see(self, feature: Tensor, present: Tensor, active: Sequence[str]) -> None:
        """Take in this rank's representations (N, R), a row for each view of a row, and which of them are present (N,)
        bool, before the weights of the step are asked for; where `needs_feature`. Called on every rank."""

    def balance(self, norms: Tensor, active: Sequence[str]) -> None:
        """Take in the norms (T,) of the active tasks' gradients over the heads, unweighted, before the weights of the
        step are asked for; where `needs_norms`."""

    def learn(self, losses: Mapping[str, Tensor], norms: Tensor | None, active: Sequence[str]) -> None:
        """Set the gradients of this module's own parameters. losses: global, unweighted; norms (T,): of the active
        tasks' gradients over what several of them reach, unweighted, where `needs_norms`."""

    def constrain(self) -> None:
        """Bring the parameters back into their range after an update."""

    def set(self, weights: Mapping[str, float], step: int) -> None:
        """Change configured weights from optimiser step `step` on; the change is noted in `changes`.

        Raises ValueError, before anything is changed, for an unknown task, or a weight that is not above 0.
        """
        self._check(weights)
        changed = {name: float(weight) for name, weight in weights.items() if self.current[name] != weight}
        if changed:
            self.current.update(changed)
            self.changes.append({"step": step, "weights": changed})

    def _index(self, active: Sequence[str]) -> list[int]:
        names = list(self.configured)
        return [names.index(name) for name in active]

    def _check(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            fields.choose("weights", name, self.configured)
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            fields.require(
                number and math.isfinite(weight) and weight > 0, f"weights[{name!r}]", weight, "a number above 0"
            )

    def state(self) -> dict[str, Any]:
        """JSON-able: the weights as configured, as they are, and how they came about."""
        return {"configured": dict(self.configured), "current": dict(self.current), "changes": list(self.changes)}

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """Go on with saved weights. Where the configuration was changed since, its weight holds, and that is noted.

        Raises ValueError, before anything is changed, where `saved` lacks a weight for each task.
        """
        try:
            changes = [dict(change) for change in saved["changes"]]
            current = {name: float(saved["current"][name]) for name in self.configured}
            configured = {name: float(saved["configured"][name]) for name in self.configured}
        except (KeyError, TypeError, ValueError, OverflowError) as cause:
            raise ValueError(
                f"saved state: these are not the weights of {', '.join(self.configured)}: {cause!r}"
            ) from cause
        if not all(math.isfinite(weight) and weight > 0 for weight in current.values()):
            raise ValueError(f"saved state: weights are {current}, expected numbers above 0")
        self.changes, self.current = changes, current
        self.set({n: w for n, w in self.configured.items() if w != configured[n]}, step)


class ShareWeighting(Weighting):
    """Each task's gradient gets the configured share of the heads' gradient, t_i with sum 1.

    With n_i = |grad L_i| over the heads' parameters, the share of a task is s_i = w_i n_i / sum_j w_j n_j. Weights stay
    while every s_i is within t_i (1 +- band). At a step where one is not, all are set again, before the step is made:

        w_i = t_i (sum_j t_j n_j) / n_i

    so that the shares are exact and their sum is that of static weights t. Tasks that are not active yet, or have no
    gradient in a batch, share in nothing: the others divide the whole as they did. No weight goes beyond 1000 times its
    share, or below a thousandth of it, however small a gradient is.
    """

    needs_norms = True
    weight: Tensor

    def __init__(self, tasks: TasksConfig) -> None:
        super().__init__(tasks)
        self.register_buffer("weight", torch.tensor(list(self.configured.values()), dtype=torch.float64))

    def weights(self, active: Sequence[str]) -> dict[str, Tensor | float]:
        return {name: self.weight[index].clone() for name, index in zip(active, self._index(active), strict=True)}

    @torch.no_grad()
    def balance(self, norms: Tensor, active: Sequence[str]) -> None:
        index = self._index(active)
        weight_T = self.weight[index].double()
        aim_T = torch.tensor([self.current[name] for name in active], dtype=torch.float64, device=weight_T.device)
        norm_T = norms.double()
        counts_T = torch.isfinite(norm_T) & (norm_T > 0)
        norm_T = torch.where(counts_T, norm_T, 1)
        target_T = torch.where(counts_T, aim_T, 0)
        target_T = target_T / target_T.sum().clamp(min=torch.finfo(target_T.dtype).tiny)
        size_T = torch.where(counts_T, weight_T * norm_T, 0)
        share_T = size_T / size_T.sum().clamp(min=torch.finfo(size_T.dtype).tiny)
        outside = ((share_T - target_T).abs() > self.tasks.share_band * target_T).any()
        bound_T = aim_T * _LARGEST_WEIGHT, aim_T / _LARGEST_WEIGHT
        wanted_T = (target_T * (target_T * norm_T).sum() / norm_T).minimum(bound_T[0]).maximum(bound_T[1])
        self.weight[index] = torch.where(outside & counts_T, wanted_T, weight_T).to(self.weight.dtype)

    def set(self, weights: Mapping[str, float], step: int) -> None:
        """Change shares; the weights follow at the next step. Raises ValueError as `Weighting.set`, and where the
        shares would no longer sum to 1."""
        self._check(weights)
        check_shares({**self.current, **weights})
        super().set(weights, step)


class LearnedWeighting(Weighting):
    """Weights with parameters: nobody sets them."""

    def set(self, weights: Mapping[str, float], step: int) -> None:
        raise ValueError(
            f"weights: found {dict(weights)!r}, but tasks.weighting={self.tasks.weighting!r} learns them; "
            "set tasks.weighting='static' to choose them"
        )

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """Learned weights are in the parameters; the configured values are only initial."""


class UncertaintyWeighting(LearnedWeighting):
    """exp(-s_i) L_i + s_i with a parameter s_i = log sigma_i^2 for each task, beginning at -log w_i.

    Twice the published Gaussian form, L / (2 sigma^2) + log sigma: the factor changes no minimum (exp(-s_i) = 1 / L_i),
    and without it training begins with exactly the gradients of the static weights. A task whose loss is zero, which is
    what a batch without a valid row gives, says nothing of its weight and is left out.
    """

    def __init__(self, tasks: TasksConfig) -> None:
        super().__init__(tasks)
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(_scalar(-math.log(weight))) for name, weight in self.configured.items()}
        )

    def weights(self, active: Sequence[str]) -> dict[str, Tensor | float]:
        return {name: (-self.log_variance[name].detach()).exp() for name in active}

    def total(self, losses: Mapping[str, Tensor], active: Sequence[str]) -> Tensor:
        terms = [
            torch.where(losses[name] != 0, weight * losses[name] + self.log_variance[name].detach(), 0)
            for name, weight in self.weights(active).items()
        ]
        return torch.stack(terms).sum() / self.divisor(active)

    @torch.no_grad()
    def learn(self, losses: Mapping[str, Tensor], norms: Tensor | None, active: Sequence[str]) -> None:
        weights, divisor = self.weights(active), self.divisor(active)
        for name, parameter in self.log_variance.items():
            if name in weights:
                slope = (1 - weights[name] * losses[name]) / divisor
                parameter.grad = torch.where(losses[name] != 0, slope, 0).to(parameter.dtype)
            else:
                parameter.grad = None

    @torch.no_grad()
    def constrain(self) -> None:
        bound = math.log(_LARGEST_WEIGHT)
        for parameter in self.log_variance.values():
            parameter.clamp_(-bound, bound)


class GradNormWeighting(LearnedWeighting):
    """Weights that bring the tasks' gradients to norms in proportion to how slowly each task has trained.

    With G_i = w_i |grad L_i| over the parameters that several tasks share, r_i = (L_i / L_i(first)) / mean of the same,
    and the target mean(G) r_i^alpha held constant: w descends on sum_i |G_i - target_i|. The weights are the softmax of
    the parameters times the sum of the configured weights of the active tasks, which keeps them positive and their sum
    constant; the paper renormalises after each update.
    """

    needs_norms = True
    first: Tensor

    def __init__(self, tasks: TasksConfig) -> None:
        super().__init__(tasks)
        self.logit = nn.ParameterDict(
            {name: nn.Parameter(_scalar(math.log(weight))) for name, weight in self.configured.items()}
        )
        self.register_buffer("first", torch.zeros(len(self.configured)))

    def weights(self, active: Sequence[str]) -> dict[str, Tensor | float]:
        weight_T, _ = self._softmax(active)
        return dict(zip(active, weight_T.unbind(), strict=True))

    @torch.no_grad()
    def learn(self, losses: Mapping[str, Tensor], norms: Tensor | None, active: Sequence[str]) -> None:
        assert norms is not None
        loss_T = torch.stack([losses[name] for name in active])
        index = self._index(active)
        unseen = (self.first[index] == 0) & torch.isfinite(loss_T)
        first_T = torch.where(unseen, loss_T.to(self.first.dtype), self.first[index])
        self.first[index] = first_T
        ratio_T = torch.where(first_T > 0, loss_T / first_T, 1)
        rate_T = ratio_T / ratio_T.mean().clamp(min=torch.finfo(ratio_T.dtype).tiny)
        weight_T, probability_T = self._softmax(active)
        norm_T = norms.to(weight_T.dtype)
        size_T = weight_T * norm_T
        target_T = size_T.mean() * rate_T**self.tasks.gradnorm_alpha
        slope_T = torch.sign(size_T - target_T) * norm_T
        # Through w = sum * softmax(v): dw_i / dv_k = w_i ([i = k] - p_k).
        gradient_T = weight_T * slope_T - probability_T * (weight_T * slope_T).sum()
        for name, parameter in self.logit.items():
            parameter.grad = gradient_T[active.index(name)].to(parameter.dtype) if name in active else None

    def _softmax(self, active: Sequence[str]) -> tuple[Tensor, Tensor]:
        probability_T = torch.stack([self.logit[name].detach() for name in active]).softmax(0)
        return probability_T * sum(self.configured[name] for name in active), probability_T


class DynamicWeighting(LearnedWeighting):
    """Weights that the representations themselves give, so that harder tasks weigh more.

        p_n = softmax(A z_n + b),     w = mean_n p_n x sum of the configured weights,     A, b descend on
        sum_i  mean_n p_n,i / (L_i + 0.01)

    with losses as constants: the larger a loss, the less its weight costs. After Ming et al. 2019 and their code
    (github.com/hengxyz/Dynamic_multi-task-learning): the softmax of each row's shared feature, of length 1, averaged
    over rows; 0.01 keeps a solved task from an infinite price. As there, losses are compared as they are, so a task
    whose loss is measured in smaller numbers counts as easier.

    Ours: z_n are the representations of a row's views, over the present ones of the global batch, for there is no layer
    that all modalities share before; they get no gradient from their weight; A begins at 0 and b at the logarithms of
    the configured weights, whose sum the weights keep (there a drawn A, and a sum of 1), and neither is decayed; a task
    whose loss is zero, which is what a batch without a valid row gives, says nothing of its weight and is left out.
    """

    needs_feature = True
    probability: Tensor

    def __init__(self, tasks: TasksConfig, representation_dim: int) -> None:
        super().__init__(tasks)
        count = len(self.configured)
        self.matrix = nn.Parameter(torch.zeros(count, representation_dim, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(list(self.configured.values()), dtype=torch.float64).log())
        self.register_buffer("probability", torch.zeros(count, dtype=torch.float64), persistent=False)
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None  # of this rank: z (N, R), p (N, T); rows of all ranks

    @torch.no_grad()
    def see(self, feature: Tensor, present: Tensor, active: Sequence[str]) -> None:
        index = self._index(active)
        z_NR = functional.normalize(feature.to(self.bias.dtype), dim=1)
        p_NT = (z_NR @ self.matrix[index].T + self.bias[index]).softmax(1)
        p_NT = torch.where(present.unsqueeze(1), p_NT, 0)
        summed = distributed.all_sum(torch.cat([p_NT.sum(0), present.sum().to(p_NT.dtype).unsqueeze(0)]))
        count = summed[-1]
        self.probability[index] = torch.where(count > 0, summed[:-1] / count.clamp(min=1), self.bias[index].softmax(0))
        self._seen = z_NR, p_NT, count.clamp(min=1)

    def weights(self, active: Sequence[str]) -> dict[str, Tensor | float]:
        total = sum(self.configured[name] for name in active)
        return dict(zip(active, (self.probability[self._index(active)] * total).unbind(), strict=True))

    @torch.no_grad()
    def learn(self, losses: Mapping[str, Tensor], norms: Tensor | None, active: Sequence[str]) -> None:
        if not active:
            return
        assert self._seen is not None
        index, (z_NR, p_NT, count) = self._index(active), self._seen
        loss_T = torch.stack([losses[name] for name in active]).to(self.bias.dtype)
        counts_T = loss_T != 0
        price_T = torch.where(counts_T, 1 / (loss_T + _SOLVED), 0)
        p_NT = torch.where(counts_T, p_NT, 0)
        p_NT = p_NT / p_NT.sum(1, keepdim=True).clamp(min=torch.finfo(p_NT.dtype).tiny)
        slope_NT = p_NT * (price_T - p_NT @ price_T.unsqueeze(1)) / count
        slopes = distributed.all_sum(torch.cat([slope_NT.T @ z_NR, slope_NT.sum(0).unsqueeze(1)], dim=1))
        self.matrix.grad, self.bias.grad = torch.zeros_like(self.matrix), torch.zeros_like(self.bias)
        self.matrix.grad[index], self.bias.grad[index] = slopes[:, :-1], slopes[:, -1]
        self._seen = None


_KINDS = {
    "static": Weighting,
    "uncertainty": UncertaintyWeighting,
    "gradnorm": GradNormWeighting,
    "share": ShareWeighting,
}


def make(tasks: TasksConfig, representation_dim: int = 0) -> Weighting:
    """The weighting that `tasks.weighting` names. representation_dim: R, for weights that representations give."""
    if tasks.weighting == "dynamic":
        return DynamicWeighting(tasks, representation_dim)
    return _KINDS[tasks.weighting](tasks)


def weighted_sum(losses: Mapping[str, Tensor], factors: Mapping[str, Tensor | float]) -> Tensor:
    """Sum of factor x loss over the tasks of `factors` that are in `losses`; zero where none is."""
    terms = [losses[name] * factor for name, factor in factors.items() if name in losses]
    return torch.stack(terms).sum() if terms else torch.zeros_like(next(iter(losses.values())))


def _scalar(value: float) -> Tensor:
    """In float64, so that the precision of the run is the only rounding."""
    return torch.tensor(value, dtype=torch.float64)
