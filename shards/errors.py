"""What goes wrong with shards, by name: structural faults stop, corrupt samples are counted and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# What is wrong with a sample, as a number for arrays (0: nothing) and in words.
CHECKSUM_DIFFERS, PRESENCE_DIFFERS = 1, 2
REASONS = {
    CHECKSUM_DIFFERS: "checksum differs from the index",
    PRESENCE_DIFFERS: "presence in the index and NaN in the payload disagree",
}


UNREADABLE = "cannot be read"  # begins the problem where the storage gave an error, which may pass


class ShardError(ValueError):
    """A shard, index or manifest that is not what its manifest says. Reading stops; no value of it is used."""

    def __init__(
        self,
        shard: str,
        problem: str,
        *,
        sample: str | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.shard, self.problem, self.sample, self.remedy = shard, problem, sample, remedy
        self.expected, self.found = expected, found
        parts = [f"shard {shard!r}"]
        if sample is not None:
            parts.append(f"sample {sample!r}")
        message = f"{', '.join(parts)}: {problem}"
        if expected is not None or found is not None:
            message += f" (expected {expected}, found {found})"
        if remedy:
            message += f". {remedy}"
        super().__init__(message)

    @property
    def may_pass(self) -> bool:
        """Whether the storage could not be reached, so that the same read may succeed later."""
        return self.problem.startswith(UNREADABLE)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are rebuilt from positional arguments only; a Ray task must be able to hand this one back.
        return (_rebuild, (type(self), self.shard, self.problem, self.sample, self.expected, self.found, self.remedy))


def _rebuild(
    kind: type[ShardError],
    shard: str,
    problem: str,
    sample: str | None,
    expected: object,
    found: object,
    remedy: str | None,
) -> ShardError:
    return kind(shard, problem, sample=sample, expected=expected, found=found, remedy=remedy)


class ManifestError(ShardError):
    """A manifest that cannot be trusted: damaged, of another version, or at odds with itself."""


class CorruptionError(ShardError):
    """The share of corrupt samples exceeds the limit."""


@dataclass(frozen=True)
class CorruptSample:
    """One corrupt sample: its shard, key, global row number and what is wrong with it."""

    shard: str
    key: str
    row: int
    reason: str


# Before this many rows are read (or the whole selection, if smaller) a share says little: one bad row in the first
# chunk of 64 would already be 1.6 %.
_STEADY_ROWS = 100_000


@dataclass
class CorruptionLog:
    """Corrupt samples met so far, each once; raises `CorruptionError` when they exceed a share of the rows.

    The share is taken of the rows read so far, but of no fewer than `min(total_rows, 100,000)` rows and of no more
    than `total_rows`, so that neither an early bad row nor many epochs change the verdict.

    Several processes that read parts of one selection let any share pass (1) and `add` what all of them met to
    a log that they keep alike, with `rows_read` of all together: otherwise each would allow the whole share.
    """

    total_rows: int
    max_share: float
    quarantine: Callable[[CorruptSample], None] | None = None
    rows_read: int = 0
    _entries: dict[int, CorruptSample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_share <= 1.0:
            raise ValueError(f"max_corrupt_share is {self.max_share}, expected a share between 0 and 1")

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[CorruptSample]:
        return iter(self._entries.values())

    @property
    def allowed(self) -> float:
        """How many corrupt samples are allowed by now."""
        steady = min(self.total_rows, _STEADY_ROWS)
        return self.max_share * max(min(self.rows_read, self.total_rows), steady)

    def know(self, sample: CorruptSample) -> None:
        """Count a sample that an earlier start met, and leave the verdict to `check`."""
        self._entries.setdefault(sample.row, sample)

    def add(self, sample: CorruptSample) -> None:
        """Record one corrupt sample; a row met again in a later epoch counts once."""
        if sample.row in self._entries:
            return
        self._entries[sample.row] = sample
        if self.quarantine is not None:
            self.quarantine(sample)
        self.check()

    def check(self) -> None:
        """Raise CorruptionError where more samples are corrupt than allowed; it names the latest."""
        if len(self._entries) > self.allowed:
            sample = next(reversed(self._entries.values()))
            raise CorruptionError(
                sample.shard,
                f"{sample.reason}; {len(self)} corrupt samples exceed the share {self.max_share:g} of "
                f"{self.total_rows} rows",
                sample=sample.key,
                remedy="Run `conclugen verify FOLDER` to list all that is wrong; restore the shard, or raise "
                "max_corrupt_share to continue without these samples",
            )
