"""Tasks that are trained together, written as one text: `A+B:10`, or `share=A:0.5+B:0.5`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conclugen import fields
from conclugen.config import DEFAULT_PRESET
from conclugen.presets import PRESETS
from conclugen.tasks import registry

METHOD = PRESETS[DEFAULT_PRESET][1]
"""The tasks of the published method, in order."""
WEIGHED = ":"
_FILES = (".yaml", ".yml", ".json", ".toml")


def names_file(text: str) -> bool:
    """Whether a text is a file's name rather than tasks."""
    return "/" in text or text.endswith(_FILES)


@dataclass(frozen=True)
class System:
    """Tasks that are trained together. weights: of those that don't keep the recipe's; weighting as `tasks` has it."""

    name: str
    tasks: tuple[str, ...]
    weights: dict[str, float]
    weighting: str = "static"

    @classmethod
    def parse(cls, text: str, field: str = "systems") -> System:
        """`NAME+NAME`, each with a weight where it is not the recipe's, `NAME:10+NAME`; behind `WEIGHTING=`, weighted
        in another way. Raises ValueError, naming the field and the remedy, for any other text."""
        weighting, _, rest = text.rpartition("=")
        weights: dict[str, float] = {}
        tasks = []
        for part in rest.split("+"):
            name, mark, weight = part.partition(WEIGHED)
            fields.choose(field, name, registry.registered())
            tasks.append(name)
            if mark:
                try:
                    weights[name] = float(weight)
                except ValueError:
                    raise ValueError(f"{field}: {part!r}: the weight must be a number, as in {name}:0.5") from None
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"{field}: {text!r} names a task twice")
        ordered = tuple(name for name in registry.registered() if name in tasks)
        return cls(text, ordered, weights, weighting or "static")

    @property
    def overrides(self) -> dict[str, Any]:
        """What makes these tasks of those of the default preset (`presets.build`)."""
        own = {name: {"weight": self.weights[name]} if name in self.weights else {} for name in self.tasks}
        return {**{name: None for name in METHOD if name not in own}, **own, "weighting": self.weighting}
