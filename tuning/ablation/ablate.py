"""Runs an ablation: what `tuning.ablate` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from conclugen.common import uris
from conclugen.common.ending import resumable
from conclugen.common.locks import folder_held
from conclugen.common.options import to_plain
from conclugen.common.revision import running_revision
from ray_jobs.preflight import check_tracking
from ray_jobs.provenance import DIGEST, origins
from ray_jobs.roles import GROUP
from ray_jobs.source import data_set
from ray_jobs.tracking.described import standard_tags
from ray_jobs.tracking.destination import remember, uri_of_run
from ray_jobs.tracking.standing import refusals
from shards import Manifest
from tuning.ablation.cost import estimate, told
from tuning.ablation.plan import (
    AblateJob,
    Plan,
    PlannedCell,
    acquire_folder,
    plan,
    refuse_other_configurations,
    refuse_other_data,
    refuse_other_settings,
)
from tuning.ablation.tracking import CellRuns
from tuning.dataset import LabelledSet, Roles, open_set
from tuning.ledger import WITH_RAW, Ledger, Record


def ablate(job: AblateJob) -> list[Record]:
    """Run what the ledger does not hold yet. Returns the records of cells that failed in this start.

    Raises ValueError for data, settings or a folder that cannot serve, before anything runs; one that another process
    works in among them.
    """
    sets = {name: _open(job, name) for name in job.datasets}
    planned = plan(job, list(sets.values()))
    if job.dry_run:
        return _run(job, sets, planned)
    with folder_held(job.folder, "the ablation is being run", "another --run", field="--output", keep=True):
        return _run(job, sets, planned)


def _tags(job: AblateJob) -> dict[str, str]:
    """What the ablation is found by, and what its report says of how it was made."""
    description = (
        f"Ablation of {', '.join(job.ordered_tasks)} on {', '.join(job.datasets)}: recipes {', '.join(job.recipes)}, "
        f"seeds {', '.join(map(str, job.seeds))}. A cell is a run below this one; compare cells of one data set and "
        "recipe. `accuracy:0.1` is with 10 % of the labels, `with_raw/` beside the raw features; every number of a "
        "cell is in its artifact numbers.table.json, and `conclugen report` tests the differences."
    )
    manifests = {name: Manifest.open(folder) for name, folder in job.datasets.items()}
    return {
        **standard_tags("ablation", description, running_revision()),
        "datasets": " ".join(job.datasets),
        **origins([manifest.info for manifest in manifests.values()]),
        **{f"{DIGEST}{name}": manifest.digest for name, manifest in manifests.items()},
    }


def _lacking(cell: PlannedCell, record: Record | None, job: AblateJob, data: LabelledSet) -> str:
    """What a finished cell of an earlier version, or of `judging.with_raw: false`, lacks of what this one asks for."""
    if record is None:
        return ""
    wanted = job.judging.with_raw and cell.cell.system == "pretrained"
    if wanted and not any(name.startswith(WITH_RAW) for name in record.metrics):
        return "`representation + raw`"
    if data.protocol.main_score == "uar" and not any(name.startswith("rows/") for name in record.groups):
        return "recall by unit"
    return ""


def _run(job: AblateJob, sets: Mapping[str, LabelledSet], planned: Plan) -> list[Record]:
    refuse_other_settings(job)
    ledger = Ledger.open(job.folder)
    records = {record.key: record for record in ledger.records()}
    refuse_other_configurations(planned, list(records.values()))
    refuse_other_data(list(sets.values()), list(records.values()))
    finished = {key: record for key, record in records.items() if record.status == "finished"}
    todo = [cell for cell in planned.cells if cell.key not in finished]
    lacks = {c.key: _lacking(c, finished.get(c.key), job, sets[c.dataset]) for c in planned.cells}
    for what in dict.fromkeys(filter(None, lacks.values())):
        again = [cell for cell in planned.cells if lacks[cell.key] == what]
        print(f"{len(again)} cells are run again: they were judged without {what}", flush=True)
        todo += again
    uri = uri_of_run(job.folder, job.tracking_uri)
    if not job.dry_run:
        check_tracking(uri, job.experiment)
        acquire_folder(job)
    print(_announcement(planned, len(planned.cells) - len(todo)), flush=True)
    seconds = estimate(todo, sets, finished)
    work = told(sum(seconds.values()))
    print(f"{len(todo)} to run: about {work} of one core, measured on this machine", flush=True)
    if job.dry_run:
        for cell in todo:
            print(f"  {cell.title}  about {told(seconds[cell.key])}")
        return []

    from tuning.ablation.run import connect, run_cells

    for hole in planned.holes:
        if hole.record.key not in records:
            ledger.append(hole.record)
    remember(job.folder, uri)
    runs = CellRuns(
        job.folder,
        uri,
        experiment=job.experiment,
        name=job.name,
        params=to_plain(job),
        tags=_tags(job),
        inputs=[
            data_set(str(job.datasets[name]), data.digest, len(data.group), name=name) for name, data in sets.items()
        ],
    )
    failed: list[Record] = []
    unsent: list[Path] = []
    try:
        with resumable(lambda: _standing(job, planned, ledger)), runs.parent.running(lambda: len(failed)):
            titles = {cell.key: cell.title for cell in planned.cells}
            for key, record in finished.items():
                if key in titles:
                    runs.cell(record, titles[key])
            if todo:
                parallel = min(connect(job.parallel), len(todo))
                print(f"{parallel} at a time: about {told(sum(seconds.values()) / parallel)}", flush=True)
                failed += run_cells(todo, sets, seconds, ledger, runs, parallel)
    finally:
        unsent += runs.close()
        ledger.close()
    if unsent:
        print(
            f"{len(unsent)} run(s) did not all reach MLflow at {uris.public(uri)}; they are sent by: "
            f"conclugen track {job.folder}"
        )
    else:
        print(f"MLflow: run {job.name!r} and its children in {uris.public(uri)}")
    for line in refusals(job.folder):
        print(line)
    return failed


def _standing(job: AblateJob, planned: Plan, ledger: Ledger) -> str:
    done = ledger.finished()
    count = sum(cell.key in done for cell in planned.cells)
    return (
        f"ablation {job.name}: {count} of {len(planned.cells)} cells are done; the same command continues with the rest"
    )


def _open(job: AblateJob, name: str) -> LabelledSet:
    chosen = [group.strip() for group in job.train_only.get(name, "").split(",") if group.strip()]
    roles = Roles(job.split_units.get(name, GROUP), job.speakers.get(name), job.interval_units.get(name))
    try:
        return open_set(name, job.datasets[name], job.judging, job.labels.get(name), chosen, roles)
    except FileNotFoundError as error:
        raise ValueError(f"data set {name!r}: {error}") from error


def _announcement(planned: Plan, done: int) -> str:
    lines = [
        f"{planned.rows} rows x seeds are {len(planned.cells)} different cells"
        + (f", of which {done} are done" if done else "")
    ]
    for reason, holes in _by_reason(planned).items():
        lines.append(f"cannot be run, a hole in the table: {', '.join(holes)}: {reason}")
    return "\n".join(lines)


def _by_reason(planned: Plan) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for hole in planned.holes:
        tags = hole.record.tags
        found.setdefault(hole.record.reason, {})[f"{tags['dataset']} {tags['rows'][0]}"] = None
    return {reason: list(names) for reason, names in found.items()}
