"""`python -m shards stats A B`: what corpora hold that are to be mixed, side by side, before any work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import xxhash

from conclugen.common.names import did_you_mean
from shards.errors import ShardError
from shards.format.index import GROUP
from shards.format.manifest import Manifest
from shards.planning.shares import Shares, whole_weights
from shards.planning.view import View
from shards.reading.reader import Reader


def describe(
    folders: Mapping[str, str],
    view: str | None,
    weights: Mapping[str, float],
    global_batch: int,
    speakers: Mapping[str, str] | None = None,
    modalities: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
) -> dict[str, Any]:
    """JSON-able: of each corpus rows, share, modalities with width and presence, speakers; of each two, equal keys,
    equal names of speakers, and whether they are the same data.

    weights: corpus -> weight; none: by rows. speakers: corpus -> column that says who speaks, `group` by default.
    modalities: corpus -> composition of modalities from its own columns; by default its manifest's. Raises ValueError
    for a weight that is missing or none, and in each of these mappings for a name of no corpus or of no column.
    """
    speakers, modalities = speakers or {}, modalities or {}
    for field, given in (("weight", weights), ("speaker", speakers), ("modalities", modalities)):
        for name in given:
            if name not in folders:
                raise ValueError(f"{field}: {name!r} is not one of these corpora, {did_you_mean(name, folders)}")
    manifests = {name: Manifest.open(folder) for name, folder in folders.items()}
    readers, views = {}, {}
    for name, manifest in manifests.items():
        try:
            chosen = View.everything(manifest) if view is None else View.open(manifest, view)
            speaker = speakers.get(name, GROUP)
            manifest.schema.check_group_column(speaker)
            views[name], readers[name] = chosen, Reader(manifest, chosen, modalities.get(name), (), group=speaker)
        except ShardError:
            raise
        except ValueError as error:
            raise ValueError(f"corpus {name!r}: {error}") from None
    for name in folders if weights else ():
        if not weights.get(name, 0) > 0:
            raise ValueError(f"weight: corpus {name!r}: found {weights.get(name)}, expected a number above 0")
    asked = [Fraction(str(weights[n])) if weights else Fraction(views[n].rows) for n in folders]
    shares = Shares(whole_weights(asked))
    corpora, keys, spoken = {}, {}, {}
    for i, (name, reader) in enumerate(readers.items()):
        corpora[name], keys[name], spoken[name] = _corpus(reader, speakers.get(name, GROUP))
        most = shares.most(i, global_batch)
        corpora[name] |= {
            "share": float(shares.share(i)),
            "rows_of_a_batch": most,
            "fits": most <= views[name].rows,
            "window_error": 2 * float(shares.error(i)),
        }
    pairs = list(itertools.combinations(folders, 2))
    return {
        "global_batch": global_batch,
        "corpora": corpora,
        "equal_keys": {f"{a} {b}": len(np.intersect1d(keys[a], keys[b])) for a, b in pairs},
        "equal_speaker_names": {f"{a} {b}": len(spoken[a] & spoken[b]) for a, b in pairs},
        "equal_data": [f"{a} {b}" for a, b in pairs if manifests[a].digest == manifests[b].digest],
        "widths_differ": sorted(_differing(corpora)),
    }


def _corpus(reader: Reader, speaker: str) -> tuple[dict[str, Any], np.ndarray, set[str]]:
    """A corpus's own part, the 64-bit hashes of its keys, and its speakers' names."""
    manifest, view, groups = reader.manifest, reader.view, set[str]()
    assert view is not None
    present = dict.fromkeys(reader.modalities, 0)
    hashes = []
    for shard in np.flatnonzero(view.counts).tolist():
        table = reader.metadata(shard).take(view.indices(shard))
        for modality, columns in reader.modalities.items():
            there = np.logical_and.reduce([table[f"present.{column}"].to_numpy() for column in columns])
            present[modality] += int(there.sum())
        hashes.append(np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in table["key"].to_pylist()], np.uint64))
        groups |= {name for name in table[speaker].to_pylist() if name is not None}
    summary = {
        "folder": manifest.folder,
        "digest": manifest.digest,
        "rows": view.rows,
        "modalities": {
            name: {"columns": list(columns), "width": reader.widths[name], "present": present[name]}
            for name, columns in reader.modalities.items()
        },
        "speakers": len(groups),
    }
    return summary, np.concatenate(hashes) if hashes else np.empty(0, np.uint64), groups


def _differing(corpora: Mapping[str, Any]) -> Iterator[str]:
    names = {modality for corpus in corpora.values() for modality in corpus["modalities"]}
    for modality in names:
        widths = {c["modalities"][modality]["width"] for c in corpora.values() if modality in c["modalities"]}
        if len(widths) > 1:
            yield modality


def lines(summary: Mapping[str, Any]) -> list[str]:
    """For people."""
    corpora = summary["corpora"]
    modalities = list(dict.fromkeys(m for corpus in corpora.values() for m in corpus["modalities"]))
    head = "".join(f" {name:>18}" for name in modalities)
    told = [f"{'corpus':<16} {'rows':>12} {'share':>7} {'most a batch':>12} {'speakers':>8}{head}"]
    for name, corpus in corpora.items():
        line = f"{name:<16} {corpus['rows']:>12} {corpus['share']:>7.1%} {corpus['rows_of_a_batch']:>12} "
        line += f"{corpus['speakers']:>8}"
        for modality in modalities:
            own = corpus["modalities"].get(modality)
            cell = "-" if own is None else f"{own['width']} wide, {own['present'] / max(corpus['rows'], 1):.0%}"
            line += f" {cell:>18}"
        told.append(line)
    told.append(f"a batch of {summary['global_batch']} rows; in any window of batches a share is kept to within "
                f"{max(c['window_error'] for c in corpora.values()):.2g} rows")  # fmt: skip
    for modality in summary["widths_differ"]:
        told.append(f"modality {modality!r} differs in width: name columns of one width for all (data.sources)")
    for name, corpus in corpora.items():
        if not corpus["fits"]:
            told.append(f"corpus {name!r} has fewer rows than its share of a batch: lower its weight or the batch")
    for pair in summary["equal_data"]:
        a, b = pair.split(" ")
        told.append(f"{a} and {b} are the same data: a run takes it once, with a view of the rows of both")
    for what, field, then in (
        ("key", "equal_keys", "the same clips, if both took them from one source"),
        ("speaker name", "equal_speaker_names", "two speakers each, unless both are given one name as `speakers`"),
    ):
        for pair, count in summary[field].items():
            if count:
                a, b = pair.split(" ")
                told.append(f"{a} and {b} have {count} {what}(s) in common: {then}")
    return told
