"""From a batch to gradients: in one pass or in micro-batches, of the total or of each task, over any number of ranks.

Whatever the way, afterwards `.grad` of each parameter holds the gradient of the total over the global batch, the same
on every rank, and None where no active task reaches the parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conclugen import distributed, gradient_conflicts
from conclugen.accumulation import Objective, cached_gradients, direct_gradients
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.gradient_conflicts import Gradients
from conclugen.model import Model
from conclugen.weighting import Weighting, weighted_sum


@dataclass(frozen=True)
class Computed:
    """losses: each task's over the global batch, 0-d, unweighted. norms: (T,) of the active tasks' gradients over the
    parameters that several of them reach, and cosines: (T, T) between them; None where gradients are not taken task by
    task. shares: (T,) of each in the heads' gradient (`shares_of`); None where they were not measured."""

    losses: dict[str, Tensor]
    norms: Tensor | None = None
    cosines: Tensor | None = None
    shares: Tensor | None = None


def shares_of(norm_T: Tensor, factors: Mapping[str, Tensor | float], active: Sequence[str]) -> Tensor:
    """Each task's share (T,) of the heads' gradient: factor x norm over their sum, as if no two pointed in the same or
    in opposite directions; 0 where none has a gradient."""
    factor_T = torch.stack([torch.as_tensor(factors[n], dtype=norm_T.dtype, device=norm_T.device) for n in active])
    size_T = factor_T * norm_T
    return size_T / size_T.sum().clamp(min=torch.finfo(size_T.dtype).tiny)


