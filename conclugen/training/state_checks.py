"""Does a saved state belong to this run? Everything is compared before anything is changed."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from conclugen.config import PretrainConfig
from conclugen.tasks.base import Task


def written(steps_per_epoch: int | Fraction) -> int | str:
    """As JSON keeps it, exactly: 3, or "149/100"."""
    return int(steps_per_epoch) if steps_per_epoch == int(steps_per_epoch) else str(steps_per_epoch)


def check_meta(
    meta: Mapping[str, Any], config: PretrainConfig, widths: Mapping[str, int], steps_per_epoch: int | Fraction
) -> None:
    """Raise ValueError naming what differs: identity fields of the configuration, widths, steps per epoch; or what is
    missing, or no count."""
    for name in ("config", "widths", "steps_per_epoch", "step_number"):
        if name not in meta:
            raise ValueError(f"saved state: {name!r} is missing")
    check_count("step_number", meta["step_number"])
    differing = PretrainConfig.from_dict(meta["config"]).differences(config)
    if differing:
        listed = "; ".join(f"{name}: saved {theirs!r}, now {mine!r}" for name, (theirs, mine) in differing.items())
        raise ValueError(f"the saved run is another one ({listed}); give the new run another name, or the saved values")
    for name, own in (("widths", dict(widths)), ("steps_per_epoch", written(steps_per_epoch))):
        if meta[name] != own:
            raise ValueError(f"{name}: saved {meta[name]!r}, now {own!r}; a run continues with the data it began with")


def check_tasks(meta: Mapping[str, Any], tasks: Iterable[Task]) -> dict[str, Any]:
    """Task -> its saved state, for those that have any; raises ValueError where it is missing or can't be one.

    States of the first version have it beside the rest, under the task's name.
    """
    saved = meta.get("tasks", meta)
    if not isinstance(saved, Mapping):
        raise ValueError(f"saved state: tasks is {saved!r}, expected a mapping of task -> state")
    found = {}
    for task in tasks:
        if task.saved() is not None:
            if task.name not in saved:
                raise ValueError(f"saved state: {task.name!r} is missing")
            task.check_saved(saved[task.name])
            found[task.name] = saved[task.name]
    return found


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a whole number of at least 0."""
    if type(value) is not int or value < 0:
        raise ValueError(f"saved state: {name} is {value!r}, expected an integer from 0")


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the tensor that is missing or unknown, or differs in shape or dtype."""
    missing, softplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise ValueError(
            f"saved state: missing tensor {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    if softplus:
        raise ValueError(
            f"saved state: unknown tensor {softplus[0]!r}" + (f" and {len(softplus) - 1} more" if softplus[1:] else "")
        )
    for name, x in expected.items():
        other = found[name]
        if other.shape != x.shape or other.dtype != x.dtype:
            raise ValueError(
                f"saved state: tensor {name!r} is {other.dtype} {tuple(other.shape)}, "
                f"expected {x.dtype} {tuple(x.shape)}"
            )
