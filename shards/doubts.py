"""What may be meant otherwise in a data set: looked for before any work starts, and told as warnings.

Nothing here is wrong enough to be refused: names that differ in case or spaces only, classes of a handful of rows,
parts of a split without a class, or of so few speakers that no test can tell anything. Found out after days of training
these cost a week, found out before they cost a look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.format.schema import Label
from shards.names import fold, looks_missing

HANDFUL = 5  # rows of a class that can neither be learnt nor judged by
_SIGNIFICANT = 0.05
_NAMED = 5
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class Samples:
    """What is known of n samples by name. classes: label -> the classes of each sample (none, one, or several of a
    multilabel); groups, parts: speaker and part of the split of each, None where they have none at all."""

    count: int
    labels: Sequence[Label] = ()
    classes: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    groups: Sequence[str | None] | None = None
    parts: Sequence[str | None] | None = None
    texts: int | None = None

    def by_part(self) -> dict[str, list[int]]:
        """Part -> numbers of its samples, in the order of their first ones."""
        numbers: dict[str, list[int]] = {}
        for number, part in enumerate(self.parts or ()):
            if part is not None:
                numbers.setdefault(part, []).append(number)
        return numbers

    def lines(self) -> list[str]:
        """What the samples are, in words."""
        lines = []
        for label in self.labels:
            if label.name not in self.classes:
                lines.append(f"label {label.name} ({label.kind}): {label.width} number(s) a sample")
                continue
            counts = _counts(self.classes[label.name], range(self.count))
            without = sum(not classes for classes in self.classes[label.name])
            listed = ", ".join(f"{name} {counts[name]}" for name in label.classes[:50])
            more = f", and {len(label.classes) - 50} more classes" if len(label.classes) > 50 else ""
            missing = f"; {without} without" if without and label.kind == "class" else ""
            lines.append(f"label {label.name} ({label.kind}): {listed}{more}{missing}")
        if self.groups is not None:
            sizes = Counter(group for group in self.groups if group is not None)
            lines.append(f"speakers: {len(sizes)} ({_listed(sizes)})" if sizes else "speakers: none")
        for part, numbers in self.by_part().items():
            speakers = {self.groups[n] for n in numbers} - {None} if self.groups is not None else set()
            lines.append(f"part {part}: {len(numbers)}" + (f" of {len(speakers)} speakers" if speakers else ""))
        if self.texts is not None:
            lines.append(f"transcripts: {self.texts} of {self.count}")
        return lines

    def doubts(self) -> list[str]:
        """What may be meant otherwise."""
        found = []
        parts = self.by_part()
        for label in self.labels:
            if label.name not in self.classes:
                continue
            classes = self.classes[label.name]
            counts = _counts(classes, range(self.count))
            found += of_classes(label, counts, self.count)
            found += of_parts(label.name, {part: _counts(classes, numbers) for part, numbers in parts.items()})
            if label.kind == "class":
                found += _without(f"label {label.name}", sum(not c for c in classes), self.count)
        if self.groups is not None:
            groups = Counter(group for group in self.groups if group is not None)
            found += of_names("speakers", groups)
            found += _without("speaker", self.count - groups.total(), self.count)
            if parts:
                members = {part: {self.groups[n] for n in numbers} - {None} for part, numbers in parts.items()}
                found += of_groups({part: {str(m) for m in names} for part, names in members.items()})
            elif groups:
                found += of_groups({"": set(groups)})
        if self.parts is not None and parts:
            found += of_names("parts", {part: len(numbers) for part, numbers in parts.items()})
            found += _without("part", self.count - sum(map(len, parts.values())), self.count)
        return found


def classes_of(label: Label, values: Iterable[Any]) -> list[tuple[str, ...]]:
    """Classes of each sample, of values as `Label.encode` gives them; `label` has classes."""
    if label.kind == "class":
        return [() if value < 0 else (label.classes[value],) for value in values]
    rows = (np.atleast_1d(np.asarray(value, np.float64)) for value in values)
    return [tuple(name for name, value in zip(label.classes, row, strict=True) if value > 0) for row in rows]


def of_classes(label: Label, counts: Mapping[str, int], rows: int) -> list[str]:
    """Doubts about a label's classes, by how many rows each has."""
    what = f"label {label.name}"
    known = {name: counts.get(name, 0) for name in label.classes}
    found = of_names(f"{what}: classes", {name: count for name, count in known.items() if count})
    few = {name: count for name, count in known.items() if 0 < count <= HANDFUL}
    if few and len(few) == len(known):
        found.append(f"{what}: no class has more than {_rows(max(few.values()))}: too few to learn them or to judge by")
    elif few:
        found.append(f"{what}: too few rows to learn or to judge by: {_listed(few)}")
    empty = [name for name, count in known.items() if not count]
    if empty:
        numbered = " (classes that are numbers count from 0; list names if yours do not)" if empty[0] == "0" else ""
        found.append(f"{what}: no row of {', '.join(map(repr, empty[:_NAMED]))}{numbered}")
    if label.kind == "class" and len(known) > max(20, rows / 3):
        found.append(f"{what}: {len(known)} classes in {rows} rows: is it a name, and no class?")
    return found


