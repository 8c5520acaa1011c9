"""`python -m shards split`: make views by group, or by any column of the index; functions for jobs and tests.

Splitting by group keeps every speaker on one side: a model that has heard a speaker in training recognises voice and
face in the test, which measures the wrong thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.locks import folder_held
from conclugen.common.options import to_plain
from shards.access import refuse_url
from shards.doubts import of_groups, of_parts
from shards.format import publication
from shards.format.manifest import Manifest
from shards.format.publication import Publication
from shards.options import SplitJob
from shards.planning.view import ROW, IndexValues, View, check_view_name

_MAX_OWN_VIEWS = 100


def assign(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, tuple[str, ...]]:
    """Distribute groups over parts so that each part has about its share of the rows. No group is divided.

    Groups are taken from large to small (in classes of powers of two; within a class the order is drawn from the seed),
    each for the part that lacks most rows; every part gets one group at least. The result depends on names, sizes,
    shares and seed only.

    Raises ValueError for shares that are not positive or add up to more than 1, and for fewer groups than parts. Shares
    that add up to less leave groups over, in no part.
    """
    total = sum(shares.values())
    if not shares or not all(share > 0 for share in shares.values()) or not total <= 1 + 1e-9:  # NaN is neither
        raise ValueError(
            f"parts are {dict(shares)}; expected positive shares that add up to 1 (or less: the rest is left out)"
        )
    if len(sizes) < len(shares):
        raise ValueError(f"{len(sizes)} group(s) cannot be divided over {len(shares)} parts without dividing a group")

    def order(name: str) -> tuple[int, bytes]:
        return -sizes[name].bit_length(), hashlib.blake2b(f"split|{seed}|{name}".encode(), digest_size=16).digest()

    rows = sum(sizes.values())
    lacking = {part: share * rows for part, share in shares.items()}
    if total < 1 - 1e-9:
        lacking[""] = (1 - total) * rows
    parts: dict[str, list[str]] = {part: [] for part in lacking}
    ordered = sorted(sizes, key=order)
    for place, name in enumerate(ordered):
        empty = [part for part in shares if not parts[part]]
        allowed = empty if len(ordered) - place <= len(empty) else list(lacking)
        part = max(allowed, key=lambda candidate: lacking[candidate])
        parts[part].append(name)
        lacking[part] -= sizes[name]
    return {part: tuple(sorted(parts[part])) for part in shares}


# ---- command line -------------------------------------------------------------------------------------------------


def run(job: SplitJob) -> int:
    """Make the views, save them, print a summary. Raises ValueError before anything is written."""
    refuse_url("FOLDER", job.data, "Views are written beside the shards: make them in a local copy and copy them back")
    of = {"split": to_plain(replace(job, overwrite=False))}
    finished = publication.finish_same(job.data, of)
    manifest = Manifest.open(job.data)
    views, lines = make_views(
        manifest,
        job.by,
        job.parts,
        [_listing(text) for text in job.take],
        job.rest,
        job.seed,
        allow_leak=job.allow_leak,
    )
    if finished:
        print("the same split was stopped while it published its views, which is done now", flush=True)
    else:
        save_views(manifest, views, job.overwrite, of)
    print("\n".join(lines))
    return 0


def save_views(
    manifest: Manifest, views: Sequence[View], overwrite: bool = False, of: Mapping[str, Any] | None = None
) -> None:
    """Write views beside the shards, all of them or none (`shards.format.publication`), over those of their names.

    Raises ValueError where some are there and not to be replaced, FolderInUseError where another process writes there.
    """
    if not manifest.is_local:
        raise ValueError(f"{manifest.folder}: views are written to local folders; copy the folder afterwards")
    folder = Path(manifest.folder)
    with folder_held(folder, "shards or views are being written here", "another time", field="FOLDER"):
        publication.finish(folder)
        there = sorted({view.name for view in views} & set(View.names(manifest)))
        if there and not overwrite:
            raise ValueError(f"{folder} has view(s) {', '.join(there)} already; give --overwrite or other names")
        if Manifest.open(folder).digest != manifest.digest:
            raise ValueError(f"{folder}: holds other shards than when the views were made; start again")
        staging = publication.discard(folder)
        for view in views:
            view.save(staging)
        publication.publish(folder, Publication(publication.staged_names(staging), replaces=False, of=of))
        for view in views:
            if View.open(manifest, view.name).digest != view.digest:
                raise ValueError(f"{folder}: view {view.name!r} is not the one that was just written; start again")


def make_views(
    manifest: Manifest,
    by: str = "group",
    parts: Mapping[str, float] | None = None,
    take: Collection[tuple[str, tuple[str, ...]]] = (),
    rest: str | None = None,
    seed: int = 0,
    allow_leak: bool = False,
) -> tuple[list[View], list[str]]:
    """Views (not saved yet) and the lines of a summary. With `parts` the column's values are distributed by share; with
    `take` they are listed; with neither, each value is a view of its own name."""
    values = _values(manifest, by, allow_leak)
    rule: dict[str, Any] = {"by": by}
    if parts and (take or rest):
        raise ValueError("--parts distributes all values by itself; give either --parts or --take (with --rest)")
    if rest and not take:
        raise ValueError("--rest is what --take leaves; give --take as well")
    if parts:
        chosen = assign(values.sizes, parts, seed)
        rule |= {"parts": dict(parts), "seed": seed}
    elif take:
        chosen = _listed(take, rest, values)
    else:
        check_values_as_names(by, values.names)
        chosen = {name: (name,) for name in values.names}
    for name in chosen:
        check_view_name(name)
    views = [values.view(name, members, rule) for name, members in chosen.items()]
    return views, _summary(views, chosen, values) + _doubts(views, manifest)


def _values(manifest: Manifest, by: str, allow_leak: bool) -> IndexValues:
    if by in (ROW, "key"):
        if manifest.schema.grouped and not allow_leak:
            raise ValueError(
                f"--by {by} would put rows of one group (speaker) on both sides: scores on such a split measure how "
                "well a model knows the speakers, not the task. Use --by group, or say --allow-leak if you mean it"
            )
        return IndexValues.of_rows(manifest)
    values = IndexValues.read(manifest, by)
    if not values.names:
        raise ValueError(f"no row has a value in {by}; split by another column, or --by row")
    return values


def check_values_as_names(by: str, names: Collection[str]) -> None:
    """Raise ValueError unless each of a column's different values can be the name of a view of its own."""
    if len(names) > _MAX_OWN_VIEWS:
        raise ValueError(f"{by} has {len(names)} values, each would be a view; name some with --take, or use --parts")
    for name in names:
        check_view_name(name)


