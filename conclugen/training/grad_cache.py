"""A large batch in little memory: micro-batches through the heads, exact also for losses that compare rows.

Where rows are compared, the loss of a part of the batch is no part of the loss of the batch. So the gradient is cut at
the representation (GradCache: Gao et al. 2021, arXiv 2101.06983; there at the embedding): representations of all rows
first, micro-batch by micro-batch and without a graph; the losses, batch norm and k-means included, on all of them; then
the heads once more, micro-batch by micro-batch, each handed its rows' gradient. Batch norm comes after the cut, so its
statistics are those of the whole batch, and random masks are functions of (seed, purpose, step, row), so both passes
see the same inputs. What is kept for all rows is the representations and the projection; a task that looks at one row
at a time runs in the second pass.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conclugen.batch import Batch
from conclugen.training.gradient_conflicts import Gradients
from conclugen.training.model import Model
from conclugen.training.weighting import weighted_sum

Objective = Mapping[str, Tensor | float]
"""A weighted sum of tasks' losses, as task -> factor."""


def direct_gradients(
    model: Model, batch: Batch, step: int, epoch: int, objectives: Sequence[Objective]
) -> tuple[dict[str, Tensor], list[Gradients]]:
    """This rank's share of each task's loss, and of each objective's gradient, in one pass over all rows."""
    shares = model(batch, step, epoch)
    parameters = model.trainable()
    gradients = [
        _gradients([weighted_sum(shares, objective)], parameters, keep=i + 1 < len(objectives))
        for i, objective in enumerate(objectives)
    ]
    return {name: share.detach() for name, share in shares.items()}, gradients


def cached_gradients(
    model: Model, batch: Batch, step: int, epoch: int, objectives: Sequence[Objective], micro_batch: int
) -> tuple[dict[str, Tensor], list[Gradients]]:
    """The same with at most `micro_batch` rows in the heads at a time."""
    parts = [slice(start, start + micro_batch) for start in range(0, batch.rows, micro_batch)]
    batch = model.prepared(batch, step)
    coming = model.presences(batch)
    parameters = model.trainable()

    with torch.no_grad():
        pieces = [model.representations(model.inputs(batch.part(part)), batch.row[part], step) for part in parts]
    cached = {name: torch.cat([piece[name] for piece in pieces]).requires_grad_() for name in pieces[0]}
    del pieces
    presences = coming()
    model.note_feature(cached, presences)

    row_tasks = model.row_tasks
    whole = [name for name in model.tasks if name not in row_tasks]
    shares = model.shares({}, cached, presences, step, epoch, whole)
    sums = [_Sum(parameters) for _ in objectives]
    at_representation: list[dict[str, Tensor]] = []
    leaves = [*parameters, *cached.values()]
    for i, (objective, total) in enumerate(zip(objectives, sums, strict=True)):
        outputs = [weighted_sum(shares, objective)] if objective.keys() & shares.keys() else []
        found = _gradients(outputs, leaves, keep=i + 1 < len(objectives))
        total.add(found[: len(parameters)])
        arriving = zip(cached, found[len(parameters) :], strict=True)
        at_representation.append({name: gradient for name, gradient in arriving if gradient is not None})
    values = {name: share.detach() for name, share in shares.items()}
    del shares, cached, leaves, outputs, found

    for part in parts:
        inputs = model.inputs(batch.part(part))
        representations = model.representations(inputs, batch.row[part], step)
        own = {name: presence.part(part) for name, presence in presences.items()}
        row_shares = model.shares(inputs, representations, own, step, epoch, row_tasks)
        for name, share in row_shares.items():
            values[name] = values.get(name, 0) + share.detach()
        for i, (objective, arrived, total) in enumerate(zip(objectives, at_representation, sums, strict=True)):
            outputs = [representations[name] for name in arrived]
            weights: list[Tensor | None] = [gradient[part] for gradient in arrived.values()]
            if objective.keys() & row_shares.keys():
                outputs.append(weighted_sum(row_shares, objective))
                weights.append(None)
            total.add(_gradients(outputs, parameters, weights, keep=i + 1 < len(objectives)))
    return {name: values[name] for name in model.tasks}, [total.gradients for total in sums]


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None = None, *, keep: bool
) -> Gradients:
    """Gradient of the weighted outputs by input; None where no output depends on it. `keep` the graph for another."""
    if not outputs:
        return [None] * len(inputs)
    found: Gradients = torch.autograd.grad(outputs, inputs, weights, retain_graph=keep, allow_unused=True)
    return found


class _Sum:
    """Gradients by parameter, added up; None until one arrives."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def add(self, gradients: Gradients) -> None:
        for i, gradient in enumerate(gradients):
            held = self.gradients[i]
            if held is None or gradient is None:
                self.gradients[i] = held if gradient is None else gradient
            else:
                self.gradients[i] = held + gradient
