"""A labelled set of shards, whole in memory, and the protocol by which representations of it are judged.

Test speakers are never seen: where the shards have views `train` and `test` (a published split, packed with
`--view-by split`) these are the one fold; else folds are made over the groups, so that every speaker is tested once by
what was trained on the others (cross-fitted). Labels are drawn from the training rows by seed and class, the same for
every system. Features are standardised on the training rows of the fold (inductive).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from conclugen import fields
from conclugen.downstream import STRENGTHS, Scaling, label_draw
from conclugen.presets import ALL
from shards import Manifest, Reader, View, group_id
from tuning.protocol import Fold, Protocol

TRAIN_VIEW, TEST_VIEW = "train", "test"
# A class with fewer rows than this in one group-wise draw would leave inner folds without it.
_MINIMUM_PER_CLASS = 3


@dataclass(frozen=True)
class JudgingConfig:
    """How representations are judged.

    Attributes:
        fractions: Shares of the training rows whose labels the probe sees; all of them is 1.
        draws: Draws of labels at each share below 1.
        folds: Folds over the groups, where the shards have no views train and test.
        inner_folds: Folds over training groups by which the probe's strength is chosen.
        draw_seed: Of the draws of labels; the same for every system and pretraining seed.
    """

    fractions: tuple[float, ...] = (0.03, 0.1, 1.0)
    draws: int = 5
    folds: int = 4
    inner_folds: int = 3
    draw_seed: int = 127

    def __post_init__(self) -> None:
        if not self.fractions or any(not 0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"judging.fractions: {list(self.fractions)}; expected shares above 0 and up to 1")
        for name, least in (("draws", 1), ("folds", 2), ("inner_folds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"judging.{name}: {getattr(self, name)}; expected {least} or more")


@dataclass(frozen=True)
class LabelledSet:
    """Features, presence and protocol of one set; rows are those with the label and at least one modality.

    features: modality -> (N, D) float32, 0 where missing. present: modality -> (N,) bool. group (N,) int64: number of
    the speaker or video, as batches carry it; the protocol's groups are names. complete: the modalities that a task
    combination learns from: video, audio and text as far as the set has them (all of its modalities where it has none
    of these). digest: of the data, the label and the rows; judged_by: of how it is judged.
    """

    name: str
    label: str
    features: Mapping[str, NDArray[np.float32]]
    present: Mapping[str, NDArray[np.bool_]]
    group: NDArray[np.int64]
    protocol: Protocol
    complete: tuple[str, ...]
    digest: str
    judged_by: str

    @property
    def widths(self) -> dict[str, int]:
        return {name: array.shape[1] for name, array in self.features.items()}

    @property
    def smallest_training_part(self) -> int:
        return min(len(fold.train_rows) for fold in self.protocol.folds)

    def standardised(self, modalities: Sequence[str], fold: Fold) -> dict[str, NDArray[np.float32]]:
        """(N, D) of each modality, standardised on the fold's training rows that have it; 0, the mean, where missing.

        Raises ValueError for a modality that no training row of the fold has.
        """
        result = {}
        for name in modalities:
            there = self.present[name]
            training = fold.train_rows[there[fold.train_rows]]
            if not len(training):
                raise ValueError(
                    f"{self.name}, fold {fold.number}: no training row has modality {name!r}; leave it out"
                )
            values = Scaling.fit(self.features[name][training]).apply(self.features[name])
            result[name] = np.where(there[:, None], values, 0).astype(np.float32)
        return result


def open_set(
    name: str, folder: str, judging: JudgingConfig, label: str | None = None, train_only: Sequence[str] = ()
) -> LabelledSet:
    """Read a packed set.

    label: where it has several class labels. train_only: groups that are never tested (those that designs were chosen
    on). Raises ValueError, with what to change: no such folder, no groups, no class label or several, unknown groups,
    fewer groups than folds, a class without labelled rows.
    """
    manifest = Manifest.open(folder)
    chosen = _class_label(name, manifest, label)
    reader = Reader(manifest, labels=(chosen,))
    if reader.damage.total_rows == 0:
        raise ValueError(f"data set {name!r}: {folder} holds no rows")
    rows = reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(manifest.counts) if count])
    groups = _group_names(name, manifest)
    target = np.asarray(rows.labels[chosen])
    kept = (target >= 0) & np.any(list(rows.present.values()), axis=0)
    train, test = _published(manifest)
    if train is not None and test is not None:
        kept &= train | test
    picked = np.flatnonzero(kept)
    views = None if train is None or test is None else test[picked]
    protocol = _protocol(name, groups[picked], target[picked], manifest, chosen, judging, views, train_only)
    digest = hashlib.sha256(
        json.dumps([manifest.digest, chosen, hashlib.sha256(picked.tobytes()).hexdigest()]).encode()
    ).hexdigest()
    split = "view" if views is not None else "groups"
    held = [hashlib.sha256(fold.test_rows.tobytes()).hexdigest() for fold in protocol.folds]
    learnable = tuple(m for m in ALL if m in rows.features)
    return LabelledSet(
        name=name,
        label=chosen,
        features={m: np.ascontiguousarray(x[picked], dtype=np.float32) for m, x in rows.features.items()},
        present={m: there[picked] for m, there in rows.present.items()},
        group=np.asarray([group_id(str(group)) for group in groups[picked]], dtype=np.int64),
        protocol=protocol,
        complete=learnable or tuple(rows.features),
        digest=digest,
        judged_by=json.dumps([asdict(judging), split, sorted(train_only), held], sort_keys=True),
    )


def natural_order(names: Sequence[str]) -> list[str]:
    """Sorted as numbers where all names are numbers (speaker 2 before speaker 10), else as text."""
    listed = [str(name) for name in names]
    return sorted(listed, key=int) if all(name.isdecimal() for name in listed) else sorted(listed)


def _class_label(name: str, manifest: Manifest, wanted: str | None) -> str:
    labels = [label.name for label in manifest.schema.labels if label.kind == "class"]
    if wanted is not None:
        fields.choose(f"labels.{name}", wanted, labels)
        return wanted
    if len(labels) != 1:
        there = ", ".join(labels) or "none"
        raise ValueError(
            f"data set {name!r}: its class labels are: {there}; "
            + (f"choose one: --labels.{name} NAME" if labels else "pack one: --label NAME=FIELD:class")
        )
    return labels[0]


def _group_names(name: str, manifest: Manifest) -> NDArray[np.str_]:
    reader = Reader(manifest)
    found: list[str | None] = []
    for shard in range(len(manifest)):
        found += reader.metadata(shard).column("group").to_pylist()
    lacking = sum(group is None for group in found)
    if lacking:
        raise ValueError(
            f"data set {name!r}: {lacking} of {len(found)} rows have no group (speaker); a fair test needs it: "
            "pack again with --group FIELD"
        )
    return np.asarray(found, dtype=str)


def _published(manifest: Manifest) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """(rows,) masks of the views train and test, or None where the data does not have both."""
    if not {TRAIN_VIEW, TEST_VIEW} <= set(View.names(manifest)):
        return None, None
    views = [View.open(manifest, view) for view in (TRAIN_VIEW, TEST_VIEW)]
    train, test = (np.concatenate([view.mask(shard) for shard in range(len(manifest))]) for view in views)
    return train, test


def _protocol(
    name: str,
    groups: NDArray[np.str_],
    target: NDArray[np.int64],
    manifest: Manifest,
    label: str,
    judging: JudgingConfig,
    tested: NDArray[np.bool_] | None,
    train_only: Sequence[str],
) -> Protocol:
    listed = natural_order(np.unique(groups).tolist())
    for group in train_only:
        if group not in listed:
            raise ValueError(
                f"train_only.{name}: no row of group {group!r}{fields.nearest(group, listed)}; the set has "
                f"{len(listed)} groups, {listed[0]!r} to {listed[-1]!r}"
            )
    if tested is not None:
        parts = [np.unique(groups[tested & ~np.isin(groups, list(train_only))])]
    else:
        candidates = [group for group in listed if group not in set(train_only)]
        if len(candidates) < judging.folds:
            raise ValueError(
                f"data set {name!r}: {len(candidates)} groups to test for {judging.folds} folds; lower judging.folds"
            )
        parts = [np.asarray(candidates[number :: judging.folds]) for number in range(judging.folds)]
    folds = []
    for number, part in enumerate(parts):
        inside = np.isin(groups, part)
        test = inside if tested is None else inside & tested
        train = ~inside if tested is None else ~tested
        folds.append(Fold(number, np.flatnonzero(train), np.flatnonzero(test)))
    classes = manifest.schema.label(label).classes
    labelled = tuple(_draws(name, fold, target, classes, judging) for fold in folds)
    return Protocol(name, groups, target, classes, tuple(folds), labelled, STRENGTHS, judging.inner_folds)


def _draws(
    name: str, fold: Fold, target: NDArray[np.int64], classes: Sequence[str], judging: JudgingConfig
) -> dict[float, tuple[NDArray[np.int64], ...]]:
    labels = target[fold.train_rows]
    for number, label in enumerate(classes):
        if not (labels == number).any():
            raise ValueError(f"data set {name!r}, fold {fold.number}: no training row of class {label!r}; fewer folds?")
    drawn = {}
    for fraction in judging.fractions:
        draws = 1 if fraction == 1 else judging.draws
        drawn[float(fraction)] = tuple(
            label_draw(fold.train_rows, fraction, judging.draw_seed, draw, labels, _MINIMUM_PER_CLASS)
            for draw in range(draws)
        )
    return drawn
