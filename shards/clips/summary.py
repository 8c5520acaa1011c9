"""Ends a build: manifest, quarantine list, and a summary whose counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shards import quarantine
from shards.clips.build import ShardReport
from shards.clips.plan import OWNERSHIP, BuildPlan
from shards.clips.reader import LIMITS, ClipManifest
from shards.format.manifest import written_entries
from shards.media.limits import REASONS


@dataclass(frozen=True)
class BuildSummary:
    """found = written + sum(quarantined); seconds: of work, summed over shards; resumed: shards of an earlier run;
    missing: clips that the set names, that are not there, and that may be missing."""

    name: str
    found: int
    written: int
    shards: int
    bytes: int
    quarantined: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: int = 0
    missing: int = 0

    @property
    def exit_status(self) -> int:
        return quarantine.exit_status(self.quarantined)

    def lines(self, out: Path) -> list[str]:
        """For people."""
        refused = sum(self.quarantined.values())
        lines = [f"{self.name}: {self.found} clips found = {self.written} written + {refused} quarantined"]
        lines += quarantine.lines(out, self.quarantined, REASONS)
        if self.missing:
            lines.append(f"  {self.missing:>8} missing, as --allow-incomplete allows: {out / quarantine.FILE_NAME}")
        lines += [f"  {count:>8} {name}" for name, count in sorted(self.counts.items())]
        size = f"{self.bytes / 2**20:.1f} MiB in {self.shards} shard(s)"
        return [*lines, f"{out}: {size}" + (f", {self.resumed} from an earlier run" if self.resumed else "")]


def finish(plan: BuildPlan, reports: Sequence[ShardReport], resumed: int = 0) -> BuildSummary:
    """Write `quarantine.jsonl`, `manifest.parquet` (only if clips were written) and, last, `summary.json`.

    reports: of all tasks, in their order. Raises RuntimeError where the counts do not add up: a clip was lost; and
    where a shard is not the one that its report is of, OwnershipLostError where the folder is another build's:
    nothing is listed then.
    """
    assert [report.shard for report in reports] == [task.name for task in plan.tasks]
    entries, missing = (
        [{"key": None, "source": item.name, "reason": item.reason, "message": item.message} for item in items]
        for items in (plan.rejected, plan.missing)
    )
    entries += [dict(item) for report in reports for item in report.quarantined]
    written = sum(report.written for report in reports)
    if written + len(entries) != plan.found:
        raise RuntimeError(f"{plan.found} clips were found, but {written} written and {len(entries)} quarantined")
    quarantined = quarantine.write_list(plan.out, entries, missing)
    names = [report.shard for report in reports if report.written]
    OWNERSHIP.check(plan.out, plan.digest)
    if names:
        info = {"set": plan.name, "plan": plan.digest, LIMITS: plan.identity["limits"]}
        info |= {"rendered": True} if plan.rendered else {}
        written_as = {report.shard: report.content for report in reports if report.digest == plan.digest}
        manifest = ClipManifest.assemble(plan.out, written_entries(ClipManifest, plan.out, names, written_as), info)
        if manifest.rows != written:
            raise RuntimeError(f"{written} clips were written, but the shards hold {manifest.rows}")
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    summary = BuildSummary(
        plan.name,
        plan.found,
        written,
        len(names),
        sum(report.bytes for report in reports),
        quarantined,
        dict(counts),
        round(sum(report.seconds for report in reports), 3),
        resumed,
        len(missing),
    )
    quarantine.write_summary(plan.out, asdict(summary))
    return summary
