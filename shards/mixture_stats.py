"""`python -m shards stats A B`: what corpora hold that are to be mixed, side by side, before any work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from conclugen.common.names import did_you_mean
from shards.manifest import Manifest
from shards.reader import Reader
from shards.shares import Shares, whole_weights
from shards.view import View


def named(folders: tuple[str, ...]) -> dict[str, str]:
    """Corpus -> folder of words such as `vox=/data/vox`; a folder alone is named as its last part. Raises ValueError
    where two have one name, or one folder has two."""
    found: dict[str, str] = {}
    for word in folders:
        name, equals, folder = word.partition("=")
        if not equals or "/" in name:
            name, folder = Path(word.rstrip("/")).name, word
        if name in found:
            raise ValueError(f"data: corpus {name!r} is named twice ({found[name]}, {folder}); name them NAME=FOLDER")
        if folder in found.values():
            raise ValueError(f"data: found {folder} twice, expected each folder once; leave one out")
        found[name] = folder
    return found


def describe(
    folders: Mapping[str, str], view: str | None, weights: Mapping[str, float], global_batch: int
) -> dict[str, Any]:
    """JSON-able: of each corpus rows, share, modalities with width and presence, groups; of each two, equal keys and
    equally named groups. weights: corpus -> weight; none: by rows. Raises ValueError for a weight that is missing, or
    of no corpus."""
    for name in weights:
        if name not in folders:
            raise ValueError(f"weight: {name!r} is no corpus here, {did_you_mean(name, folders)}")
    manifests = {name: Manifest.open(folder) for name, folder in folders.items()}
    views = {n: View.everything(m) if view is None else View.open(m, view) for n, m in manifests.items()}
    for name in folders if weights else ():
        if not weights.get(name, 0) > 0:
            raise ValueError(f"weight: corpus {name!r}: found {weights.get(name)}, expected a number above 0")
    asked = [Fraction(str(weights[n])) if weights else Fraction(views[n].rows) for n in folders]
    shares = Shares(whole_weights(asked))
    corpora, keys, groups = {}, {}, {}
    for i, (name, manifest) in enumerate(manifests.items()):
        corpora[name], keys[name], groups[name] = _corpus(manifest, views[name])
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
        "equal_group_names": {f"{a} {b}": len(groups[a] & groups[b]) for a, b in pairs},
        "widths_differ": sorted(_differing(corpora)),
    }


def _corpus(manifest: Manifest, view: View) -> tuple[dict[str, Any], np.ndarray, set[str]]:
    """A corpus's own part, the 64-bit hashes of its keys, and its groups' names."""
    reader, groups = Reader(manifest, view), set[str]()
    present = dict.fromkeys(reader.modalities, 0)
    hashes = []
    for shard in np.flatnonzero(view.counts).tolist():
        table = reader.metadata(shard).take(view.indices(shard))
        for modality, columns in reader.modalities.items():
            there = np.logical_and.reduce([table[f"present.{column}"].to_numpy() for column in columns])
            present[modality] += int(there.sum())
        hashes.append(np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in table["key"].to_pylist()], np.uint64))
        groups |= {name for name in table["group"].to_pylist() if name is not None}
    summary = {
        "folder": manifest.folder,
        "digest": manifest.digest,
        "rows": view.rows,
        "modalities": {
            name: {"columns": list(columns), "width": reader.widths[name], "present": present[name]}
            for name, columns in reader.modalities.items()
        },
        "groups": len(groups),
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
    told = [f"{'corpus':<16} {'rows':>12} {'share':>7} {'most a batch':>12} {'groups':>8}{head}"]
    for name, corpus in corpora.items():
        line = f"{name:<16} {corpus['rows']:>12} {corpus['share']:>7.1%} {corpus['rows_of_a_batch']:>12} "
        line += f"{corpus['groups']:>8}"
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
    for what, field in (("key", "equal_keys"), ("group name", "equal_group_names")):
        for pair, count in summary[field].items():
            if count:
                a, b = pair.split(" ")
                told.append(f"{a} and {b} have {count} {what}(s) in common")
    return told
