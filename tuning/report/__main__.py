"""Job: what an ablation (and sweeps) came to. `python -m tuning.report --help`.

python -m tuning.report outputs/first
python -m tuning.report outputs/first --sweep outputs/search
python -m tuning.report outputs/first --protocols outputs/run
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, Command


@dataclass(frozen=True)
class ReportJob:
    """What an ablation (and sweeps) came to, as a page, tables and pictures.

    Reads the ledgers of the folders, and protocols that were asked of runs. Writes `report.html` (one file that needs
    no other), `report.md`, `report.csv` and `protocols.csv` (every number) and pictures into the folder's `report`, and
    logs them to its MLflow run, if it has one.

    Attributes:
        output: Folder of an ablation (of a sweep, of a run whose protocols were asked), where the report goes too;
            given without an option.
        sweep: Folders of sweeps whose trials are added.
        scores: Scores of the tables; none: accuracy, unweighted average recall and macro F1, as far as there are.
        protocols: Folders of runs whose protocols (`ray_jobs.evaluate --protocol`) are added.
        tracking: Log the files to MLflow as well.
        tracking_uri: MLflow tracking URI; none: `mlflow.db` beside the folder.
    """

    output: Path
    sweep: tuple[Path, ...] = ()
    scores: tuple[str, ...] | None = None
    protocols: tuple[Path, ...] = ()
    tracking: bool = True
    tracking_uri: str | None = None


def run(job: ReportJob) -> int:
    from tuning.report.drawings import SCRIPT
    from tuning.report.report import being_written, report, track

    with being_written(job.output):
        files = report(job.output, job.sweep, job.scores, job.protocols)
        print("\n".join(str(path) for path in files))
        where = track(job.output, files, job.tracking_uri) if job.tracking else None
    if where:
        print(f"MLflow: {where}")
    if (best := job.output / "best.yaml").is_file():  # of a sweep
        tell_next(["pretrain", "--config", str(best)])
    elif scripts := [path for path in files if path.name == SCRIPT]:
        print(f"next, for a paper: edit and run {scripts[0]}")
    return GOOD


COMMAND = Command("tuning.report", ReportJob, run, bare="output")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
