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

import hashlib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from conclugen import distributed
from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.corpora import by_corpus
from conclugen.layers.standardize import Standardize
from conclugen.schedule import learning_rate
from conclugen.training import embedding, optimizer, step_metrics, weighting
from conclugen.training import state_checks as saved_state
from conclugen.training.gradients import GradientComputer
from conclugen.training.model import Model
from conclugen.training.nan_guard import FiniteGuard, NonFiniteLossError

__all__ = ["NonFiniteLossError", "Pretrainer"]

Module = TypeVar("Module", bound=nn.Module)

# How often a GPU is asked whether a loss was not finite; the parameters stop changing at the bad step unasked.
_CHECK_EVERY_CUDA = 50


class Pretrainer:
    """Model, optimiser, schedule and counters of one run, exact for any number of ranks.

    widths: modality -> feature width, at least the configuration's modalities. steps_per_epoch: optimiser steps, for
    schedule and epochs; a fraction where epochs don't end with a batch (a batch counts to the epoch of its last row).
    standardization: modality -> (mean (D,), deviation (D,)), needed when `config.model.standardize` (see
    `conclugen.standardize.fit`), of single corpora under `conclugen.corpora.by_corpus`. With torch.distributed
    initialised before, each rank makes its own Pretrainer and hands `step` its own rows: local = ceil(global_batch /
    world size) rows, rank r those from r * local on. Raises ValueError when the widths can't serve the configuration.
    """

    def __init__(
        self,
        config: PretrainConfig,
        widths: Mapping[str, int],
        steps_per_epoch: int | Fraction,
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
        self.model = self._placed(Model(config, self.widths))
        self._initialise()
        self._set_standardization(standardization)
        if config.compile:
            self.model.compile_regions()
        self.weighting = self._placed(weighting.make(config.tasks, config.model.representation_dim))
        model_parameters = dict(self.model.named_parameters())
        weight_parameters = {f"weighting.{name}": p for name, p in self.weighting.named_parameters()}
        self.parameters = {**model_parameters, **weight_parameters}
        self.optimizer = optimizer.make(
            config.optimizer, model_parameters, weight_parameters, config.tasks.learned_weight_lr
        )
        self._gradients = GradientComputer(self.model, config, self.weighting)
        self._guard = FiniteGuard(list(config.tasks.active), self.device)
        self._before_update: list[Callable[[], None]] = []
        self._check_every = _CHECK_EVERY_CUDA if self.device.type == "cuda" else 1

    def _placed(self, module: Module) -> Module:
        return module.to(self.device, self.dtype)

    def _initialise(self) -> None:
        self.model.initialise()

    @property
    def epoch(self) -> int:
        """0-based epoch of the next step."""
        return self._epoch_of(self.step_number)

    def _epoch_of(self, step: int) -> int:
        return math.ceil((step + 1) / Fraction(self.steps_per_epoch)) - 1

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One optimiser step on this rank's rows; `batch` is any object with a Batch's attributes.

        Returns 0-d tensors, equal on all ranks: loss (as trained), loss/<task> (unweighted), weight/<task>, at some
        steps share/<task> (of the heads' gradient), grad_norm (before clipping), lr, and what the tasks report of
        themselves (see `conclugen.training.step_metrics`). Nothing waits for a GPU, except that at every 50th step
        something is read back. A step whose loss or gradient is not finite changes no parameter, nor does any after it;
        NonFiniteLossError follows at once on a CPU, within 50 steps on a GPU, and at `state`.
        """
        rows = self._rows(batch)
        step, epoch = self.step_number, self.epoch
        active = self.model.active_tasks(epoch)
        if step == 0 or epoch > self._epoch_of(step - 1):
            for name in self.model.tasks:
                self.model.task(name).begin_epoch()
        self.model.train()
        computed = self._gradients.compute(rows, step, epoch, active)
        weights = self.weighting.weights(active)
        total = self.weighting.total(computed.losses, active)
        self.weighting.learn(computed.losses, computed.norms, active)
        grad_norm = optimizer.clip(self.model.parameters(), self.config.clip_norm)
        self._guard.note(self.optimizer, step, computed.losses, total, grad_norm)
        rate = self._update()
        self.step_number += 1
        if self.step_number % self._check_every == 0:
            self.check_finite()
        metrics = step_metrics.collect(self.model, computed, weights, active, loss=total, grad_norm=grad_norm, lr=rate)
        if rows.corpus is not None:
            metrics |= step_metrics.of_corpora(self.model, rows.corpus, self.config.corpora.names, active)
        return metrics

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of some tasks from the next step on, as population-based training does.

        The change is kept in the state, with the step at which it was made, and survives a restart. Call it on every
        rank. Raises ValueError for an unknown task, a weight that is not above 0, and where the weights are learned.
        """
        self.weighting.set(weights, self.step_number)

    def check_finite(self) -> None:
        """Raise NonFiniteLossError if any step so far had a loss or gradient that was not finite."""
        self._guard.check()

    def before_update(self, action: Callable[[], None]) -> None:
        """Have `action` called once, before parameters and moments are next overwritten: by whoever still reads them
        while the next step computes."""
        self._before_update.append(action)

    def written_by_updates_alone(self, name: str) -> bool:
        """Whether a tensor of `state` is a parameter or a moment: a forward pass does not write it, as it may any
        other."""
        kind, _, own = name.partition("/")
        return kind == "optimizer" or {"model": own, "weighting": f"weighting.{own}"}[kind] in self.parameters

    @torch.no_grad()
    def embed(self, batch: Any) -> dict[str, Tensor]:
        """Representation of each modality, (B, R), in evaluation mode; zero where the modality is not present."""
        return embedding.embed(self.model, Batch.of(batch, self.device, self.dtype))

    @torch.no_grad()
    def embed_jointly(self, batch: Any) -> dict[str, Tensor]:
        """Representation (B, R) of each row as a whole, by the task that learns it (`Task.joint`), in evaluation mode;
        zero where no modality is present. Empty where no task learns one."""
        present = Batch.of(batch, self.device, self.dtype).present
        representations = self.embed(batch)
        present_MB = torch.stack([present[m] for m in self.config.modalities])
        found = {name: self.model.task(name).joint(representations, present_MB) for name in self.model.tasks}
        return {name: z * present_MB.any(0).unsqueeze(1) for name, z in found.items() if z is not None}

    @torch.no_grad()
    def project(self, batch: Any) -> dict[str, Tensor]:
        """Unit vectors (B, P) in the space that modalities share, in evaluation mode; empty for a model without
        projection."""
        return embedding.project(self.model, Batch.of(batch, self.device, self.dtype))

    @torch.no_grad()
    def checksum(self) -> int:
        """A number of 63 bits that differs where any bit of a parameter does; equal on all ranks. Waits for the
        device."""
        sums = []
        for parameter in self.parameters.values():
            bits = parameter.detach().contiguous().view(torch.int64 if parameter.element_size() == 8 else torch.int32)
            # Weighed by odd numbers, so that two numbers that changed places are seen as well.
            odd = torch.arange(bits.numel(), device=bits.device, dtype=torch.int64) * 2 + 1
            sums.append((bits.flatten() * odd).sum())
        digest = hashlib.blake2b(torch.stack(sums).cpu().numpy().tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-able rest): all that a run needs to continue, the same on every rank and for any number of
        ranks.

        The tensors are the live ones: copy or write them before the next step. Raises NonFiniteLossError rather than
        hand out a state that a bad step has touched.
        """
        self.check_finite()
        tensors = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        tensors |= {f"weighting/{name}": x for name, x in self.weighting.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = value
        meta: dict[str, Any] = {
            "config": self.config.to_dict(),
            "widths": self.widths,
            "steps_per_epoch": saved_state.written(self.steps_per_epoch),
            "step_number": self.step_number,
            "weights": self.weighting.state(),
            "tasks": {name: saved for name in self.model.tasks if (saved := self.model.task(name).saved()) is not None},
        }
        return {name: x.detach() for name, x in tensors.items()}, meta

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError, before anything is changed, naming what differs: identity fields of
        the configuration, widths, steps per epoch, missing or softplus tensors, shapes, dtypes; or what the rest lacks.

        Task weights are those the saved run had at that step, except where this configuration changes them.
        """
        saved_state.check_meta(meta, self.config, self.widths, self.steps_per_epoch)
        own, _ = self.state()
        saved_state.check_tensors(tensors, own)
        tasks = [self.model.task(name) for name in self.model.tasks]
        restored = saved_state.check_tasks(meta, tasks)
        if "weights" in meta:  # states from before weights could change have none: theirs are the configured ones
            self.weighting.restore(meta["weights"], meta["step_number"])
        self._let_read()
        for name, x in own.items():
            x.copy_(tensors[name])
        self.step_number = meta["step_number"]
        for task in tasks:
            if task.name in restored:
                task.restore(restored[task.name])

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
        names = self.config.corpora.names
        if (rows.corpus is None) == bool(names):
            told = "none" if rows.corpus is None else "a corpus of each row"
            expected = f"numbers of {', '.join(names)} (corpora.names)" if names else "none: corpora.names is empty"
            raise ValueError(f"batch corpus: found {told}, expected {expected}")
        return rows.padded(local)

    def _let_read(self) -> None:
        while self._before_update:
            self._before_update.pop()()

    def _update(self) -> float:
        config = self.config
        rate = learning_rate(config.optimizer, self.step_number, self.steps_per_epoch, config.epochs)
        optimizer.set_rate(self.optimizer, rate / config.optimizer.lr)
        self._let_read()
        self.optimizer.step()
        self.weighting.constrain()
        return rate

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
            for i, corpus in enumerate(self.config.corpora.names if module.corpora else ()):
                own = by_corpus(modality, corpus)
                if own in given:  # not where the corpus lacks the modality
                    module.set_corpus(i, own, *given[own])
