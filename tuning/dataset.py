"""A labelled set of shards, whole in memory, with the protocol by which representations of it are judged.

Test speakers are never seen: where the shards have views `train` and `test` (a published split, packed with
`--view-by split`) these are the one fold; else folds are made over the groups, so that every speaker is tested once by
what was trained on the others (cross-fitted). Labels are drawn from the training rows by seed and class, the same for
every system. Features are standardised on the training rows of the fold (inductive).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen import fields
from conclugen.evaluation.config import JudgingConfig, ProbeConfig
from conclugen.evaluation.features import standardise
from conclugen.evaluation.judge import check
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_cross_folds, held_out_fold, require_groups
from conclugen.presets import ALL
from shards import Manifest, Reader, View, group_id

TRAIN_VIEW, TEST_VIEW = "train", "test"


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
        features, present = ({m: whole[m] for m in modalities} for whole in (self.features, self.present))
        try:
            values = standardise(features, present, fold.train_rows)
        except ValueError as error:
            raise ValueError(f"{self.name}, fold {fold.number}: {error}") from None
        return {m: array.astype(np.float32) for m, array in values.items()}


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
    labels = Target(chosen, "class", target[picked], manifest.schema.label(chosen).classes)
    protocol = _protocol(name, groups[picked], labels, judging, views, train_only)
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
        judged_by=json.dumps([_settings(judging), split, sorted(train_only), held], sort_keys=True),
    )


def _settings(judging: JudgingConfig) -> dict[str, Any]:
    """What decides a result. What a newer field adds at its default is left out: results from before it stay found."""
    newer = {"class_weights": "none", "select_by": "accuracy"}
    return {name: value for name, value in asdict(judging).items() if newer.get(name) != value}


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
    target: Target,
    judging: JudgingConfig,
    tested: NDArray[np.bool_] | None,
    train_only: Sequence[str],
) -> Protocol:
    """The published fold where there is one (`tested` (N,)), else folds over the groups."""
    require_groups(f"train_only.{name}", train_only, groups)
    kept = np.isin(groups, list(train_only))
    folds: tuple[Fold, ...]
    try:
        if tested is not None:
            folds = (held_out_fold(tested, ~(tested & kept)),)
        else:
            folds = group_cross_folds(groups, judging.folds, train_only)
        probe = ProbeConfig(
            inner_folds=judging.inner_folds, class_weights=judging.class_weights, select_by=judging.select_by
        )
        protocol = Protocol(name, target, groups, folds, probe)
        check(protocol)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from None
    return protocol.drawn(judging.fractions, judging.draws, judging.draw_seed)
