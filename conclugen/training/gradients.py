"""From a batch to gradients: in one pass or in micro-batches, of the total or of each task, over any number of ranks.

Whatever the way, afterwards `.grad` of each parameter holds the gradient of the total over the global batch, the same
on every rank, and None where no active task reaches the parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from conclugen import distributed
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.training import gradient_conflicts
from conclugen.training.grad_cache import Objective, cached_gradients, direct_gradients, order_of_arrival
from conclugen.training.gradient_conflicts import Gradients
from conclugen.training.model import Model
from conclugen.training.summed_gradients import SummedGradients, summed
from conclugen.training.weighting import Weighting, weighted_sum


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
        self._wire = torch.bfloat16 if config.gradient_compression == "bfloat16" else None
        self._replica: nn.Module = model
        if distributed.world_size() > 1 and not self.by_task and config.micro_batch is None:
            # Gradients stay where they were summed: no second copy of all, and none made at each step.
            replica = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            if self._wire is not None:
                replica.register_comm_hook(None, bf16_compress_hook)
            self._replica = replica

    def compute(self, batch: Batch, step: int, epoch: int, active: Sequence[str]) -> Computed:
        """Gradient of the sum over `active` tasks of factor x loss, or what the projection makes of its terms."""
        for parameter in self.model.parameters():
            parameter.grad = None
        by_itself: list[Objective] = [{name: 1.0} for name in active]
        every = self.config.tasks.share_every
        due = self._always_measured or (every > 0 and step % every == 0)
        measured = due and len(active) > 1
        if self.by_task:
            shares, partial_T = self._own(batch, step, epoch, by_itself)
            gradients_T = summed(partial_T, len(self._heads), self._wire)
            self._show(active, norm_T := gradients_T.head_norms())
            factors = self.weighting.factors(active)
            computed = self._combine(self._losses(shares), gradients_T, step, [factors[name] for name in active])
            computed = replace(computed, shares=shares_of(norm_T, factors, active)) if measured else computed
        elif self.config.micro_batch is not None:
            factors = self.weighting.factors(active)
            objectives = [factors, *(by_itself if measured else [])]
            order, parameters = order_of_arrival(self.model, active), self.model.trainable()
            place = {at: expected for expected, at in enumerate(order)}
            sums = distributed.ComingSums([parameters[at].numel() for at in order], self._wire)
            shares, (_, *partial_T) = self._own(
                batch, step, epoch, objectives, lambda at, gradient: sums.add(place[at], gradient)
            )
            summed_P = sums.result()
            self._assign([summed_P[place[at]] for at in range(len(parameters))])
            part_T = shares_of(self._head_norms(partial_T), factors, active) if measured else None
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
            self.weighting.see(*self.model.feature, active)
        if norm_T is not None and active:
            self.weighting.balance(norm_T, active)

    def _of_heads(self, shares: Mapping[str, Tensor], active: Sequence[str]) -> list[Gradients]:
        """This rank's part of each active task's gradient, unweighted, for the heads' parameters alone; the graph stays
        as it is for the backward pass that follows."""
        return [torch.autograd.grad(shares[name], self._heads, retain_graph=True, allow_unused=True) for name in active]

    def _head_norms(self, partial_T: Sequence[Gradients]) -> Tensor:
        """Norm (T,) float64 over the heads' parameters of the sums over ranks of gradients by parameter, of the heads
        alone or of the model, whose heads come first."""
        heads = len(self._heads)
        return summed([gradients[:heads] for gradients in partial_T], heads, self._wire).head_norms()

    def _own(
        self,
        batch: Batch,
        step: int,
        epoch: int,
        objectives: Sequence[Objective],
        arrived: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[dict[str, Tensor], list[Gradients]]:
        """This rank's shares, and its part of the objectives' gradients, which are yet to be summed over ranks.
        arrived: of micro-batches, see `cached_gradients`."""
        arguments = (self.model, batch, step, epoch, objectives)
        micro_batch = self.config.micro_batch
        if micro_batch is None:
            return direct_gradients(*arguments)
        return cached_gradients(*arguments, micro_batch, arrived)

    def _combine(
        self, losses: dict[str, Tensor], gradients_T: SummedGradients, step: int, factors: Sequence[Tensor | float]
    ) -> Computed:
        """What is projected is the gradients' sums over ranks: a projection of each rank's own would be another."""
        if not factors:
            return Computed(losses)
        gram_TT = gradients_T.gram()
        factor_T = torch.stack([torch.as_tensor(f, dtype=gram_TT.dtype, device=gram_TT.device) for f in factors])
        coefficient_T = factor_T
        if self.project:
            order = gradient_conflicts.projection_order(len(factors), self.config.seed, step)
            weighted_TT = factor_T.unsqueeze(1) * gram_TT * factor_T
            coefficient_T = factor_T * gradient_conflicts.pcgrad(weighted_TT, order)
        self._assign(gradients_T.combined(coefficient_T, factor_T))
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
