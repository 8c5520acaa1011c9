"""Opens what a `DataConfig` names: manifest, view, reader and plan. The one place where training meets the shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conclugen import PretrainConfig
from conclugen.mates import LARGER_BATCH, OTHER_COLUMNS, batch_with_mates, mates_share
from ray_jobs.roles import GROUP, group_columns
from ray_jobs.run_config import DEFAULT_VALIDATION_VIEW, DataConfig, ShardsConfig
from shards import EpochPlan, Manifest, Reader, View
from shards.errors import CorruptSample
from shards.planning.view import IndexValues
from shards.tools.stats import absent_modalities, column_moments


def data_set(folder: str, digest: str, rows: int, context: str = "training", name: str = "") -> dict[str, object]:
    """A data set as MLflow lists it. MLflow knows one by name and digest, and keeps the number of rows that it gets
    first: the digest is of the rows that are read, not of the folder."""
    return {"name": name or Path(folder).name, "digest": digest, "source": folder, "context": context, "rows": rows}


@dataclass(frozen=True)
class Source:
    """A view of a set of shards, its reader and the order in which training consumes it."""

    manifest: Manifest
    view: View
    reader: Reader
    plan: EpochPlan
    data: DataConfig

    @classmethod
    def open(
        cls, data: DataConfig, config: PretrainConfig, quarantine: Callable[[CorruptSample], None] | None = None
    ) -> Source:
        """Open the training side of `data`; `quarantine` is called with every corrupt sample.

        Raises:
            ValueError: no such folder or view, a modality without columns, or a view smaller than one global batch.
        """
        manifest = Manifest.open(data.folder)
        config.check_serves(available_widths(data, manifest))
        view = View.open(manifest, data.view)
        if 0 < view.rows < config.global_batch and data.remainder != "pad":
            fitting = max(min(view.rows, 16), 1 << (max(view.rows // 4, 1).bit_length() - 1))
            raise ValueError(
                f"pretrain.global_batch: {config.global_batch} is more than the {view.rows} rows of view "
                f"{data.view!r}; give --batch {fitting}, or at most {view.rows}"
            )
        plan = EpochPlan(
            counts=view.counts,
            seed=config.seed,
            global_batch=config.global_batch,
            chunk_rows=data.chunk_rows,
            remainder=data.remainder,
        )
        labels: tuple[str, ...] = ()  # pretraining reads none
        reader = open_reader(data, manifest, view, config.required_modalities, labels, quarantine, data.speaker)
        config.check_speakers(reader.grouped)
        return cls(manifest, view, reader, plan, data)

    def check(self) -> None:
        """Raise ValueError for a modality that no row of the view has, with the option that leaves it out."""
        absent = absent_modalities(self.reader)
        if absent:
            there = [name for name in self.reader.modalities if name not in absent]
            remedy = f"learn from the others: --modalities {','.join(there)}" if there else "choose another --view"
            names = ", ".join(map(repr, absent))
            raise ValueError(
                f"pretrain.modalities: {names} missing in all {len(self.reader)} rows of view {self.view.name!r}; "
                f"{remedy}"
            )

    def moments(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Mean and deviation of each modality, (D_m,) both, over the rows that standardisation is fitted on."""
        return column_moments(self.reader, self.data.standardization_rows, self.plan.seed)

    @property
    def steps_per_epoch(self) -> int | Fraction:
        """Optimiser steps of an epoch, for the schedule; a fraction where the remainder is carried over."""
        return self.plan.steps_per_epoch

    def identity(self) -> dict[str, object]:
        """What must agree when a run is resumed: which rows, in which order."""
        identity: dict[str, object] = {
            "data.manifest": self.manifest.digest,
            "data.view": self.view.digest,
            "data.plan": self.plan.digest,
            "data.modalities": {name: list(columns) for name, columns in self.reader.modalities.items()},
        }
        if self.data.speaker != GROUP:
            identity["data.speaker"] = self.data.speaker
        return identity | rounding(self.data)

    def model_info(self) -> dict[str, object]:
        """What an exported model says of the data that it learned from."""
        identity = self.identity()
        info = {"data": identity, "modalities": identity["data.modalities"]} | rendered([self.manifest])
        # Which encoders made the features, so that new clips go through the same ones.
        return info | ({"features": self.manifest.info["features"]} if "features" in self.manifest.info else {})

    def inputs(self) -> list[dict[str, object]]:
        """What a run reads, as MLflow lists it."""
        return [data_set(str(self.data.folder), self.view.digest, self.view.rows)]

    def tags(self) -> dict[str, str]:
        """What a run is found by in MLflow."""
        return {
            "dataset": Path(self.data.folder).name,
            "manifest_digest": self.manifest.digest,
            "view_digest": self.view.digest,
        }

    def describe(self) -> str:
        """Says what happens to the rows that fill no batch at the end of an epoch, where there are some."""
        rows = self.plan.total_rows
        left = rows % self.plan.global_batch
        if left == 0:
            return ""
        done = {
            "drop": "are dropped (a different set each epoch)",
            "pad": "make a short batch",
            "carry": "open the next epoch's first batch",
        }[self.plan.remainder]
        return f"; {left} of {rows} rows fill no batch and {done} (data.remainder={self.plan.remainder})"


