"""Options of `conclugen evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from conclugen.evaluation.config import BLOCK_SCALES, ComparisonConfig
from conclugen.evaluation.protocols import registry
from conclugen.evaluation.protocols.registry import ProtocolsConfig
from conclugen.fields import choose
from ray_jobs.run_config import DEFAULT_OUTPUT, ShardsConfig


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
