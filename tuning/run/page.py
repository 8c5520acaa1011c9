"""The report of a run: one page that needs nothing besides itself, and its figures as files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common import commands
from conclugen.common.atomic import write_bytes, write_text
from conclugen.common.reading import inside, open_regular, parse_json, read_json, read_lines, read_mapping
from conclugen.common.screen import clock
from conclugen.evaluation.config import SINGLE
from ray_jobs import figure_style
from ray_jobs.provenance import bibliography, origins, stamp_of
from ray_jobs.run_folder import CHOSEN, DATA
from ray_jobs.tracking.journal import read_records
from ray_jobs.training.pretraining import PretrainResult
from ray_jobs.verdict import which
from shards import Manifest, View
from shards.quarantine import FILE_NAME as QUARANTINE
from tuning.report.latex import latex
from tuning.report.page import Block, Charts, Heading, Text, html
from tuning.report.tables import Entry, Line, Table
from tuning.run.found import Findings
from tuning.run.job import RunJob

FIGURES = "figures"
_FACTS = (("",),)  # head of the box of set-up
_LARGEST_PICTURE = 64 << 20
_MOST_NAMED = 200  # clips that are not used
_CAPTIONS = {
    "losses.png": "Losses while training",
    "health.png": "Health on held-out rows",
    "systems.png": "Systems with all labels",
    "label_efficiency.png": "Scores by share of labels",
    "confusion.png": "What was taken for what",
    "map.png": "Test rows by class",
    "map_speaker.png": "Test rows by speaker",
}


def write(
    job: RunJob,
    manifest: Manifest,
    pretrained: PretrainResult,
    findings: Findings,
    verdicts: Mapping[str, Path],
    failed: Mapping[str, str],
    warned: Mapping[str, Sequence[str]],
) -> Path:
    """Write `report.html` and `figures/` into the run's folder; returns the page. warned: stage -> what it warned
    of."""
    folder = job.folder
    stamp = stamp_of(manifest.info)
    lead = [*filter(None, [stamp]), *(_verdicts(verdicts) or _sentences(findings)[:1])]
    lead += [f"Label {label} is not evaluated: {why}." for label, why in failed.items()]
    unused = _unused(folder)
    many = {"warnings": sum(map(len, warned.values())), "clips that are not used": len(unused)}
    told = {name: f"{count}, listed at the end" if count else "none" for name, count in many.items()}
    blocks: list[Block] = [Heading("Set-up", "setup"), _setup(job, manifest, pretrained, told)]
    for label, place in verdicts.items():
        scores = read_json(place / "scores.json", nan=True)
        blocks += [Heading(f"How well is {label} predicted?", f"label-{len(blocks)}"), Text((scores["verdict"],))]
        blocks.append(_scores(label, scores))
        blocks.append(_pictures(folder, {f"{place.name}-{path.name}": path for path in sorted(place.glob("*.png"))}))
    if failed:
        blocks += [Heading("Not evaluated", "failed"), Text(tuple(f"{k}: {why}" for k, why in failed.items()), True)]
    blocks += [Heading("What is in the embeddings", "embeddings"), Text(tuple(_sentences(findings)), listed=True)]
    if findings.clusters is not None:
        blocks.append(_clusters(findings))
    blocks.append(_pictures(folder, {path.name: path for _, path in findings.figures}, dict(findings.figures)))
    blocks += [
        Heading("Is the representation alive?", "health"),
        _health(findings) if findings.health else Text(("No rows were held back, on which it could be measured.",)),
        _pictures(folder, {path.name: path for path in sorted(pretrained.folder.plots.glob("*.png"))}),
    ]
    grids = [block for block in blocks if isinstance(block, Table) and block.head != _FACTS]
    if warned:
        said = tuple(f"{stage}: {line}" for stage, lines in warned.items() for line in lines)
        blocks += [Heading(f"Warnings: {len(said)}", "warnings"), Text(said, listed=True)]
    if unused:
        blocks += [Heading(f"Clips that are not used: {len(unused)}", "unused"), _listed_clips(unused)]
    about = " ".join(filter(None, [stamp, f"Pretraining seed {job.seed}."]))
    write_text(folder / "table.tex", latex(grids, about))
    write_text(folder / "references.bib", bibliography(origins([manifest.info])))
    path = folder / "report.html"
    write_text(path, html(f"Run {job.name}", lead, blocks, folder / FIGURES))
    return path


def _verdicts(verdicts: Mapping[str, Path]) -> list[str]:
    return [str(read_json(place / "scores.json", nan=True)["verdict"]) for place in verdicts.values()]


def _sentences(findings: Findings) -> list[str]:
    lines = [" ".join(line.split()) for line in findings.lines]
    return [line[:1].upper() + line[1:] for line in lines]


def _scores(label: str, scores: Mapping[str, Any]) -> Table:
    """Rows are systems, columns shares of the labels."""
    main, cells = scores["main_score"], scores["cells"]
    shares = sorted({cell["fraction"] for cell in cells})
    found = {(cell["system"], cell["method"], cell["fraction"]): cell for cell in cells}
    best = {
        share: max((c["scores"].get(main) or -np.inf for c in cells if c["fraction"] == share), default=-np.inf)
        for share in shares
    }

    def entry(cell: Mapping[str, Any] | None) -> Entry:
        value = None if cell is None else cell["scores"].get(main)
        if cell is None or value is None:
            return Entry("—", "hole")
        ends = cell["intervals"].get(main)
        text = f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
        return Entry(text, "best" if value == best[cell["fraction"]] else "")

    lines = [
        Line(
            system if system == method else f"{system}, {method}",
            tuple(entry(found.get((system, method, share))) for share in shares),
        )
        for system, method in dict.fromkeys((cell["system"], cell["method"]) for cell in cells)
    ]
    rows = scores["group_rows"]
    tested = f"{sum(rows.values())} test rows of {len(rows)} speakers"
    single = which({cell["fraction"]: cell.get("choices", {}) for cell in cells if cell["system"] == SINGLE})
    note = f"{main} on {tested}; in brackets 95 % intervals over speakers."
    note += f" {single[:1].upper()}{single[1:]}." if single else ""
    return Table(
        f"{label}: {main}", "system", tuple((f"{share:.0%} of labels",) for share in shares), tuple(lines), note
    )


def _clusters(findings: Findings) -> Table:
    clusters = findings.clusters
    assert clusters is not None
    counts = np.bincount(clusters.owner).tolist()
    lines = [
        Line(str(number), (Entry(str(count)), Entry(", ".join(findings.typical[number]), "words")))
        for number, count in enumerate(counts)
    ]
    where = "Every row's cluster is in clusters.csv, its neighbours in neighbours.csv."
    note = f"Mean silhouette {clusters.silhouette:.2f}. {where}"
    return Table("Clusters", "cluster", (("rows",), ("most typical",)), tuple(lines), note)


def _health(findings: Findings) -> Table:
    shown = sorted(findings.health.items())
    lines = [Line(name, (Entry(f"{value:.4g}"),)) for name, value in shown]
    return Table("Held-out measures at the end", "measure", (("value",),), tuple(lines))


def _unused(folder: Path) -> list[dict[str, Any]]:
    """What the stages of the data could not use, or did not find, as their lists have it; nothing of features that lie
    elsewhere."""
    found = []
    for stage in ("clips", "features"):
        with contextlib.suppress(OSError, ValueError):
            for line, _ in read_lines(inside(folder, Path(DATA) / stage / QUARANTINE)):
                entry = {} if line is None else parse_json(line)
                if isinstance(entry, dict):
                    found.append(entry)
    return found


def _listed_clips(entries: Sequence[Mapping[str, Any]]) -> Table:
    lines = [
        Line(
            str(entry.get("source") or entry.get("key")),
            tuple(Entry(str(entry.get(name)), "words") for name in ("reason", "message")),
        )
        for entry in entries[:_MOST_NAMED]
    ]
    more = f"The first {_MOST_NAMED}. " if len(entries) > _MOST_NAMED else ""
    note = f"{more}All are in {DATA}/clips/{QUARANTINE} and {DATA}/features/{QUARANTINE}."
    return Table("What is not used, and why", "clip", (("reason",), ("what was found",)), tuple(lines), note)


def _setup(job: RunJob, manifest: Manifest, pretrained: PretrainResult, told: Mapping[str, str]) -> Table:
    config = read_mapping(pretrained.folder.config)
    sizes = {name: View.open(manifest, name).rows for name in View.names(manifest)}
    facts = {
        "command": commands.typed(["run", "--config", str(job.folder / CHOSEN)]),
        "source": str(job.source),
        "rows": "; ".join(filter(None, [f"{manifest.rows} in all", ", ".join(f"{k} {n}" for k, n in sizes.items())])),
        "modalities": ", ".join(job.modalities or ()),
        "data digest": manifest.digest,
        "preset, recipe": f"{job.preset}, {job.recipe}",
        "batch, representation, epochs": f"{job.batch}, {job.representation}, {job.epochs}",
        "optimiser steps": str(pretrained.step),
        "commit": str(config["run"].get("commit")),
        "cost": f"{clock(_seconds(pretrained))} of pretraining (hours, minutes, seconds)",
        "MLflow run": str(pretrained.mlflow_run_id),
        **told,
    }
    lines = tuple(Line(name, (Entry(text, "words"),)) for name, text in facts.items())
    return Table("How it was made", "", _FACTS, lines)


def _seconds(pretrained: PretrainResult) -> float:
    """That its steps took, by the reports of all starts."""
    found, step = 0.0, 0
    for record, _ in read_records(pretrained.folder.journal):
        seconds = record["values"].get("step_seconds") if record["kind"] == "metrics" else None
        if seconds is not None and record["series"] == "train":
            found += seconds * (record["step"] - step)
            step = record["step"]
    return found


def _pictures(folder: Path, pictures: Mapping[str, Path], captions: Mapping[str, Path] | None = None) -> Charts:
    """The pictures, kept in `figures` too under these names, in every format."""
    of_path = {path: caption for caption, path in (captions or {}).items()}
    (folder / FIGURES).mkdir(exist_ok=True)
    shown = []
    for name, path in pictures.items():
        kept = folder / FIGURES / name
        for source, target in zip(figure_style.files_of(path), figure_style.files_of(kept), strict=True):
            if source != target and source.exists():
                with open_regular(inside(folder, source.absolute()), _LARGEST_PICTURE) as file:
                    write_bytes(target, file.read())
        shown.append((of_path.get(path) or _CAPTIONS.get(path.name, path.stem), name))
    return Charts(tuple(shown))
