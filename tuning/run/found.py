"""What a run finds in its embeddings: arrays for other tools, clusters, neighbours, retrieval, health."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from conclugen.common.atomic import atomic_path, write_text
from conclugen.common.reading import read_json
from conclugen.common.tables import csv_text
from conclugen.evaluation.clusters import CLEAR, Clusters, agreement, find_clusters, neighbours
from conclugen.evaluation.health import recall_interval
from ray_jobs import plots
from ray_jobs.run_config import DataConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import metric_history
from ray_jobs.training.validation import Validation
from shards import Manifest, View
from shards.planning.view import IndexValues
from tuning.run import sizes
from tuning.run.data import Views
from tuning.run.job import RunJob

_MOST_MAPPED, _MOST_NEIGHBOURS = 3000, 20_000
_PRESENT = "present."
_RECALL = "validation/recall@10/"
"""Of ten, the measure that small held-out parts can tell something by."""


@dataclass(frozen=True)
class Retrieval:
    """Of held-out rows with both modalities: the share whose match is among the 10 nearest of the other modality, both
    ways, with its interval (95 %, over rows), and what chance gives."""

    pair: str
    rows: int
    recall: float
    low: float
    high: float

    @property
    def chance(self) -> float:
        return min(1.0, 10 / self.rows)

    def __str__(self) -> str:
        if self.low > self.chance:
            said = "above chance"
        else:
            said = "below chance" if self.high < self.chance else "not told from chance"
        return (
            f"retrieval {self.pair}: the match is among the nearest 10 for {self.recall:.0%} of {self.rows} held-out "
            f"rows [{self.low:.0%}, {self.high:.0%}], chance {self.chance:.0%}: {said}"
        )


@dataclass
class Findings:
    """lines: to print; the rest: for the report. agreements: name (speaker, a label) -> how far clusters go with it.
    typical: keys of each cluster's most typical rows."""

    clusters: Clusters | None = None
    typical: list[list[str]] = field(default_factory=list)
    agreements: dict[str, float] = field(default_factory=dict)
    retrieval: list[Retrieval] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    figures: list[tuple[str, Path]] = field(default_factory=list)


def verdict_of(evaluation: Path) -> str:
    """The sentence of an evaluation."""
    return str(read_json(evaluation / "scores.json", nan=True)["verdict"])


def gather(manifest: Manifest, folder: Path, path: Path) -> None:
    """The embeddings of all shards as one file of NumPy arrays, text and numbers alone: keys (n,), vectors (n, R'),
    groups (n,), label.NAME (n,), view.NAME (n,) bool, present.MODALITY (n,) bool. Rows without an embedding are left
    out."""
    keys: list[str] = []
    blocks: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    present: dict[str, list[np.ndarray]] = {}
    for shard in range(len(manifest)):
        entry = manifest.entry(shard)
        if not entry.count:
            continue
        path_of = folder / f"{entry.name}.parquet"
        presence = [name for name in pq.read_schema(path_of).names if name.startswith(_PRESENT)]
        table = pq.read_table(path_of, columns=["key", "row", "embedding", *presence])
        there = table.filter(table["embedding"].is_valid())
        if there.num_rows:
            keys += there["key"].to_pylist()
            flat = there["embedding"].combine_chunks().flatten().to_numpy()
            blocks.append(flat.reshape(there.num_rows, -1))
            rows.append(manifest.rows_before[shard] + there["row"].to_numpy())
            for name in presence:
                present.setdefault(name, []).append(there[name].to_numpy())
    if not blocks:
        raise ValueError(f"{manifest.folder}: no row has an embedding")
    row = np.concatenate(rows)
    arrays: dict[str, Any] = {"keys": np.array(keys, str), "vectors": np.concatenate(blocks).astype(np.float32)}
    arrays |= {name: np.concatenate(parts) for name, parts in present.items()}
    arrays["groups"] = _names(IndexValues.read(manifest, "group"))[row]
    for label in manifest.labels:
        if label.kind == "class":
            arrays[f"label.{label.name}"] = _names(IndexValues.read(manifest, f"label.{label.name}"))[row]
    for name in View.names(manifest):
        view = View.open(manifest, name)
        arrays[f"view.{name}"] = np.concatenate([view.mask(shard) for shard in range(len(manifest))])[row]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _names(values: IndexValues) -> np.ndarray:
    """(rows,) text, empty where there is none."""
    return np.array([*values.names, ""], str)[values.codes]


