"""Job: judge a pretrained run on labelled shards, beside its baselines. `python -m ray_jobs.evaluate --help`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, PARTIAL, Command
from conclugen.evaluation.protocols import registry
from ray_jobs.options.evaluate import EvaluateJob
from ray_jobs.run_config import DEFAULT_OUTPUT

if TYPE_CHECKING:
    from ray_jobs.verdict import EvaluateResult


def evaluate(job: EvaluateJob) -> EvaluateResult:
    """Embed the labelled shards with the run's exported model and score it beside its baselines.

    Raises:
        ValueError: no such finished run, view or label; a label or a split from which nothing can be learned.
    """
    from ray_jobs import evaluation

    return evaluation.evaluate(job)


def run(job: EvaluateJob) -> int:
    if job.protocol:
        from ray_jobs import protocols

        answers = protocols.ask(job)
        print(f"\ntables and pictures: {answers.folder}")
        tell_next(["report", str(Path(job.output) / job.run)])
        return GOOD if answers.whole else PARTIAL

    from ray_jobs.evaluation import table  # torch, matplotlib: not before a wrong option has been refused

    result = evaluate(job)
    print(f"\n{table(result)}\nfigures and pictures: {result.folder}")
    where = "" if job.output == DEFAULT_OUTPUT else f" --output {shlex.quote(job.output)}"
    data = shlex.quote(job.data.folder)
    tell_next(f"embed --data {data} --run {job.run} --evaluation {shlex.quote(result.folder.name)}{where}")
    return PARTIAL if result.corrupt else GOOD


def _listed() -> str:
    """The protocols, for `--help`."""
    width = max(map(len, registry.registered()))
    lines = [
        f"  {name:<{width}}  {(protocol.Config.__doc__ or '').strip().splitlines()[0]}"
        for name, protocol in registry.registered().items()
    ]
    return "\n".join(["protocols (docs/protocols.md):", *lines])


COMMAND = Command(
    "ray_jobs.evaluate",
    EvaluateJob,
    run,
    short={
        "data": "data.folder",
        "view": "data.view",
        "methods": "comparison.methods",
        "fractions": "comparison.fractions",
        "draws": "comparison.draws",
        "seed": "comparison.seed",
    },
    shown=(
        *("run", "label", "data", "view", "test-view", "output", "fusion", "methods", "fractions", "draws", "seed"),
        "protocol",
    ),
    epilog=_listed,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
