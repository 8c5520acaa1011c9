"""A large batch in little memory: micro-batches through the heads, exact also for losses that compare rows.

Where rows are compared, the loss of a part of the batch is not a part of the loss of the batch. So the gradient is cut
at the representation (GradCache: Gao et al. 2021, arXiv 2101.06983; there at the embedding): representations of all
rows first, micro-batch by micro-batch and without a graph; the losses, batch norm and k-means included, on all of them;
then the heads once more, micro-batch by micro-batch, each handed its rows' gradient. Batch norm comes after the cut, so
its statistics are those of the whole batch, and random masks are functions of (seed, purpose, step, row), so both
passes see the same inputs. What is kept for all rows is the representations and the projection; a task that looks at
one row at a time runs in the second pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

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


def order_of_arrival(model: Model, tasks: Sequence[str]) -> list[int]:
    """Places of the trainable parameters in the order in which `cached_gradients` is done with them, about: those that
    the second pass does not reach, then the others, the last first; at the end those that none of `tasks` reaches."""
    again, parameters, reached = _reached_again(model), model.trainable(), model.trained_by(tasks)
    places = range(len(parameters))
    order = [*(at for at in places if at not in again), *(at for at in reversed(places) if at in again)]
    return sorted(order, key=lambda at: parameters[at] not in reached)


def cached_gradients(
    model: Model,
    batch: Batch,
    step: int,
    epoch: int,
    objectives: Sequence[Objective],
    micro_batch: int,
    arrived: Callable[[int, Tensor], None] | None = None,
) -> tuple[dict[str, Tensor], list[Gradients]]:
    """The same with at most `micro_batch` rows in the heads at a time.

    arrived: called, as soon as it is whole, with each gradient of the first objective and its parameter's place: while
    the last micro-batch is on its way back, so that gradients can travel meanwhile.
    """
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
    again = _reached_again(model)
    if arrived is not None:
        for at, gradient in enumerate(sums[0].gradients):
            if gradient is not None and at not in again:
                arrived(at, gradient)

    for part in parts:
        inputs = model.inputs(batch.part(part))
        representations = model.representations(inputs, batch.row[part], step)
        own = {name: presence.part(part) for name, presence in presences.items()}
        row_shares = model.shares(inputs, representations, own, step, epoch, row_tasks)
        for name, share in row_shares.items():
            values[name] = values.get(name, 0) + share.detach()
        for i, (objective, given, total) in enumerate(zip(objectives, at_representation, sums, strict=True)):
            outputs = [representations[name] for name in given]
            weights: list[Tensor | None] = [gradient[part] for gradient in given.values()]
            if objective.keys() & row_shares.keys():
                outputs.append(weighted_sum(row_shares, objective))
                weights.append(None)
            watched: AbstractContextManager[None] = nullcontext()
            if arrived is not None and i == 0 and part is parts[-1]:
                watched = total.whole_with(parameters, again, arrived)
            with watched:
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


def _reached_again(model: Model) -> set[int]:
    """Places of the trainable parameters that the second pass reaches: the heads', and those of its tasks."""
    reached = {*model.heads.parameters(), *model.trained_by(model.row_tasks)}
    return {at for at, parameter in enumerate(model.trainable()) if parameter in reached}


class _Sum:
    """Gradients by parameter, added up; None until one arrives."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self._whole: set[int] = set()

    def add(self, gradients: Gradients) -> None:
        for at, gradient in enumerate(gradients):
            if gradient is not None and at not in self._whole:
                self._add(at, gradient)

    @contextmanager
    def whole_with(
        self, parameters: Sequence[Tensor], places: set[int], arrived: Callable[[int, Tensor], None]
    ) -> Iterator[None]:
        """What the block adds is the last: each gradient of these places is handed on as soon as it is there, and where
        the block has none for it, at its end."""

        def whole(at: int, gradient: Tensor) -> None:
            arrived(at, self._add(at, gradient))
            self._whole.add(at)

        hooks = [parameters[at].register_hook(partial(whole, at)) for at in places]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for at in places - self._whole:
            if (gradient := self.gradients[at]) is not None:
                arrived(at, gradient)

    def _add(self, at: int, gradient: Tensor) -> Tensor:
        held = self.gradients[at]
        self.gradients[at] = added = gradient if held is None else held + gradient
        return added
