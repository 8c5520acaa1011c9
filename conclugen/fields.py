"""Fields of frozen configuration dataclasses: their kinds, and checks that name the field.

They are read and written as those of every job are: `conclugen.common.options`.

Every field carries a kind in its metadata:
`identity` decides what is learned and must agree when a run is resumed, `schedulable` may change on the way (the change
is logged), `free` concerns only where and how fast the run goes.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from conclugen.common.names import nearest

IDENTITY = {"kind": "identity"}
SCHEDULABLE = {"kind": "schedulable"}
FREE = {"kind": "free"}


def choose(field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{field}: unknown value {value!r}{nearest(value, names)}; allowed: {', '.join(names)}")


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise ValueError naming the field, the value found and what is expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{field}: found {value!r}, expected {expected}")


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def leaves(config: Any, path: str = "", kind: str = "identity") -> Iterator[tuple[str, str, Any]]:
    """(dotted name, kind, plain value) of each leaf field. An absent nested configuration is a leaf of value None."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{path}.{field.name}" if path else field.name
        field_kind = field.metadata.get("kind", kind)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, name, field_kind)
        else:
            yield name, field_kind, list(value) if isinstance(value, tuple) else value
