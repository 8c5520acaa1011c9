"""What the demo says at its end: what ran, how it compares, and where to look."""

from __future__ import annotations

import textwrap

import numpy as np

from conclugen.common import commands
from conclugen.evaluation.judge import Score
from ray_jobs.demo.steps import FRACTIONS, LABEL, WORKERS, DemoResult
from ray_jobs.tracking.mlflow_environment import ui_command
from ray_jobs.verdict import verdict

_SYSTEMS = {
    "pretrained": "pretrained heads",
    "untrained": "the same heads, untrained",
    "raw": "raw features, standardised",
}


def summary(result: DemoResult) -> str:
    """A page for a terminal."""
    built, extracted, corpus = result.built, result.extracted, result.config.corpus
    refused = sum(built.quarantined.values()), sum(extracted.quarantined.values())
    faces = built.counts.get("with a face", 0)
    lines = [
        "",
        f"conclugen demo: video to probed model in {sum(result.seconds.values()):.0f} s",
        "  " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items()),
        "",
        f"{built.found} clips rendered ({corpus.speakers} speakers)"
        f" = {built.written} in clip shards + {refused[0]} quarantined;"
        f" {extracted.clips} = {extracted.written} with features + {refused[1]} quarantined",
        f"a face was found in {faces} of {built.written} clips ({built.written - faces} continue with whole frames); "
        f"{_missing(extracted.missing)}",
        f"pretraining: {result.pretrained.step} steps with {WORKERS} workers, no labels",
        "",
        *_table(result),
        *textwrap.wrap(verdict(result.evaluated), 110, initial_indent="  ", subsequent_indent="  "),
        *filter(None, [f"  {result.evaluated.stamp}" if result.evaluated.stamp else ""]),
        "",
        *_new_clip(result),
        "",
        f"cropped faces         {result.sheet}",
        f"videos, labels        {result.table}",
        f"tables, plots         {result.evaluated.folder}",
        f"learning curves       {result.pretrained.folder.plots}",
        f"model                 {result.pretrained.model}",
        f"MLflow run            {result.pretrained.mlflow_run_id}",
        f"open the MLflow UI    {ui_command(result.pretrained.tracking_uri)}",
        f"next, on your clips   {commands.typed('run FOLDER')}",
    ]
    return "\n".join(lines)


def _missing(missing: dict[str, int]) -> str:
    """Rows without a modality, by the kind of what they lack."""
    silent = max((count for column, count in missing.items() if column.startswith("audio")), default=0)
    wordless = max((count for column, count in missing.items() if column.startswith("text")), default=0)
    return f"{silent} have no sound, {wordless} no transcript"


def _table(result: DemoResult) -> list[str]:
    cells = {(s.system, s.method, s.fraction): s for s in result.evaluated.scores}
    few, all_ = FRACTIONS
    lines = [f"{LABEL} on unseen speakers, linear probe: accuracy   {few:.0%} of labels{'':<11}all labels"]
    for system, name in _SYSTEMS.items():
        shown = [_shown(cells[system, "probe", fraction]) for fraction in (few, all_)]
        lines.append(f"  {name:<46} {shown[0]:<22} {shown[1]}")
    lines.append(f"  {'majority class':<46} {'':<22} {_shown(cells['majority', 'majority', 1.0])}")
    return [*lines, "  (in brackets: 95 % intervals over speakers; a difference within them is none)"]


def _shown(score: Score) -> str:
    if not score.scores:
        return "— (not scored)"
    interval = score.intervals.get("accuracy")
    return f"{score.scores['accuracy']:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def _new_clip(result: DemoResult) -> list[str]:
    clip = result.new_clip
    vector = clip.embedded.embeddings[0]
    lines = [
        f'one new clip ({clip.row.emotion}, "{clip.row.transcript}"): {clip.path}',
        f"  embedding: {vector.size} numbers, norm {np.linalg.norm(vector):.2f}: "
        f"[{', '.join(f'{x:.2f}' for x in vector[:5])}, ...]",
    ]
    if clip.embedded.probabilities is not None:
        best = np.argsort(-clip.embedded.probabilities[0])[:3]
        said = ", ".join(f"{clip.classes[i]} {clip.embedded.probabilities[0][i]:.2f}" for i in best)
        lines.append(f"  the probe says: {said}")
    return lines
