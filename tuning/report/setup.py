"""The box of set-up of a report: which data and code the results are of, by which command, and what they cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ray_jobs.provenance import DATA_SETS, DIGEST, ENCODERS, STAMP
from ray_jobs.tracking.journal import read_records
from tuning.ledger import Record
from tuning.nested_runs import JOURNAL
from tuning.report.page import Block, Heading
from tuning.report.systems import Results
from tuning.report.tables import Entry, Line, Table

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Setup:
    """tags: of the run's journal, as last written."""

    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Setup:
        """Of a folder whose journal may lack them, or be missing."""
        tags: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            for record, _ in read_records(folder / JOURNAL):
                if record["kind"] == "tags":
                    tags |= record["values"]
        return cls(tags)

    @property
    def stamp(self) -> str:
        """What everything made of the results says, where the data is of rendered faces."""
        return STAMP if self.tags.get("rendered") else ""

    def blocks(self, results: Results, records: Sequence[Record]) -> Iterator[Block]:
        """The box."""
        if not records:
            return
        yield Heading("Set-up", "setup")
        lines = tuple(Line(name, (Entry(text, "words"),)) for name, text in self._facts(results, records).items())
        yield Table("How it was made", "", (("",),), lines)

    def _facts(self, results: Results, records: Sequence[Record]) -> dict[str, str]:
        digests = {name.removeprefix(DIGEST): text for name, text in self.tags.items() if name.startswith(DIGEST)}
        if "manifest_digest" in self.tags:
            digests.setdefault(self.tags.get("dataset", "data"), self.tags["manifest_digest"])
        costs = {
            name: sum(record.cost.get(name, 0.0) for record in records)
            for name in ("seconds", "cpu_seconds", "train_seconds", "measure_seconds")
        }
        hours = (costs["seconds"] or costs["train_seconds"] + costs["measure_seconds"]) / 3600
        facts = {f"data, {name}": f"digest {digest}" for name, digest in digests.items()} or {"data": _UNKNOWN}
        facts |= {"encoders": self.tags[ENCODERS]} if ENCODERS in self.tags else {}
        facts |= {"data sets": self.tags[DATA_SETS]} if DATA_SETS in self.tags else {}
        facts |= {
            "commit": self.tags.get("commit", _UNKNOWN),
            "command": self.tags.get("command", _UNKNOWN),
            "cost": f"{hours:.2f} hours of runs one after another, {costs['cpu_seconds'] / 3600:.2f} CPU hours",
        }
        if results.seeds:
            facts["seeds"] = ", ".join(map(str, results.seeds))
        return facts

    def about(self, results: Results) -> str:
        """What a caption in a paper says of every table: units tested, and seeds."""
        units = [
            f"{dataset}: {len(own)} {results.unit(dataset)}{'s' * (len(own) != 1)}"
            for dataset in results.datasets
            if (own := results.tested(dataset))
        ]
        seeds = results.seeds
        told = [f"Tested on {'; '.join(units)}."] if units else []
        told += [f"Pretraining seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}."] if seeds else []
        return " ".join([*told, *filter(None, [self.stamp])])
