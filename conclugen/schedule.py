"""AdamW's configuration and its learning rate as a pure function of the optimiser step."""

import math
from dataclasses import dataclass, field
from fractions import Fraction

from conclugen.fields import IDENTITY, SCHEDULABLE, choose, finite, require

SCHEDULES = ("restarts", "cosine")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up, then cosine annealing with warm restarts (2017).

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decay of the weights, decoupled from the gradient.
        decay: "all" decays every parameter; "matrices" spares biases, normalisation and temperatures.
        beta1: Decay of the gradient's running mean.
        beta2: Decay of the squared gradient's running mean.
        eps: Added to the root of the squared gradient's mean.
        schedule: "restarts" (published), or "cosine": one descent to `min_lr` at the end of the run, with a warm-up of
            at most a tenth of it.
        warmup_epochs: Epochs over which the rate grows from `warmup_start` x lr to lr.
        warmup_start: Share of lr at the first step.
        restart_epochs: Length T0 of the first cycle, in epochs.
        restart_factor: Each cycle is so many times as long as the last.
        min_lr: Rate at the end of each cycle.
        peak_decay: Factor on the peak at each restart; 1 leaves it.
    """

    lr: float = field(default=2e-5, metadata=SCHEDULABLE)
    weight_decay: float = field(default=1e-3, metadata=SCHEDULABLE)
    decay: str = field(default="all", metadata=IDENTITY)
    beta1: float = field(default=0.9, metadata=SCHEDULABLE)
    beta2: float = field(default=0.999, metadata=SCHEDULABLE)
    eps: float = field(default=1e-8, metadata=SCHEDULABLE)
    schedule: str = field(default="restarts", metadata=SCHEDULABLE)
    warmup_epochs: float = field(default=5.0, metadata=SCHEDULABLE)
    warmup_start: float = field(default=0.1, metadata=SCHEDULABLE)
    restart_epochs: float = field(default=20.0, metadata=SCHEDULABLE)
    restart_factor: int = field(default=2, metadata=SCHEDULABLE)
    min_lr: float = field(default=1e-6, metadata=SCHEDULABLE)
    peak_decay: float = field(default=1.0, metadata=SCHEDULABLE)

    def __post_init__(self) -> None:
        require(finite(self.lr) and self.lr > 0, "optimizer.lr", self.lr, "a number above 0")
        require(0 <= self.min_lr <= self.lr, "optimizer.min_lr", self.min_lr, f"0 to lr ({self.lr})")
        require(
            finite(self.weight_decay) and self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, ">= 0"
        )
        choose("optimizer.decay", self.decay, ("all", "matrices"))
        choose("optimizer.schedule", self.schedule, SCHEDULES)
        require(0 <= self.beta1 < 1, "optimizer.beta1", self.beta1, "0 <= beta1 < 1")
        require(0 <= self.beta2 < 1, "optimizer.beta2", self.beta2, "0 <= beta2 < 1")
        require(self.eps > 0, "optimizer.eps", self.eps, "a number above 0")
        require(
            self.warmup_epochs >= 0 and finite(self.warmup_epochs),
            "optimizer.warmup_epochs",
            self.warmup_epochs,
            "0 or more epochs",
        )
        require(0 < self.warmup_start <= 1, "optimizer.warmup_start", self.warmup_start, "0 < start <= 1")
        require(
            self.restart_epochs > 0 and finite(self.restart_epochs),
            "optimizer.restart_epochs",
            self.restart_epochs,
            "a number of epochs above 0",
        )
        require(self.restart_factor >= 1, "optimizer.restart_factor", self.restart_factor, "1 or more")
        require(0 < self.peak_decay <= 1, "optimizer.peak_decay", self.peak_decay, "0 < decay <= 1")


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int | Fraction, epochs: int) -> float:
    """Learning rate of optimiser step `step` (0-based) of a run of `epochs`. Restarts are counted from the end of the
    warm-up."""
    single = config.schedule == "cosine"
    warmup_epochs = min(config.warmup_epochs, epochs / 10) if single else config.warmup_epochs
    warmup = round(warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (config.warmup_start + (1 - config.warmup_start) * step / warmup)
    position = step - warmup
    if single:
        share = min(1.0, position / max(1, math.floor(epochs * steps_per_epoch) - warmup))
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2
    length = max(1, round(config.restart_epochs * steps_per_epoch))
    cycle = 0
    while position >= length:
        position -= length
        length *= config.restart_factor
        cycle += 1
    peak = max(config.min_lr, config.lr * config.peak_decay**cycle)
    return config.min_lr + (peak - config.min_lr) * (1 + math.cos(math.pi * position / length)) / 2
