"""One case: damage a data set, read it, verify it, repair it, all within bounds of time and memory."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ShardError
from shards.planning.view import View
from shards.webdataset_import.command import index_folder
from tests.campaigns.shard_fuzz import sealed  # noqa: F401  (registers its kinds)
from tests.campaigns.shard_fuzz.corruptions import KINDS, Damage
from tests.campaigns.shard_fuzz.judge import REFUSED, bounded, check, judge, judge_repair
from tests.campaigns.shard_fuzz.targets import MAPPING, VIEW, Target, generator

SECONDS, MEMORY = 60.0, 1 << 30
OUTCOMES = ("exact", "refused", "quarantined", "told by verify")


@dataclass
class Result:
    """What became of one case. outcome: one of OUTCOMES, or "defect"."""

    seed: int
    case: int
    kind: str
    target: str
    note: str
    outcome: str
    repaired: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_case(seed: int, case: int, targets: list[Target]) -> tuple[str, Target, Damage]:
    """Kinds take turns, so that every one is met equally often; data set and place are drawn."""
    rng = generator(seed, case)
    kinds = list(KINDS)
    kind = kinds[case % len(kinds)]
    function, names = KINDS[kind]
    target = rng.choice([target for target in targets if target.name in names])
    return kind, target, function(rng, target)


def run_case(seed: int, case: int, targets: list[Target], folder: Path, repair: bool, memory: int = MEMORY) -> Result:
    """Run a case in `folder`, which must not exist. repair: try `repair` afterwards as well."""
    kind, target, damage = plan_case(seed, case, targets)
    result = Result(seed, case, kind, target.name, damage.note, "defect")
    try:
        _write(folder, {**target.files, **damage.files})
        with bounded(SECONDS, memory):
            result.outcome = _outcome(folder, target, damage)
            # Where a lie was sealed, what the tables say is all that a repair can know.
            if repair and not damage.sealed and not damage.anew:
                result.repaired = judge_repair(folder, target)
    except Exception as error:
        result.outcome, result.error = "defect", f"{type(error).__name__}: {error}"[:2000]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _write(folder: Path, files: dict[str, bytes | None]) -> None:
    for name, data in files.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def _outcome(folder: Path, target: Target, damage: Damage) -> str:
    if damage.anew:
        for path in [*folder.glob("*.parquet"), *folder.glob("views/*")]:
            path.unlink()
        try:
            manifest = index_folder(folder, MAPPING)
        except ShardError as error:
            check(error.shard in damage.touched, f"names {error.shard!r}, damaged is {damage.touched}")
            check(not list(folder.glob("*.parquet")), "an index was written all the same")
            return REFUSED
        View.where(manifest, np.arange(manifest.rows) % 3 != 1, VIEW).save()
        return judge(folder, target, damage.touched, view_of_rows=False)
    return judge(folder, target, damage.touched, damage.sealed)
