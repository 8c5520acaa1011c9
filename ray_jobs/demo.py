"""The whole path on one machine: corpus, shards, pretraining with two workers, evaluation, summary. `make demo`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from conclugen import presets
from ray_jobs import ray_cluster
from ray_jobs.comparison import ComparisonConfig, Score
from ray_jobs.evaluate import EvaluateJob, EvaluateResult, evaluate
from ray_jobs.pretrain import PretrainResult, pretrain
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, ShardsConfig
from ray_jobs.tracking.mlflow_environment import ui_command
from shards.corpus import write_corpus

WORKERS = 2
_MARK = ".conclugen-demo"
LABEL = "emotion"
NAME = "demo"


def run(output: Path) -> tuple[PretrainResult, EvaluateResult]:
    """Generate the corpus, pretrain and evaluate; everything below `output`, where an earlier demo is begun anew.

    Raises ValueError for a folder that holds anything else.
    """
    clear(output)
    print("1/3  corpus: generating clips' features and packing shards", flush=True)
    manifest = write_corpus(output / "shards")
    print(f"     {manifest.rows} clips in {len(manifest)} shard(s): {output / 'shards'}", flush=True)

    print(f"2/3  pretraining: preset conclugen, recipe improved, {WORKERS} workers", flush=True)
    ray_cluster.connect(WORKERS)
    pretrained = pretrain(
        PretrainJob(
            pretrain=presets.build(
                "conclugen",
                global_batch=256,
                epochs=40,
                model={"representation_dim": 256, "projection_dim": 128, "reconstruction_hidden_dim": 256},
            ),
            data=DataConfig(folder=str(output / "shards"), label=LABEL),
            run=RunConfig(
                name="demo", output=str(output / "runs"), workers=WORKERS, checkpoint_every=50, report_every=10
            ),
        )
    )
    print("3/3  evaluation: probe, neighbours and fine-tuning on speakers that pretraining never saw", flush=True)
    evaluated = evaluate(
        EvaluateJob(
            run="demo",
            label=LABEL,
            data=ShardsConfig(folder=str(output / "shards")),
            output=str(output / "runs"),
            comparison=ComparisonConfig(fractions=(0.1, 1.0)),
        )
    )
    return pretrained, evaluated


def clear(output: Path) -> None:
    """An empty folder with the demo's mark: only what a demo left there is removed."""
    mark = output / _MARK
    if output.exists() and any(output.iterdir()):
        if not mark.is_file():
            raise ValueError(f"--output: {output} holds files that no demo made; name an empty or a new folder")
        print(f"removing the last demo in {output}", flush=True)
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text("Everything in this folder is made by the demo, and removed when it runs again.\n")


def summary(pretrained: PretrainResult, evaluated: EvaluateResult, seconds: float) -> str:
    """What ran, how it compares, and where to look."""
    cells = {(s.system, s.method, s.fraction): s for s in evaluated.scores}
    lines = [
        "",
        f"conclugen demo: {pretrained.step} steps with {WORKERS} workers, everything in {seconds:.0f} s",
        "",
        f"{LABEL} on unseen speakers, accuracy of a linear probe   10 % of labels         all labels",
    ]
    for system in ("pretrained", "untrained", "raw"):
        few, all_ = cells[system, "probe", 0.1], cells[system, "probe", 1.0]
        lines.append(f"  {_NAMES[system]:<52} {_shown(few):<22} {_shown(all_)}")
    lines.append(f"  {'majority class':<52} {'':<22} {_shown(cells['majority', 'majority', 1.0])}")
    lines += [
        "(in brackets: 95 % intervals over speakers; a difference within them is none)",
        "",
        f"pictures and tables   {evaluated.folder}",
        f"learning curves       {pretrained.folder.plots}",
        f"model                 {pretrained.model}",
        f"MLflow run            {pretrained.mlflow_run_id}",
        f"open the MLflow UI    {ui_command(pretrained.tracking_uri)}",
    ]
    return "\n".join(lines)


_NAMES = {
    "pretrained": "pretrained heads",
    "untrained": "the same heads, untrained",
    "raw": "raw features, standardised",
}


def _shown(score: Score) -> str:
    interval = score.intervals.get("accuracy")
    return f"{score.scores['accuracy']:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m ray_jobs.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for all that the demo makes")
    began = time.monotonic()
    try:
        pretrained, evaluated = run(parser.parse_args(argv).output.absolute())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(pretrained, evaluated, time.monotonic() - began))
    return 0


if __name__ == "__main__":
    sys.exit(main())
