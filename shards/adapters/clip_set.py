"""What an adapter finds: clips, names it had to refuse, and how complete the set is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.format.schema import Label

_NAMED = 5


@dataclass(frozen=True)
class Clip:
    """One clip of a data set.

    Attributes:
        key: Unique in the set, as the set names it.
        video: Path relative to the source folder.
        audio: Path of its sound, where that is a file of its own; None: the video's.
        start, end: Seconds within the video; None: the whole of it.
        labels: Name of a `Label` -> value: a class by name or number, a float, a list of them; None, or no entry: it
            is not labelled.
        group: Whose clip it is (the speaker); splits keep a group together.
        split: Official part of the set, such as train; None: there are none.
        transcript: What is said in the clip.
        meta: Further strings to keep, of the names that the set lists in `ClipSet.meta`.
    """

    key: str
    video: str
    audio: str | None = None
    start: float | None = None
    end: float | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    split: str | None = None
    transcript: str | None = None
    meta: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A clip that can't be used, by name, with a reason of `shards.media.limits.REASONS`."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True)
class Count:
    """How many of something there should be, how many there are, and the names of those known to be missing.
    remedy: what to do about these, where more than to bring them. similar: of such a name, what is there instead."""

    what: str
    expected: int
    found: int
    missing: Sequence[str] = ()
    similar: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""

    @property
    def complete(self) -> bool:
        return self.found >= self.expected and not self.missing

    def __str__(self) -> str:
        line = f"{self.what}: expected {self.expected:,}, found {self.found:,}"
        if self.missing:
            named = ", ".join(map(self._named, self.missing[:_NAMED]))
            more = f" and {len(self.missing) - _NAMED:,} more" if len(self.missing) > _NAMED else ""
            line += f"; missing: {named}{more}" + (f" ({self.remedy})" if self.remedy else "")
        return line

    def _named(self, name: str) -> str:
        return f"{name} (there is {self.similar[name]})" if name in self.similar else name

    def absent(self) -> list[Rejected]:
        """What is missing, by name."""
        there = {name: f"; there is {other}" for name, other in self.similar.items()}
        why = f"{self.what}: it is not there"
        return [Rejected(name, "missing", why + there.get(name, "")) for name in self.missing]


@dataclass
class ClipSet:
    """A data set's clips in the order of their keys, and what is to be said about it.

    Attributes:
        labels: Name, kind and classes of each label that clips have.
        rejected: Clips that can't be used, by name; the build continues without them and ends with status 3.
        counts: How many there should be; fewer stop the build, unless --allow-incomplete is given: then what is missing
            is warned of, and listed by name beside what is rejected.
        left_out: Clips that the set's own traps or the published protocol exclude, named with the reason; they count
            neither as found nor as missing.
        grouped: Whether clips have groups.
        how: Lines printed before the build: what was understood of tables and texts (encodings, separators, rows that
            are there twice).
        doubts: Lines printed as warnings: what may be meant otherwise.
        meta: Names of further strings that clips have.
        rendered: Whether the clips are of `shards.corpus`; whoever reads the set finds out.
    """

    name: str
    source: Path
    labels: tuple[Label, ...]
    clips: list[Clip]
    rejected: list[Rejected] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    grouped: bool = True
    how: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    meta: tuple[str, ...] = ()
    rendered: bool = False

    @property
    def complete(self) -> bool:
        return all(count.complete for count in self.counts)

    @property
    def absent(self) -> list[Rejected]:
        """What is missing of the set, each by its name once."""
        found = {item.name: item for count in reversed(self.counts) for item in reversed(count.absent())}
        return list(reversed(found.values()))

    def report(self) -> list[str]:
        """Lines to print: counts, and what is left out."""
        lines = [str(count) for count in self.counts]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            lines.append(f"left out ({reason}): {', '.join(names[:_NAMED])}{more}")
        return lines


class IncompleteError(ValueError):
    """A data set of which something is missing."""

    def __init__(self, clips: ClipSet):
        lines = [str(count) for count in clips.counts if not count.complete]
        super().__init__(
            f"{clips.source} is not complete: {'; '.join(lines)}; add what is missing, or continue with what is there: "
            "--allow-incomplete"
        )
