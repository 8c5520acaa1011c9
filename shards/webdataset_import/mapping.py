"""How the members of an imported sample become columns, labels and texts, and how a command line says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conclugen.common.names import did_you_mean
from shards.format.schema import LABEL_KINDS
from shards.options import CheckJob, IndexJob


@dataclass(frozen=True)
class Source:
    """Where in a sample a value lies: a member's extension, and the path within a JSON member (`json#labels.mood`)."""

    extension: str
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Source:
        extension, _, path = text.partition("#")
        if not extension:
            raise ValueError(f"source {text!r}: expected EXTENSION or EXTENSION#PATH, such as cls or json#speaker")
        return cls(extension.lower(), tuple(path.split(".")) if path else ())

    def __str__(self) -> str:
        return self.extension + (f"#{'.'.join(self.path)}" if self.path else "")


@dataclass(frozen=True)
class LabelSource:
    """A label of an imported shard: its kind, where it lies, and its classes (found in the data, if none are given)."""

    name: str
    source: Source
    kind: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemberMapping:
    """How the members of an imported sample become columns (name -> extension; none: every `.npy`), labels and texts.

    nan: "all" - a row is missing where it is wholly NaN, and refused where it is partly NaN; "any" - missing in both.
    encoding: of text members without a mark (None: UTF-8).
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    modalities: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: tuple[LabelSource, ...] = ()
    group: Source | None = None
    text: Source | None = None
    meta: Mapping[str, Source] = field(default_factory=dict)
    nan: str = "all"
    encoding: str | None = None

    @classmethod
    def of(cls, job: IndexJob | CheckJob) -> MemberMapping:
        """As the options of a command say. ValueError for a label or a source that cannot be understood."""
        return cls(
            columns=job.column,
            modalities=job.modality if isinstance(job, IndexJob) else {},
            labels=tuple(parse_label(text) for text in job.label),
            group=None if job.group is None else Source.parse(job.group),
            text=None if job.text is None else Source.parse(job.text),
            meta={name: Source.parse(text) for name, text in job.meta.items()},
            nan=job.nan_row_missing,
            encoding=job.encoding,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "columns": dict(self.columns),
            "labels": {label.name: [str(label.source), label.kind] for label in self.labels},
            "group": None if self.group is None else str(self.group),
            "text": None if self.text is None else str(self.text),
            "meta": {name: str(source) for name, source in self.meta.items()},
            "nan": self.nan,
            **({} if self.encoding is None else {"encoding": self.encoding}),
        }


def split_assignment(option: str, text: str) -> tuple[str, str]:
    """NAME=VALUE; ValueError otherwise."""
    name, separator, value = text.partition("=")
    if not (separator and name and value):
        raise ValueError(f"{option} {text!r}: expected NAME=VALUE")
    return name, value


def parse_label(text: str) -> LabelSource:
    """NAME=SOURCE:KIND[:CLASS,CLASS]; ValueError otherwise."""
    name, rest = split_assignment("--label", text)
    source, _, rest = rest.partition(":")
    kind, _, classes = rest.partition(":")
    if kind not in LABEL_KINDS:
        raise ValueError(f"--label {text!r}: kind is {kind!r}, {did_you_mean(kind, LABEL_KINDS)}")
    return LabelSource(name, Source.parse(source), kind, tuple(classes.split(",")) if classes else ())
