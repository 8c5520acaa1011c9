"""Runs the cells of a plan by Ray, several at a time, and keeps each in the ledger as soon as it is done."""

import time
from collections.abc import Mapping, Sequence

import ray

from conclugen.common import machine, uris
from ray_jobs import ray_cluster
from tuning.ablation.cell import Cell, Outcome, one_thread, run
from tuning.ablation.cost import told
from tuning.ablation.plan import PlannedCell, title
from tuning.ablation.tracking import CellRuns
from tuning.dataset import LabelledSet
from tuning.ledger import Ledger, Record

_REASON_LENGTH = 500


@ray.remote(num_cpus=1, max_retries=0)
def _run_cell(cell: Cell, data: LabelledSet) -> Outcome:
    uris.scrub_output()
    with one_thread():
        return run(cell, data)


def connect(parallel: int | None) -> int:
    """Join or start Ray; returns how many cells run at a time: as asked, else one for each CPU."""
    ray_cluster.connect(parallel or 1)
    if parallel is not None:
        return parallel
    if ray_cluster.joins():
        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return machine.cores()  # a local Ray is started with more CPUs than the machine has cores


def run_cells(
    cells: Sequence[PlannedCell],
    sets: Mapping[str, LabelledSet],
    seconds: Mapping[str, float],
    ledger: Ledger,
    runs: CellRuns,
    parallel: int,
) -> list[Record]:
    """Run every cell; a failed one is recorded with its reason and the others continue. Returns the failed records.

    Each set travels to the object store once. The ledger is written here alone, so its folder may be local to this
    process. seconds: what each cell is thought to take, for the time left.
    """
    stored = {name: ray.put(data) for name, data in sets.items()}
    waiting = list(reversed(cells))
    running: dict[ray.ObjectRef, tuple[PlannedCell, float]] = {}
    failed: list[Record] = []
    began, done, work = time.monotonic(), 0, 0.0
    total = sum(seconds[planned.key] for planned in cells)
    while waiting or running:
        while waiting and len(running) < parallel:
            planned = waiting.pop()
            running[_run_cell.remote(planned.cell, stored[planned.dataset])] = planned, time.monotonic()
        (ready,), _ = ray.wait(list(running), num_returns=1)
        planned, begun = running.pop(ready)
        record = _keep(planned, ready, ledger)
        runs.cell(record, planned.title, time.monotonic() - begun)
        failed += [record] if record.status == "failed" else []
        done, work = done + 1, work + seconds[planned.key]
        left = (time.monotonic() - began) * (total - work) / work if work else 0.0
        print(_line(done, len(cells), planned, record, left), flush=True)
    return failed


def _keep(planned: PlannedCell, ready: "ray.ObjectRef", ledger: Ledger) -> Record:
    content = {"preset": planned.cell.config.preset if planned.cell.config else "", "seed": planned.cell.seed}
    configuration = content | planned.cell.content()
    try:
        outcome: Outcome = ray.get(ready)
    except Exception as error:  # whatever a cell died of, out of memory included, the others continue
        cause = getattr(error, "cause", None) or error
        # Scrubbed before it is cut: half of a secret is known to nobody.
        reason = uris.scrub(f"{type(cause).__name__}: {cause}").strip()[:_REASON_LENGTH]
        record = Record(planned.key, "cell", "failed", configuration, planned.tags, reason=reason)
    else:
        record = Record(
            planned.key,
            "cell",
            "finished",
            configuration,
            planned.tags,
            outcome.metrics,
            outcome.groups,
            outcome.cost,
            arrays=ledger.put_arrays(planned.key, outcome.arrays),
        )
    ledger.append(record)
    return record


def _line(done: int, count: int, planned: PlannedCell, record: Record, left: float) -> str:
    if record.status == "failed":
        came = f"FAILED: {record.reason.splitlines()[0]}"
    else:
        accuracies = {name: value for name, value in record.metrics.items() if name.startswith("accuracy@")}
        came = "  ".join(f"{name} {value:.3f}" for name, value in accuracies.items())
        came += f"  ({told(record.cost['seconds'])})"
    return f"[{done:>{len(str(count))}}/{count}, left {told(left)}] {title(planned.tags)}: {came}"