def mates(source: object, batch: int) -> dict[str, float]:
    """What could be done where few rows of a batch find others of their speaker, for `conclugen.mates.remedies`;
    nothing where that can't be told: it is of a mixture, or its indexes can't be read now."""
    if not isinstance(source, Source):
        return {}
    try:
        viewed = np.concatenate([source.view.mask(shard) for shard in range(len(source.manifest))])
        rows, speaker = int(viewed.sum()), source.data.speaker
        found: dict[str, float] = {
            LARGER_BATCH: batch_with_mates(_sizes(source.manifest, speaker, viewed), rows, batch),
            OTHER_COLUMNS: 0,
        }
        if not found[LARGER_BATCH]:
            others = [column for column in group_columns(source.manifest) if column != speaker]
            each = [_sizes(source.manifest, column, viewed) for column in others]
            found[OTHER_COLUMNS] = sum(len(own) > 1 and mates_share(own, rows, batch) >= 0.5 for own in each)
    except (OSError, ValueError):
        return {}
    return found


def _sizes(manifest: Manifest, column: str, viewed: NDArray[np.bool_]) -> list[int]:
    """Rows of a view that have each value of a column."""
    codes = IndexValues.read(manifest, column).codes[viewed]
    counts: list[int] = np.bincount(codes[codes >= 0]).tolist()
    return [count for count in counts if count]


def rounding(data: DataConfig) -> dict[str, object]:
    """What identifies a run whose rows are not those that are stored."""
    return {} if data.rows_in == "stored" else {"data.rows_in": data.rows_in}


def rendered(manifests: Sequence[Manifest]) -> dict[str, object]:
    """What a model says that has learned from rendered faces."""
    return {"rendered": True} if any(manifest.info.get("rendered") for manifest in manifests) else {}


def available_widths(data: ShardsConfig, manifest: Manifest) -> dict[str, int]:
    """Width of every modality that the data can serve, whether or not a run uses it."""
    composition = manifest.schema.resolve(data.modalities)
    return {
        name: sum(manifest.schema.column(column).width for column in columns) for name, columns in composition.items()
    }


def open_reader(
    data: ShardsConfig,
    manifest: Manifest,
    view: View,
    modalities: tuple[str, ...],
    labels: tuple[str, ...] | None = None,
    quarantine: Callable[[CorruptSample], None] | None = None,
    speaker: str = GROUP,
) -> Reader:
    """A reader of the chosen modalities, composed as the configuration says or else as the manifest does; speaker:
    column that is the rows' group."""
    composition = manifest.schema.resolve(data.modalities)
    for name in modalities:
        if name not in composition:
            raise ValueError(
                f"modality {name!r}: the data has {', '.join(composition)}; compose it with data.modalities"
            )
    try:
        manifest.schema.check_group_column(speaker)
    except ValueError as error:
        raise ValueError(f"data.speaker: {error}") from None
    return Reader(
        manifest,
        view=view,
        modalities={name: composition[name] for name in modalities},
        labels=labels,
        max_corrupt_share=data.max_corrupt_share,
        quarantine=quarantine,
        group=speaker,
    )


def held_out_view(data: ShardsConfig, manifest: Manifest) -> str | None:
    """`data.validation_view`; None where it is none, or the default one and the data has no view of its name."""
    default = data.validation_view == DEFAULT_VALIDATION_VIEW
    return None if default and DEFAULT_VALIDATION_VIEW not in View.names(manifest) else data.validation_view


def note_no_validation(data: ShardsConfig, manifest: Manifest, what_follows: str) -> None:
    """Say in a line that the default validation view is not there, and what follows."""
    if data.validation_view is not None and held_out_view(data, manifest) is None:
        print(
            f"note: {manifest.folder} has no view {DEFAULT_VALIDATION_VIEW!r} (views: "
            f"{', '.join(View.names(manifest))}): {what_follows}; --data.validation-view names another",
            flush=True,
        )
