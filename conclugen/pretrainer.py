"""One optimiser step at a time: the whole of pretraining, without data loading, files or a cluster.

Every line of its use:

    config = conclugen.presets.build("conclugen", modalities=("video", "audio"), global_batch=256)
    widths = {"video": 35, "audio": 347}
    fitted = conclugen.standardize.fit(training_features)
    pretrainer = conclugen.Pretrainer(config, widths, steps_per_epoch=len(batches), standardization=fitted)
    for batch in batches:
        metrics = pretrainer.step(batch)
    representations = pretrainer.embed(batch)
"""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from conclugen import distributed
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.model import Model
from conclugen.schedule import learning_rate
from conclugen.standardize import Standardize

# How often a GPU is asked whether a loss was not finite; the parameters stop changing at the bad step unasked.
_CHECK_EVERY_CUDA = 50


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient was NaN or infinite. The parameters are those before that step; nothing since was applied."""

    def __init__(self, step: int, tasks: list[str]) -> None:
        self.step, self.tasks = step, tasks
        super().__init__(
            f"step {step}: {' and '.join(tasks)} not finite. No update was applied from this step on, and this "
            "state can't be saved: resume from the last checkpoint with a lower learning rate, a clip_norm, or "
            "float32; look for infinite features if it comes back at once"
        )

    def __reduce__(self) -> tuple[type["NonFiniteLossError"], tuple[int, list[str]]]:
        # Exceptions are rebuilt from their message alone; a worker must be able to hand this one to its job.
        return type(self), (self.step, self.tasks)


class Pretrainer:
    """Model, optimiser, schedule and counters of one run, exact for any number of ranks.

    widths: modality -> feature width, at least the configuration's modalities. steps_per_epoch: optimiser steps, for
    schedule and epochs. standardization: modality -> (mean (D,), deviation (D,)), needed when
    `config.model.standardize` (see `conclugen.standardize.fit`). With torch.distributed initialised before, each rank
    makes its own Pretrainer and hands `step` its own rows: local = ceil(global_batch / world size) rows, rank r those
    from r * local on. Raises ValueError when the widths can't serve the configuration.
    """

    def __init__(
        self,
        config: PretrainConfig,
        widths: Mapping[str, int],
        steps_per_epoch: int,
        standardization: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        config.check_serves(widths)
        if steps_per_epoch < 1:
            raise ValueError(
                f"steps_per_epoch: found {steps_per_epoch}, expected 1 or more: "
                f"the data has fewer rows than one global batch of {config.global_batch}"
            )
        self.config = config
        self.widths = {m: int(widths[m]) for m in config.required_modalities}
        self.steps_per_epoch = steps_per_epoch
        self.device = torch.device(device)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.step_number = 0
        self.model = Model(config, self.widths).to(self.device, self.dtype)
        self.model.initialise()
        self._set_standardization(standardization)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = self._make_optimizer()
        self._replica: nn.Module = self.model
        if distributed.world_size() > 1:
            self._replica = DistributedDataParallel(self.model, broadcast_buffers=False)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._bad_tasks = torch.zeros(len(config.tasks.active), dtype=torch.bool, device=self.device)
        self._check_every = _CHECK_EVERY_CUDA if self.device.type == "cuda" else 1

    @property
    def epoch(self) -> int:
        """0-based epoch of the next step."""
        return self.step_number // self.steps_per_epoch

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One optimiser step on this rank's rows; `batch` is any object with a Batch's attributes.

        Returns 0-d tensors, equal on all ranks: loss (as trained), loss/<task> (unweighted), grad_norm (before
        clipping), lr, and what the tasks report of themselves. Nothing waits for a GPU, except that every few
        iterations of k-means and every 50th step something is read back. A step whose loss or gradient is not finite
        changes no parameter, nor does any after it; NonFiniteLossError follows at once on a CPU, within 50 steps on a
        GPU, and at `state`.
        """
        rows = self._rows(batch)
        step, epoch = self.step_number, self.epoch
        if self.model.clustering is not None and step % self.steps_per_epoch == 0:
            self.model.clustering.begin_epoch()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        shares = self._replica(rows, step, epoch)
        # Gradients are sums over ranks of the shares' gradients; DDP averages, hence the factor.
        (self.model.total(shares, epoch) * distributed.world_size()).backward()
        self._drop_inactive_gradients(epoch)
        losses = distributed.all_sum(torch.stack(list(shares.values())))
        named = dict(zip(shares, losses.unbind(), strict=True))
        total = self.model.total(named, epoch)
        grad_norm = self._clip()
        self._note_non_finite(losses, total, grad_norm)
        rate = self._update()
        self.step_number += 1
        if self.step_number % self._check_every == 0:
            self.check_finite()
        return self._metrics(named, total, grad_norm, rate, epoch)

    def check_finite(self) -> None:
        """Raise NonFiniteLossError if any step so far had a loss or gradient that was not finite."""
        step = int(self._bad_step)
        if step >= 0:
            names = list(self.config.tasks.active)
            bad = [f"loss/{name}" for name, flag in zip(names, self._bad_tasks.tolist(), strict=True) if flag]
            raise NonFiniteLossError(step, bad or ["gradient"])

    @torch.no_grad()
    def embed(self, batch: Any) -> dict[str, Tensor]:
        """Representation of each modality, (B, R), in evaluation mode; zero where the modality is not present."""
        rows = Batch.of(batch, self.device, self.dtype)
        self.model.eval()
        return {
            m: self.model.represent(m, rows.features[m]) * rows.present[m].unsqueeze(1) for m in self.config.modalities
        }

    @torch.no_grad()
    def project(self, batch: Any) -> dict[str, Tensor]:
        """Unit vectors (B, P) in the space that modalities share, in evaluation mode; empty for a model without
        projection."""
        projection = self.model.projection
        if projection is None:
            return {}
        representations = self.embed(batch)
        present = torch.ones(1, len(next(iter(representations.values()))), dtype=torch.bool, device=self.device)
        return {
            m: functional.normalize(projection(r.unsqueeze(0), present)[0], dim=1) for m, r in representations.items()
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-able rest): all that a run needs to go on, the same on every rank and for any number of ranks.

        The tensors are the live ones: copy or write them before the next step. Raises NonFiniteLossError rather than
        hand out a state that a bad step has touched.
        """
        self.check_finite()
        tensors = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = value
        clustering = self.model.clustering
        meta: dict[str, Any] = {
            "config": self.config.to_dict(),
            "widths": self.widths,
            "steps_per_epoch": self.steps_per_epoch,
            "step_number": self.step_number,
            "clustering": None if clustering is None else {"queued": clustering.queued, "started": clustering.started},
        }
        return {name: x.detach() for name, x in tensors.items()}, meta

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError, before anything is changed, naming what differs: identity fields of
        the configuration, widths, steps per epoch, missing or surplus tensors, shapes, dtypes."""
        differing = PretrainConfig.from_dict(meta["config"]).differences(self.config)
        if differing:
            listed = "; ".join(f"{name}: saved {theirs!r}, now {mine!r}" for name, (theirs, mine) in differing.items())
            raise ValueError(
                f"the saved run is another one ({listed}); give the new run another name, or the saved values"
            )
        for name, mine in (("widths", self.widths), ("steps_per_epoch", self.steps_per_epoch)):
            if meta[name] != mine:
                raise ValueError(
                    f"{name}: saved {meta[name]!r}, now {mine!r}; a run goes on with the data it began with"
                )
        own, _ = self.state()
        _check_tensors(tensors, own)
        for name, x in own.items():
            x.copy_(tensors[name])
        self.step_number = int(meta["step_number"])
        if self.model.clustering is not None:
            self.model.clustering.queued = int(meta["clustering"]["queued"])
            self.model.clustering.started = bool(meta["clustering"]["started"])

    def _rows(self, batch: Any) -> Batch:
        rows = Batch.of(batch, self.device, self.dtype)
        for modality, width in self.widths.items():
            if modality not in rows.features:
                there = ", ".join(rows.features) or "nothing"
                raise ValueError(f"batch features: modality {modality!r} is missing, found {there}")
            found = rows.features[modality].shape[1]
            if found != width:
                raise ValueError(f"batch features[{modality!r}]: found width {found}, expected {width}")
        local = self.config.local_batch(distributed.world_size())
        if rows.rows > local:
            raise ValueError(
                f"batch: found {rows.rows} rows, expected at most {local} "
                f"(global_batch {self.config.global_batch} on {distributed.world_size()} ranks)"
            )
        return rows.padded(local)

    def _drop_inactive_gradients(self, epoch: int) -> None:
        """A task that is not active has zero gradients, which AdamW would still decay and count as a step."""
        for name, module in self.model.tasks.items():
            if not self.model.task_active(name, epoch):
                for parameter in module.parameters():
                    parameter.grad = None

    def _clip(self) -> Tensor:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.clip_norm is not None:
            coefficient = (self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, coefficient)
        return norm

    def _note_non_finite(self, losses: Tensor, total: Tensor, grad_norm: Tensor) -> None:
        """Remember the first bad step and its tasks on the device; from then on the optimiser skips."""
        bad = ~(torch.isfinite(total) & torch.isfinite(grad_norm) & torch.isfinite(losses).all())
        first = bad & (self._bad_step < 0)
        self._bad_step = torch.where(first, self.step_number, self._bad_step)
        self._bad_tasks = torch.where(first, ~torch.isfinite(losses), self._bad_tasks)
        # The fused kernel leaves everything as it is where this is 1; it is how torch.amp.GradScaler skips a step.
        self.optimizer.found_inf = (self._bad_step >= 0).float()  # type: ignore[attr-defined]

    def _update(self) -> float:
        config = self.config
        rate = learning_rate(config.optimizer, self.step_number, self.steps_per_epoch, config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return rate

    def _metrics(
        self, losses: dict[str, Tensor], total: Tensor, grad_norm: Tensor, rate: float, epoch: int
    ) -> dict[str, Tensor]:
        active = {f"loss/{name}": loss for name, loss in losses.items() if self.model.task_active(name, epoch)}
        metrics = {"loss": total, **active, "grad_norm": grad_norm, "lr": torch.tensor(rate, dtype=torch.float64)}
        if self.model.scale is not None:
            metrics["temperature"] = 1 / self.model.scale.detach()
        clustering = self.model.clustering
        if clustering is not None and clustering.active(epoch):
            share = clustering.assigned / clustering.assigned.sum().clamp(min=1)
            metrics["clusters/used"] = (share > 0).to(share.dtype).mean()
            metrics["clusters/perplexity"] = torch.special.entr(share).sum().exp()
        return metrics

    def _set_standardization(self, given: Mapping[str, tuple[ArrayLike, ArrayLike]] | None) -> None:
        if not self.config.model.standardize:
            if given is not None:
                raise ValueError(
                    "standardization: given, but the configuration says model.standardize=False; "
                    "set it, or leave it out"
                )
            return
        for modality in self.config.modalities:
            if given is None or modality not in given:
                raise ValueError(
                    f"standardization: nothing for modality {modality!r}, but the configuration says "
                    "model.standardize=True; pass conclugen.standardize.fit(training features), or "
                    "set model.standardize=False"
                )
            module = self.model.standardize[modality]
            assert isinstance(module, Standardize)
            module.set(modality, *given[modality])

    def _make_optimizer(self) -> torch.optim.AdamW:
        config = self.config.optimizer
        spared = [p for p in self.parameters.values() if config.decay == "matrices" and p.dim() < 2]
        spared_ids = {id(p) for p in spared}
        groups = [{"params": [p for p in self.parameters.values() if id(p) not in spared_ids]}]
        if spared:
            groups.append({"params": spared, "weight_decay": 0.0})  # type: ignore[dict-item]
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )
        # Made now rather than at each parameter's first step, so that every checkpoint has the same tensors.
        for parameter in self.parameters.values():
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise ValueError(
            f"saved state: missing tensor {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    if surplus:
        raise ValueError(
            f"saved state: unknown tensor {surplus[0]!r}" + (f" and {len(surplus) - 1} more" if surplus[1:] else "")
        )
    for name, x in expected.items():
        other = found[name]
        if other.shape != x.shape or other.dtype != x.dtype:
            raise ValueError(
                f"saved state: tensor {name!r} is {other.dtype} {tuple(other.shape)}, "
                f"expected {x.dtype} {tuple(x.shape)}"
            )
