"""What a sweep may draw for a task: ranges of numbers, options, and where in the configuration they go."""

from dataclasses import dataclass
from typing import Any

from conclugen.fields import finite, require


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; equal ends fix the value.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Drawn on a logarithmic scale; both ends are then above 0.
        points: Values that a grid takes of it, evenly spaced on its scale.
    """

    low: float
    high: float
    log: bool = True
    points: int = 3

    def __post_init__(self) -> None:
        require(finite(self.low) and finite(self.high) and self.low <= self.high, "range", self, "finite low <= high")
        require(self.low > 0 or not self.log, "range.low", self.low, "a number above 0, or log: false")
        require(self.points >= 1, "range.points", self.points, "1 or more")

    @property
    def grid(self) -> tuple[float, ...]:
        """The values that a grid takes, ends exactly."""
        if self.low == self.high:
            return (self.low,)
        if self.points == 1:
            return ((self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2,)
        shares = [k / (self.points - 1) for k in range(1, self.points - 1)]
        inner = [
            self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
            for share in shares
        ]
        return (self.low, *inner, self.high)


@dataclass(frozen=True)
class Searched:
    """A parameter that a sweep draws where its task is active.

    Attributes:
        name: Of the search space's field (`--space.NAME`), unlike any other task's.
        path: Dotted name in the configuration, such as `tasks.NAME.FIELD`.
        published: Options (a tuple) or range of the space of published ranges, which is also the field's default.
        laptop: The same of the space for small runs.
        help: The field's description.
        recipes: Drawn under these alone; empty: under each.
        begins: The parameter is the first epoch (0-based) in which the task counts.
        ablation: Value in ablations, where it has a field in their sizes; None: it has none, the recipe's value stays.
    """

    name: str
    path: str
    published: tuple[Any, ...] | Range
    laptop: tuple[Any, ...] | Range
    help: str
    recipes: tuple[str, ...] = ()
    begins: bool = False
    ablation: Any = None

    def __post_init__(self) -> None:
        for field in ("published", "laptop"):
            options = getattr(self, field)
            fits = isinstance(options, Range) or (isinstance(options, tuple) and len(options) > 0)
            require(fits, f"{self.name}.{field}", options, "a Range or a tuple of options")