def of_parts(label: str, counts: Mapping[str, Mapping[str, int]], part_is: str = "part") -> list[str]:
    """Classes that one part of a split has and another has not. counts: part -> class -> rows."""
    classes = list(dict.fromkeys(name for own in counts.values() for name, count in own.items() if count))
    found = []
    for part, own in counts.items():
        absent = [name for name in classes if not own.get(name)]
        if absent and len(absent) < len(classes):
            names = ", ".join(map(repr, absent[:_NAMED])) + (", ..." if len(absent) > _NAMED else "")
            found.append(
                f"{part_is} {part!r} has no row of {label} {names}: scores of it are of the other classes alone"
            )
    return found


def of_groups(groups: Mapping[str, Collection[str]], part_is: str = "part") -> list[str]:
    """Parts of few groups (speakers), and groups in several parts. groups: part -> its groups; "" is all the data.
    part_is: what a part is called."""
    found = []
    for part, members in groups.items():
        least = 2.0 ** (1 - len(members))
        if len(members) > 0 and least > _SIGNIFICANT:
            where = f"{part_is} {part!r} has" if part else "there are"
            speakers = "1 speaker" if len(members) == 1 else f"{len(members)} speakers"
            found.append(
                f"{where} {speakers}: over so few no difference between systems can be significant (a sign-flip test "
                f"reaches p {min(least, 1):.2g} at best, 6 speakers reach 0.031)"
            )
    holders: dict[str, list[str]] = {}
    for part, members in groups.items():
        for member in members:
            holders.setdefault(member, []).append(part)
    shared = {member: parts for member, parts in holders.items() if len(parts) > 1}
    if shared:
        example = next(iter(sorted(shared)))
        found.append(
            f"{len(shared)} of {len(holders)} groups are in more than one {part_is}, such as speaker {example!r} in "
            f"{' and '.join(shared[example])}: scores measure in part how well speakers are known"
        )
    return found


def of_names(what: str, counts: Mapping[str, int]) -> list[str]:
    """Names that differ in case, spaces or hyphens only, and names that look like a missing value."""
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(fold(name), []).append(name)
    found = []
    for names in [names for names in alike.values() if len(names) > 1][:_NAMED]:
        names.sort(key=lambda name: (-counts[name], name))
        listed = " and ".join(f"{name!r} ({_rows(counts[name])})" for name in names)
        found.append(f"{what} {listed} differ in case, spaces or hyphens only: are they one?")
    for name in [name for name in counts if looks_missing(name)][:_NAMED]:
        found.append(f"{what}: {name!r} ({_rows(counts[name])}) looks like a missing value; leave such fields empty")
    return found


def _without(what: str, missing: int, rows: int) -> list[str]:
    return [f"without a {what}: {missing} of {_rows(rows)}"] if missing else []


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _counts(classes: Sequence[Sequence[str]], numbers: Iterable[int]) -> Counter[str]:
    return Counter(name for number in numbers for name in classes[number])


def _listed(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(most) - _SHOWN_NAMES} more" if len(most) > _SHOWN_NAMES else ""
    return ", ".join(f"{name} {count}" for name, count in most[:_SHOWN_NAMES]) + more
