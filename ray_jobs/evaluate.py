"""Job: judge a pretrained run on labelled shards, beside its baselines. `python -m ray_jobs.evaluate --help`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conclugen.common.commands import tell_next
from conclugen.common.options import GOOD, PARTIAL, Command
from conclugen.evaluation.config import BLOCK_SCALES, ComparisonConfig
from conclugen.evaluation.protocols import registry
from conclugen.evaluation.protocols.registry import ProtocolsConfig
from conclugen.fields import choose
from ray_jobs.run_config import DEFAULT_OUTPUT, ShardsConfig

if TYPE_CHECKING:
    from ray_jobs.evaluation import EvaluateResult


@dataclass(frozen=True)
class EvaluateJob:
    """Judge a pretrained run on labelled shards, beside its baselines.

    Attributes:
        run: Name of a finished pretraining run below `output`.
        label: Label to predict.
        data: Labelled shards; `view` is the training part, `validation_view` selects the fine-tuned head's epoch.
        test_view: View that is judged.
        fusion: `concat`, `mean`, or the name of one modality; of the raw features beside it `mean` is `concat` too.
        block_scales: Of representations that are concatenated: `plain`, `balanced` (each modality the same share of the
            variance, as it has already where all heads are equally wide), or `chosen` by the probe (which then is the
            only method that serves them) on held-out training groups.
        comparison: Methods, label fractions and draws.
        protocol: Protocols that are asked instead of making the table of systems, or `all`: see below, and
            docs/protocols.md.
        protocols: Their options.
        output: Folder of all runs.
        tracking_uri: MLflow tracking URI; None: where the run itself is tracked.
        interval_unit: Column over whose values intervals and tests are, as `data.split_unit`; None: that one.
    """

    run: str
    label: str
    data: ShardsConfig
    test_view: str = "test"
    fusion: str = "concat"
    block_scales: str = "plain"
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    protocol: tuple[str, ...] = ()
    protocols: ProtocolsConfig = field(default_factory=ProtocolsConfig)
    output: str = DEFAULT_OUTPUT
    tracking_uri: str | None = None
    interval_unit: str | None = None

    def __post_init__(self) -> None:
        choose("block_scales", self.block_scales, BLOCK_SCALES)
        if self.fusion == "concat+raw":
            raise ValueError(
                "fusion: 'concat+raw' is a row of every evaluation already, pretrained + raw; give concat, mean, or a "
                "modality"
            )
        registry.chosen(self.protocol)
        if self.block_scales == "chosen" and "probe" not in self.comparison.methods:
            raise ValueError(
                "block_scales: 'chosen' is served by the probe alone, and comparison.methods lacks it; add probe, or "
                "use plain or balanced"
            )


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
        return GOOD if answers.whole else PARTIAL

    from ray_jobs.evaluation import table  # torch, matplotlib: not before a wrong option has been refused

    result = evaluate(job)
    print(f"\n{table(result)}\nfigures and pictures: {result.folder}")
    where = "" if job.output == DEFAULT_OUTPUT else f" --output {shlex.quote(job.output)}"
    data = shlex.quote(job.data.folder)
    tell_next(f"embed --data {data} --run {job.run} --evaluation {shlex.quote(result.folder.name)}{where}")
    return PARTIAL if result.damaged else GOOD


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