def _listed(
    take: Collection[tuple[str, tuple[str, ...]]], rest: str | None, values: IndexValues
) -> dict[str, tuple[str, ...]]:
    chosen: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for name, members in take:
        if name in chosen or name == rest:
            raise ValueError(f"view {name!r} is named twice")
        for member in members:
            if owner.setdefault(member, name) != name:
                raise ValueError(
                    f"{values.column} {member!r} is in the views {owner[member]!r} and {name!r}; name it once"
                )
        chosen[name] = members
    if rest:
        chosen[rest] = tuple(value for value in values.names if value not in owner)
    return chosen


def _summary(views: list[View], chosen: Mapping[str, tuple[str, ...]], values: IndexValues) -> list[str]:
    manifest = values.manifest
    lines = []
    for view in views:
        members = chosen[view.name]
        some = ", ".join(members[:12]) + (", ..." if len(members) > 12 else "")
        what = "" if values.column == ROW else f"  {len(members)} x {values.column}: {some}"
        lines.append(f"{view.name:<12} {view.rows:>10} rows ({view.rows / manifest.rows:6.1%}){what}")
    outside = manifest.rows - sum(view.rows for view in views)
    if outside:
        lines.append(f"{outside} rows are in no view ({values.missing} have no {values.column})")
    return lines


def _doubts(views: Sequence[View], manifest: Manifest) -> list[str]:
    """Warnings of views that lack a class, have very few groups, or share some: see `shards.doubts`."""
    rows = {view.name: np.concatenate([view.mask(shard) for shard in range(len(manifest))]) for view in views}
    found = []
    for label in manifest.labels:
        if label.kind == "class":
            values = IndexValues.read(manifest, f"label.{label.name}")
            found += of_parts(label.name, {view: _counts(values, mask) for view, mask in rows.items()}, "view")
    if manifest.schema.grouped:
        groups = IndexValues.read(manifest, "group")
        found += of_groups({view: _counts(groups, mask).keys() for view, mask in rows.items()}, "view")
    return [f"warning: {doubt}" for doubt in found]


def _counts(values: IndexValues, mask: np.ndarray) -> dict[str, int]:
    """Value -> rows of a view that have it, without those that none has."""
    codes, counts = np.unique(values.codes[mask & (values.codes >= 0)], return_counts=True)
    return {values.names[code]: int(count) for code, count in zip(codes, counts, strict=True)}


def _listing(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, listed = text.partition("=")
    if not name or not listed:
        raise ValueError(f"take: {text!r}: expected NAME=VALUE[,VALUE...] or NAME=@FILE")
    try:
        text = Path(listed[1:]).read_text(encoding="utf-8") if listed.startswith("@") else listed.replace(",", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"take: {text!r}: {listed[1:]} cannot be read: {error}") from None
    return name, tuple(value.strip() for value in text.splitlines() if value.strip())
