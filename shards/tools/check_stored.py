"""What shards hold, as their indexes say: lines to print, and doubts, before a job works on them."""

from __future__ import annotations

from shards.doubts import Samples
from shards.format.index import GROUP
from shards.format.manifest import Manifest
from shards.planning.view import IndexValues

_PART = "split"  # the metadata in which adapters keep a published split


def stored_samples(manifest: Manifest) -> Samples:
    """Class labels, speakers and parts of the rows. Reads every shard's index once for each of them.

    Raises ShardError for an index that is not the manifest's.
    """
    labels = [label for label in manifest.labels if label.kind == "class"]
    classes = {
        label.name: [() if name is None else (name,) for name in _names(manifest, f"label.{label.name}")]
        for label in labels
    }
    return Samples(
        manifest.rows,
        labels,
        classes,
        _names(manifest, GROUP) if manifest.schema.grouped else None,
        _names(manifest, f"meta.{_PART}") if _PART in manifest.schema.meta else None,
    )


def _names(manifest: Manifest, column: str) -> list[str | None]:
    values = IndexValues.read(manifest, column)
    return [None if code < 0 else values.names[code] for code in values.codes.tolist()]


def stored_lines(manifest: Manifest) -> list[str]:
    """What the data set is, before its samples are described."""
    columns = ", ".join(f"{name} ({' + '.join(columns)})" for name, columns in manifest.modalities.items())
    return [f"{manifest.folder}: {manifest.rows} rows in {len(manifest)} shards", f"modalities: {columns or 'none'}"]


def warn_of_stored(manifest: Manifest) -> None:
    """Print what is doubtful, before a job's first work."""
    for doubt in stored_samples(manifest).doubts():
        print(f"warning: {doubt}", flush=True)
