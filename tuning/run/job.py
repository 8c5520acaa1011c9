"""Job: from a folder to embeddings, a report and the next command. `conclugen run FOLDER`.

    conclugen run videos                                                        no labels: embeddings, health, clusters
    conclugen run videos --labels labels.csv --label emotion --group speaker    and how well the label is predicted
    conclugen run features.npz --label emotion:class --group actor              features that are there already

What is not given is chosen from the data, told, and written to `run.yaml` beside the results, from which
`conclugen run --config` repeats it. Stopped, the same command continues stage by stage.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, replace
from pathlib import Path

from conclugen.common.paths import absolute
from conclugen.config import DEFAULT_PRESET
from ray_jobs.options.extract import EncoderOptions
from ray_jobs.run_config import DEFAULT_OUTPUT, DEFAULT_RECIPE
from tuning.run.sizes import Sizes

_EACH = {"whole": True}  # every occurrence of the option is one item
_OUTSIDE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class RunJob(EncoderOptions):
    """From a folder of clips, or of features, to embeddings, a report and the next command.

    Pretrains on what is there without labels; with a label it continues to how well that is predicted, beside
    baselines. Sizes, modalities and views that are not given are chosen from the data.

    Attributes:
        source: Folder of videos, shards, or feature files (.npz, a folder of .npy, HDF5); given without an option.
        run: Name of the run; none: the source's. The same name continues it.
        output: Folder of all runs; everything of this one is in `<output>/<run>`.
        labels: Table (CSV, TSV, JSONL, Parquet) with a row for each clip.
        label: A label of the table or the features, as NAME[=COLUMN][:KIND[:CLASS,...]]; may be repeated. KIND is
            class, continuous or multilabel; of text it is class.
        group: Column that says who speaks: speakers stay on one side of every split.
        text: Column of what is said.
        key: Features: the array that names the samples.
        field: Clips: which column of the table a name means, as NAME=COLUMN (path, start, end, split, ...).
        encoding: Of a table or transcripts that are not UTF-8, such as cp1252, which spreadsheets write; none: UTF-8.
        allow_incomplete: Go on where clips of the table are missing; they are warned of and listed.
        encoders: Clips: frozen encoders, or sets of them.
        modalities: Modalities to learn; none: those that the data has.
        preset: Which tasks are learned; see `conclugen pretrain`.
        recipe: `improved`, or `paper` for the published formulae.
        batch: Rows of a global batch; none: chosen from the rows.
        representation: Width of each modality's representation; none: chosen from the rows.
        epochs: Length of pretraining; none: chosen from the rows.
        workers: Training processes; none: 1.
        gpu: Train on GPUs.
        seed: Of splits, and of pretraining.
        tracking_uri: MLflow tracking URI; none: a local SQLite file below `output`.
        overwrite: Replace what an earlier run of other data or options left in the folder.
        quiet: No progress lines.
    """

    source: Path
    run: str | None = None
    output: str = DEFAULT_OUTPUT
    labels: Path | None = None
    label: tuple[str, ...] = dataclasses.field(default=(), metadata=_EACH)
    group: str | None = None
    text: str | None = None
    key: str | None = None
    field: dict[str, str] = dataclasses.field(default_factory=dict)
    encoding: str | None = None
    allow_incomplete: bool = False
    encoders: tuple[str, ...] = ("offline",)
    modalities: tuple[str, ...] | None = None
    preset: str = DEFAULT_PRESET
    recipe: str = DEFAULT_RECIPE
    batch: int | None = None
    representation: int | None = None
    epochs: int | None = None
    workers: int = 1
    gpu: bool = False
    seed: int = 0
    tracking_uri: str | None = None
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "representation", "epochs", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")

    @property
    def name(self) -> str:
        """Of the run, and of its folder."""
        if self.run is not None:
            return self.run
        source = absolute(self.source, "source")
        return _OUTSIDE.sub("-", source.stem if source.is_file() else source.name).strip("-.") or "run"

    @property
    def folder(self) -> Path:
        """Everything of the run."""
        return absolute(self.output, "output") / self.name

    @property
    def columns(self) -> dict[str, str]:
        """What a column of the table is -> its name there, of clips."""
        named = {"group": self.group, "text": self.text}
        return {name: column for name, column in named.items() if column is not None} | self.field

    def chosen(self, sizes: Sizes, modalities: tuple[str, ...]) -> RunJob:
        """The job with what was chosen for it, to be run again."""
        return replace(
            self,
            run=self.name,
            source=absolute(self.source, "source"),
            labels=None if self.labels is None else absolute(self.labels, "labels"),
            modalities=modalities,
            batch=sizes.batch,
            representation=sizes.representation,
            epochs=self.epochs or sizes.epochs,
            overwrite=False,
        )