class GradientComputer:
    """Fills `.grad` of a model's parameters, of the tasks' losses by the factors that `weighting` gives."""

    def __init__(self, model: Model, config: PretrainConfig, weighting: Weighting) -> None:
        self.model, self.config, self.weighting = model, config, weighting
        self.project = config.tasks.gradients == "pcgrad"
        self._always_measured = weighting.needs_norms or self.project
        late = weighting.needs_feature and config.micro_batch is not None  # weights come after the first passage
        self.by_task = self._always_measured or late
        self._heads = [parameter for parameter in model.heads.parameters() if parameter.requires_grad]
        self._replica: nn.Module = model
        if distributed.world_size() > 1 and not self.by_task and config.micro_batch is None:
            self._replica = DistributedDataParallel(model, broadcast_buffers=False)

    def compute(self, batch: Batch, step: int, epoch: int, active: Sequence[str]) -> Computed:
        """Gradient of the sum over `active` tasks of factor x loss, or what the projection makes of its terms."""
        for parameter in self.model.parameters():
            parameter.grad = None
        by_itself: list[Objective] = [{name: 1.0} for name in active]
        every = self.config.tasks.share_every
        due = self._always_measured or (every > 0 and step % every == 0)
        measured = due and len(active) > 1
        if self.by_task:
            shares, gradients_T = self._summed(batch, step, epoch, by_itself)
            self._show(active, norm_T := self._head_norms(gradients_T))
            factors = self.weighting.factors(active)
            computed = self._combine(self._losses(shares), gradients_T, step, [factors[name] for name in active])
            computed = replace(computed, shares=shares_of(norm_T, factors, active)) if measured else computed
        elif self.config.micro_batch is not None:
            factors = self.weighting.factors(active)
            objectives = [factors, *(by_itself if measured else [])]
            shares, (gradients, *gradients_T) = self._summed(batch, step, epoch, objectives)
            self._assign(gradients)
            part_T = shares_of(self._head_norms(gradients_T), factors, active) if measured else None
            computed = Computed(self._losses(shares), shares=part_T)
        else:
            shares = self._replica(batch, step, epoch)
            self._show(active)
            factors = self.weighting.factors(active)
            part_T = shares_of(self._head_norms(self._of_heads(shares, active)), factors, active) if measured else None
            # Every head takes part on every rank, or DistributedDataParallel would wait; it averages, hence the factor.
            everything = {name: factors.get(name, 0.0) for name in shares}
            (weighted_sum(shares, everything) * distributed.world_size()).backward()
            computed = Computed(self._losses(shares), shares=part_T)
        self._drop_untrained(active)
        return computed

    def _show(self, active: Sequence[str], norm_T: Tensor | None = None) -> None:
        """Let the weights follow this batch."""
        if self.weighting.needs_feature:
            assert self.model.feature is not None
            self.weighting.see(self.model.feature)
        if norm_T is not None and active:
            self.weighting.balance(norm_T, active)

    def _of_heads(self, shares: Mapping[str, Tensor], active: Sequence[str]) -> list[Gradients]:
        """Each active task's gradient, unweighted and summed over ranks, for the heads' parameters alone; the graph
        stays as it is for the backward pass that follows."""
        found: list[Gradients] = [
            torch.autograd.grad(shares[name], self._heads, retain_graph=True, allow_unused=True) for name in active
        ]
        return self._over_ranks(found)

    def _head_norms(self, gradients_T: Sequence[Gradients]) -> Tensor:
        """Norm (T,) float64 over the heads' parameters of gradients by parameter, of the heads alone or of the model,
        whose heads come first."""
        zero = torch.zeros((), dtype=torch.float64, device=self._heads[0].device)
        heads = [[g for g in gradients[: len(self._heads)] if g is not None] for gradients in gradients_T]
        norms = [sum((g.double().square().sum() for g in own), zero).sqrt() for own in heads]
        return torch.stack(norms) if norms else zero.expand(0)

    def _summed(
        self, batch: Batch, step: int, epoch: int, objectives: Sequence[Objective]
    ) -> tuple[dict[str, Tensor], list[Gradients]]:
        """Shares, and the objectives' gradients summed over ranks: a projection of partial ones would be another."""
        arguments = (self.model, batch, step, epoch, objectives)
        micro_batch = self.config.micro_batch
        shares, gradients = (
            direct_gradients(*arguments) if micro_batch is None else cached_gradients(*arguments, micro_batch)
        )
        return shares, self._over_ranks(gradients)

    def _over_ranks(self, gradients: Sequence[Gradients]) -> list[Gradients]:
        sums = iter(distributed.all_sum_each([g for each in gradients for g in each if g is not None]))
        return [[None if g is None else next(sums) for g in each] for each in gradients]

    def _combine(
        self,
        losses: dict[str, Tensor],
        gradients_T: Sequence[Gradients],
        step: int,
        factors: Sequence[Tensor | float],
    ) -> Computed:
        if not gradients_T:
            return Computed(losses)
        among = gradient_conflicts.shared(gradients_T)
        gram_TT = gradient_conflicts.gram(gradients_T, among)
        factor_T = torch.stack([torch.as_tensor(f, dtype=gram_TT.dtype, device=gram_TT.device) for f in factors])
        coefficient_T = factor_T
        if self.project:
            order = gradient_conflicts.projection_order(len(gradients_T), self.config.seed, step)
            weighted_TT = factor_T.unsqueeze(1) * gram_TT * factor_T
            coefficient_T = factor_T * gradient_conflicts.pcgrad(weighted_TT, order)
        for parameter, is_shared, column in zip(
            self.model.trainable(), among, zip(*gradients_T, strict=True), strict=True
        ):
            scales = (coefficient_T if is_shared else factor_T).to(parameter.dtype).unbind()
            terms = [g * scale for g, scale in zip(column, scales, strict=True) if g is not None]
            parameter.grad = torch.stack(terms).sum(0) if terms else None
        cosines = gradient_conflicts.cosines(gram_TT) if self.project else None
        return Computed(losses, gram_TT.diagonal().sqrt(), cosines)

    def _losses(self, shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
        losses = distributed.all_sum(torch.stack([share.detach() for share in shares.values()]))
        return dict(zip(shares, losses.unbind(), strict=True))

    def _assign(self, gradients: Gradients) -> None:
        for parameter, gradient in zip(self.model.trainable(), gradients, strict=True):
            parameter.grad = gradient

    def _drop_untrained(self, active: Sequence[str]) -> None:
        """Where only a task reaches that is not active yet the gradient is zero, which AdamW would still decay and
        count as a step."""
        trained = self.model.trained_by(active)
        for parameter in self.model.parameters():
            if parameter not in trained:
                parameter.grad = None
