"""A labelled set of shards, whole in memory, with the protocol by which representations of it are judged.

Test speakers are never seen: where the shards have views `train` and `test` (a published split, packed with
`--view-by split`) these are the one fold; else folds are made over the groups, so that every speaker is tested once by
what was trained on the others (cross-fitted). Labels are drawn from the training rows by seed and class, the same for
every system. Features are standardised on the training rows of the fold, or each unit's by its own rows (`judging`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conclugen import fields
from conclugen.evaluation.config import JudgingConfig, ProbeConfig
from conclugen.evaluation.features import standardise
from conclugen.evaluation.judge import check
from conclugen.evaluation.protocol import Fold, Protocol, Target, group_cross_folds, held_out_fold, require_groups
from conclugen.evaluation.solvers import LayerBlock
from conclugen.presets import ALL
from ray_jobs.extraction.plan import stored_layers
from ray_jobs.roles import GROUP, Units, refuse_shared
from shards import Manifest, Reader, View

TRAIN_VIEW, TEST_VIEW = "train", "test"


@dataclass(frozen=True)
class LabelledSet:
    """Features, presence and protocol of one set; rows are those with the label and at least one modality.

    features: modality -> (N, D) float32, 0 where missing. present: modality -> (N,) bool. group (N,) int64: number of
    the speaker (of negatives), as batches carry it; the protocol's groups and units are names. unit: what a unit of
    intervals is called. layers: modality -> columns of it that are layers of an encoder side by side. complete: the
    modalities that a task combination learns from: video, audio and text as far as the set has them (all of its
    modalities where it has none of these). digest: of the data, the label and the rows; judged_by: of how it is judged.
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
    unit: str = "speaker"
    judging: JudgingConfig = field(default_factory=JudgingConfig)
    layers: Mapping[str, Sequence[LayerBlock]] = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        return {name: array.shape[1] for name, array in self.features.items()}

    @property
    def smallest_training_part(self) -> int:
        return min(len(fold.train_rows) for fold in self.protocol.folds)

    def standardised(self, modalities: Sequence[str], fold: Fold) -> dict[str, NDArray[np.float32]]:
        """(N, D) of each modality, standardised as `judging.normalisation` says; 0, the mean, where missing.

        Raises ValueError for a modality that no training row of the fold has.
        """
        features, present = ({m: whole[m] for m in modalities} for whole in (self.features, self.present))
        groups = self.protocol.groups if self.judging.normalisation == "speaker_normalised" else None
        try:
            values = standardise(features, present, fold.train_rows, groups)
        except ValueError as error:
            raise ValueError(f"{self.name}, fold {fold.number}: {error}") from None
        return {m: array.astype(np.float32) for m, array in values.items()}


@dataclass(frozen=True)
class Roles:
    """Columns that say whose a row is (`ray_jobs.roles`); of the second and third, None is the first.

    Attributes:
        split_unit: Unit of folds.
        speaker: Whose negatives are taken together.
        interval_unit: Unit of intervals and tests.
    """

    split_unit: str = GROUP
    speaker: str | None = None
    interval_unit: str | None = None


_ONE_ROLE = Roles()


def open_set(
    name: str,
    folder: str,
    judging: JudgingConfig,
    label: str | None = None,
    train_only: Sequence[str] = (),
    roles: Roles = _ONE_ROLE,
) -> LabelledSet:
    """Read a packed set.

    label: where it has several class labels. train_only: groups that are never tested (those that designs were chosen
    on). Raises ValueError, with what to change: no such folder, no groups, no class label or several, unknown groups,
    fewer groups than folds, a class without labelled rows.
    """
    manifest = Manifest.open(folder)
    chosen = _class_label(name, manifest, label)
    reader = Reader(manifest, labels=(chosen,))
    if reader.corrupt.total_rows == 0:
        raise ValueError(f"data set {name!r}: {folder} has no rows")
    rows = reader.read_ranges([(shard, 0, int(count)) for shard, count in enumerate(manifest.counts) if count])
    split = Units.read(manifest, roles.split_unit, f"split_units.{name}")
    groups = _group_names(name, split)
    speakers = split if roles.speaker is None else Units.read(manifest, roles.speaker, f"speakers.{name}")
    units = (
        split if roles.interval_unit is None else Units.read(manifest, roles.interval_unit, f"interval_units.{name}")
    )
    target = np.asarray(rows.labels[chosen])
    kept = (target >= 0) & np.any(list(rows.present.values()), axis=0)
    train, test = _published(manifest)
    if train is not None and test is not None:
        kept &= train | test
    picked = np.flatnonzero(kept)
    views = None if train is None or test is None else test[picked]
    labels = Target(chosen, "class", target[picked], manifest.schema.label(chosen).classes)
    if views is not None:
        where, option = f"data set {name!r}, views {TRAIN_VIEW!r} and {TEST_VIEW!r}", f"--split-units.{name}"
        assert train is not None  # both views are there, or neither is used
        refuse_shared(manifest, split, picked[train[picked]], picked[views], where=where, option=option)
    protocol = _protocol(name, groups[picked], labels, judging, views, train_only, units.names(picked))
    own = [] if speakers.column == GROUP else [speakers.column]
    digest = hashlib.sha256(
        json.dumps([manifest.digest, chosen, hashlib.sha256(picked.tobytes()).hexdigest(), *own]).encode()
    ).hexdigest()
    by = [] if split.column == units.column == GROUP else [{"split_unit": split.column, "interval_unit": units.column}]
    folded = "view" if views is not None else "groups"
    held = [hashlib.sha256(fold.test_rows.tobytes()).hexdigest() for fold in protocol.folds]
    learnable = tuple(m for m in ALL if m in rows.features)
    return LabelledSet(
        name=name,
        label=chosen,
        features={m: np.ascontiguousarray(x[picked], dtype=np.float32) for m, x in rows.features.items()},
        present={m: there[picked] for m, there in rows.present.items()},
        group=speakers.ids(picked),
        protocol=protocol,
        complete=learnable or tuple(rows.features),
        digest=digest,
        judged_by=json.dumps([_settings(judging), folded, sorted(train_only), held, *by], sort_keys=True),
        unit=units.noun(1).removeprefix("1 "),
        judging=judging,
        layers=stored_layers(manifest, None, tuple(rows.features)),
    )


def _settings(judging: JudgingConfig) -> dict[str, Any]:
    """What decides a result. What a newer field adds at its default is left out: results from before it stay found."""
    newer = {"class_weights": "none", "select_by": "accuracy", "block_scales": "plain", "normalisation": "inductive"}
    # What `with_raw` adds changes no other number.
    return {name: v for name, v in asdict(judging).items() if newer.get(name) != v and name != "with_raw"}


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


def _group_names(name: str, split: Units) -> NDArray[np.str_]:
    lacking, rows = split.values.missing, len(split.values.codes)
    if lacking:
        what = "group (speaker)" if split.column == GROUP else split.column
        raise ValueError(
            f"data set {name!r}: {lacking} of {rows} rows have no {what}; a fair test needs it: pack again with "
            f"--group FIELD, or name another column: --split-units.{name}"
        )
    return split.names(np.arange(rows))


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
    units: NDArray[np.str_],
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
        protocol = Protocol(name, target, groups, folds, probe, units)
        check(protocol)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from None
    return protocol.drawn(judging.fractions, judging.draws, judging.draw_seed)
