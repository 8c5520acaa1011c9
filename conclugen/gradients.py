"""From a batch to gradients: in one pass or in micro-batches, of the total or of each task, over any number of ranks.

Whatever the way, afterwards `.grad` of each parameter holds the gradient of the total over the global batch, the same
on every rank, and None where no active task reaches the parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conclugen import distributed, gradient_conflicts
from conclugen.accumulation import Objective, cached_gradients, direct_gradients
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.gradient_conflicts import Gradients
from conclugen.model import Model
from conclugen.weighting import weighted_sum


@dataclass(frozen=True)
class Computed:
    """losses: each task's over the global batch, 0-d, unweighted. norms: (T,) of the active tasks' gradients over the
    parameters that several of them reach, and cosines: (T, T) between them; None where gradients are not taken task by
    task."""

    losses: dict[str, Tensor]
    norms: Tensor | None = None
    cosines: Tensor | None = None


class GradientComputer:
    """Fills `.grad` of a model's parameters. `by_task`: something needs the gradient of each task by itself."""

    def __init__(self, model: Model, config: PretrainConfig, by_task: bool) -> None:
        self.model, self.config = model, config
        self.project = config.tasks.gradients == "pcgrad"
        self.by_task = by_task or self.project
        self._replica: nn.Module = model
        if distributed.world_size() > 1 and not self.by_task and config.micro_batch is None:
            self._replica = DistributedDataParallel(model, broadcast_buffers=False)

    def compute(
        self, batch: Batch, step: int, epoch: int, active: Sequence[str], factors: Mapping[str, Tensor | float]
    ) -> Computed:
        """Gradient of the sum over `active` tasks of factor x loss, or what the projection makes of its terms."""
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.by_task:
            shares, gradients_T = self._summed(batch, step, epoch, [{name: 1.0} for name in active])
            computed = self._combine(self._losses(shares), gradients_T, step, [factors[name] for name in active])
        elif self.config.micro_batch is not None:
            shares, (gradients,) = self._summed(batch, step, epoch, [factors])
            self._assign(gradients)
            computed = Computed(self._losses(shares))
        else:
            shares = self._replica(batch, step, epoch)
            # Every head takes part on every rank, or DistributedDataParallel would wait; it averages, hence the factor.
            everything = {name: factors.get(name, 0.0) for name in shares}
            (weighted_sum(shares, everything) * distributed.world_size()).backward()
            computed = Computed(self._losses(shares))
        self._drop_untrained(active)
        return computed

    def _summed(
        self, batch: Batch, step: int, epoch: int, objectives: Sequence[Objective]
    ) -> tuple[dict[str, Tensor], list[Gradients]]:
        """Shares, and the objectives' gradients summed over ranks: a projection of partial ones would be another."""
        arguments = (self.model, batch, step, epoch, objectives)
        micro_batch = self.config.micro_batch
        shares, gradients = (
            direct_gradients(*arguments) if micro_batch is None else cached_gradients(*arguments, micro_batch)
        )
        sums = iter(distributed.all_sum_each([g for each in gradients for g in each if g is not None]))
        return shares, [[None if g is None else next(sums) for g in each] for each in gradients]

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
