"""Where a step's time goes: each part by itself, forward and backward, from the same inputs as in the step."""

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from conclugen.batch import Batch
from conclugen.latents import Latents
from conclugen.training import optimizer
from conclugen.training.model import SHARED
from conclugen.training.pretrainer import Pretrainer


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def part_seconds(pretrainer: Pretrainer, batch: Batch) -> dict[str, float]:
    """Seconds of "heads", "projection", each task and "optimizer", measured once; parameters and queue move on."""
    model, epoch, step = pretrainer.model, pretrainer.epoch, pretrainer.step_number
    seconds: dict[str, float] = {}

    def measured(name: str, part: Callable[[], Tensor]) -> None:
        synchronize(pretrainer.device)
        begin = time.perf_counter()
        part().backward()
        synchronize(pretrainer.device)
        seconds[name] = time.perf_counter() - begin

    model.train()
    inputs, presences = model.inputs(batch), model.presences(batch)()
    presence = presences[SHARED]
    with torch.no_grad():
        representations = model.representations(inputs, batch.row, step)
        r_MBR = list(representations.values())
        z_MBP = None if model.projection is None else model.project(r_MBR, presence.local)
    leaves = {m: r.detach().requires_grad_() for m, r in representations.items()}

    def heads() -> Tensor:
        r = model.representations(model.inputs(batch), batch.row, step)
        return torch.stack([x.float().mean() for x in r.values()]).sum()

    measured("heads", heads)
    if z_MBP is not None:
        measured("projection", lambda: model.project(list(leaves.values()), presence.local).mean())
        z_MBP = z_MBP.detach().requires_grad_()
    latents = Latents(model.config.modalities, inputs, leaves, z_MBP, presence, step, epoch)
    lower = pretrainer.config.precision == "bfloat16"
    for name in model.shared_tasks:
        with torch.autocast(pretrainer.device.type, torch.bfloat16, enabled=lower and model.task(name).lower_precision):
            measured(name, functools.partial(model.tasks[name], latents))
    synchronize(pretrainer.device)
    begin = time.perf_counter()
    optimizer.clip(model.parameters(), pretrainer.config.clip_norm)
    pretrainer.optimizer.step()
    synchronize(pretrainer.device)
    seconds["optimizer"] = time.perf_counter() - begin
    return seconds