def examine(vectors: Path, manifest: Manifest, folder: RunFolder, views: Views, job: RunJob) -> Findings:
    """Look at the embeddings of a run; writes clusters.csv, neighbours.csv and figures beside them."""
    with np.load(vectors, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    x, keys = arrays["vectors"].astype(np.float64), arrays["keys"].tolist()
    named = {"speaker": arrays["groups"]} | {
        name.removeprefix("label."): values for name, values in arrays.items() if name.startswith("label.")
    }
    findings = Findings()
    present = {name.removeprefix(_PRESENT): values for name, values in arrays.items() if name.startswith(_PRESENT)}
    lacking = plots.lacking(present) if present else [""] * len(keys)
    _clusters(findings, x, keys, named, lacking, folder, job.seed)
    if len(x) <= _MOST_NEIGHBOURS and len(x) > 1:
        near, cosines = neighbours(x)
        rows: list[Any] = [("key", "rank", "neighbour", "cosine")]
        for key, others, similar in zip(keys, near.tolist(), cosines.tolist(), strict=True):
            rows += [
                (key, rank + 1, keys[other], round(value, 6))
                for rank, (other, value) in enumerate(zip(others, similar, strict=True))
            ]
        write_text(folder.path / "neighbours.csv", csv_text(rows))
    _health(findings, manifest, folder, views, job)
    return findings


def _clusters(
    findings: Findings,
    x: np.ndarray,
    keys: list[str],
    named: dict[str, np.ndarray],
    lacking: list[str],
    folder: RunFolder,
    seed: int,
) -> None:
    try:
        clusters = find_clusters(x, sizes.clusters_shown(len(x)), seed)
    except ValueError as error:
        findings.lines.append(f"clusters: {error}")
        return
    findings.clusters = clusters
    findings.typical = [[keys[row] for row in clusters.typical(one)] for one in range(clusters.count)]
    many = ", ".join(str(n) for n in np.bincount(clusters.owner).tolist())
    clear = "they are separate" if clusters.clear else f"below {CLEAR}: parts of one cloud, rather than groups"
    findings.lines.append(f"clusters: {clusters.count} of {many} rows, silhouette {clusters.silhouette:.2f} ({clear})")
    for name, values in named.items():
        value = agreement(clusters.owner, [text or None for text in values.tolist()])
        if np.isfinite(value):
            findings.agreements[name] = value
            findings.lines.append(f"  they go with {name} to {value:z.2f} (0: by chance, 1: the same)")
    names = list(named)
    rows: list[Any] = [("key", "cluster", "distance", *names)]
    for row, key in enumerate(keys):
        own = [str(named[name][row]) for name in names]
        rows.append((key, int(clusters.owner[row]), round(float(clusters.distance[row]), 6), *own))
    write_text(folder.path / "clusters.csv", csv_text(rows))
    some = np.sort(np.random.default_rng(seed).permutation(len(x))[:_MOST_MAPPED])
    coloured = {"cluster": clusters.owner.astype(str)} | named
    for name, values in coloured.items():
        listed = [text or "none" for text in values[some].tolist()]
        if 1 < len(set(listed)) < max(3, len(listed)) and len(some) >= 3:  # colours of a point each tell nothing
            order = np.argsort(listed, kind="stable")
            path = folder.path / "figures" / f"map-{name if name.isidentifier() else len(findings.figures)}.png"
            colours = [listed[i] for i in order]
            without = [lacking[i] for i in some[order]]
            plots.representation_map(x[some][order], colours, path, title=f"embeddings by {name}", lacking=without)
            findings.figures.append((f"Embeddings by {name}", path))


def _health(findings: Findings, manifest: Manifest, folder: RunFolder, views: Views, job: RunJob) -> None:
    """The last measures on held-out rows."""
    history = metric_history(folder.journal)
    last = {name: curve[-1][1] for name, curve in history.items() if name.startswith("validation/") and curve}
    measures = {name.removeprefix("validation/"): float(value) for name, value in last.items()}
    # How many warnings one look gave is no measure; all that was warned of is listed by itself.
    findings.health = {name: value for name, value in measures.items() if name != "warnings"}
    for name, value in findings.health.items():
        if name.startswith("effective_rank/"):
            findings.lines.append(f"effective rank of {name.partition('/')[2]}: {value:.1f}")
    assert job.modalities is not None
    validation = Validation.open(
        DataConfig(folder=manifest.folder, validation_view=views.valid), manifest, job.modalities
    )
    pairs = {} if validation is None else validation.pairs()
    for pair, rows in pairs.items():
        recall = last.get(f"{_RECALL}{pair}")
        if recall is not None and rows > 10:
            findings.retrieval.append(Retrieval(pair, rows, recall, *recall_interval(recall, rows)))
    findings.lines += [str(one) for one in findings.retrieval]
    if last and not findings.retrieval and len(job.modalities) > 1:
        findings.lines.append("retrieval: too few held-out rows have two modalities to tell anything")
