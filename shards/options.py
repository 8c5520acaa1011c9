"""Options of the commands of `python -m shards`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conclugen.common.names import check_corpus
from conclugen.common.paths import absolute

_EACH = {"whole": True}  # every occurrence of the option is one item


@dataclass(frozen=True, kw_only=True)
class CheckJob:
    """Print a data set as it is understood, and what is doubtful in it; write nothing.

    The source is one of
      clips      a folder of videos, with a table (--labels) or laid out as an --adapter knows it; options as of
                 conclugen run. Each file is opened, and its first picture and sound are read
      features   arrays (.npz, a folder of .npy files) and a table (--labels); options as of conclugen pack
      archives   a folder of .tar files that other tools wrote; options as of conclugen index
      table      a table by itself

    Exit status: 0 nothing is doubtful; 1 something is, or clips will be quarantined; 2 it would be refused.

    Attributes:
        source: Folder, .npz file, or table; given without an option.
        kind: What the source is; none: by what is in it.
        table: CSV, TSV, JSONL or Parquet file with a row for each clip or sample.
        encoding: Of tables and texts that are not UTF-8, such as cp1252; none: UTF-8.
        label: A label, as NAME[=FIELD][:KIND[:CLASS,...]]; may be repeated. KIND is class, continuous or multilabel; of
            text it is class.
        adapter: Clips: how the set is laid out: see below.
        field: Clips: name of a column in the table, as NAME=COLUMN.
        unpack: Webdataset: folder where the videos are unpacked.
        folds: Clips: official folds of mosei (.json, or the SDK's .py).
        look: Clips: how many of the videos are looked into at most, spread over all; none: all.
        column: Features, archives: a column to store, as NAME or NAME=ARRAY.
        key: Features: the field that names the samples.
        table_key: Features: the table's column with the samples' keys.
        group: The column or field that says who speaks.
        text: The column or field of what is said.
        meta: Features, archives: a further text, as NAME or NAME=FIELD.
        view_by: Features: the --meta field whose values name views; none: split.
        nan_row_missing: Features, archives: how many NaN make a row missing.
        pool: Features: how a sequence (T, D) becomes a vector: mean, mean-std or max.
        zero_padding: Features: with --pool, rows of zeros alone are padding.
        csv_columns: Features: those of per-clip CSV files, as patterns such as AU*_r; none: all.
    """

    source: Path
    kind: Literal["clips", "features", "archives", "table", "shards"] | None = None
    table: Path | None = None
    encoding: str | None = None
    label: tuple[str, ...] = dataclasses.field(default=(), metadata=_EACH)
    adapter: str = "folder"
    field: dict[str, str] = dataclasses.field(default_factory=dict)
    unpack: Path | None = None
    folds: Path | None = None
    look: int | None = 1000
    column: dict[str, str] = dataclasses.field(default_factory=dict)
    key: str | None = None
    table_key: str | None = None
    group: str | None = None
    text: str | None = None
    meta: dict[str, str] = dataclasses.field(default_factory=dict)
    view_by: str | None = None
    nan_row_missing: Literal["all", "any"] = "all"
    pool: str | None = None
    zero_padding: bool = False
    csv_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.look is not None and self.look < 0:
            raise ValueError(f"look: must be at least 0, or none, got {self.look}")


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """Pack feature arrays and labels into shards.

    A source is one of
      FILE.npz                       arrays with one row for each sample
      FOLDER with ARRAY.npy          the same, a file for each array
      FOLDER with COLUMN/KEY.npy     a file for each sample and column, or COLUMN/SPLIT/KEY.npy
                                     (the field `split` then says which)
      FOLDER with COLUMN/KEY.csv     per-clip files of OpenFace or openSMILE, a row for every frame
                                     (FOLDER/KEY.csv: the one column is named `csv`)
      FOLDER with KEY.npz            a file for each sample, an array for each column
      FILE.h5 (.hdf5, .csd)          arrays with a row for each sample, or a group for each sample
    Where a sample has a sequence (T, D), --pool says how it becomes one vector.
    A FIELD is an array of the source with one value for each sample, or a column of --table.
    A row of NaN is a missing one. The input is checked completely before anything is written.

    Attributes:
        source: File of arrays (.npz), or folder of .npy files; given without an option.
        output: Folder where the shards are written.
        column: A column to store, as NAME or NAME=ARRAY; may be repeated.
        modality: Columns that make a modality when it is read, as NAME=COLUMN[,COLUMN]; none: each column is one.
        label: A label, as NAME[=FIELD[,FIELD]][:KIND[:CLASS,CLASS|:names=ARRAY]]; KIND is class, multilabel or
            continuous, of text class; classes are listed, named by an array, or found. May be repeated.
        key: The field that names the samples; none: file names, or row numbers.
        group: The field that says whose sample it is (speaker).
        text: The field of the transcript.
        meta: A further text to keep, as NAME or NAME=FIELD; may be repeated.
        table: CSV, TSV, JSONL or Parquet file with a row for each sample.
        pool: How a sequence (T, D) becomes a vector, over its valid rows: mean, mean-std or max; none: it is refused.
        zero_padding: With --pool: rows of zeros alone are padding, and do not count.
        csv_columns: Features of per-clip CSV files, as patterns such as AU*_r; none: all.
        table_key: Its column with the samples' keys; none: rows are in the same order.
        encoding: Of a table that is not UTF-8, such as cp1252; none: UTF-8.
        dtype: Float type to store; none: the source's.
        nan_row_missing: How many NaN make a row missing; with `all`, rows with fewer are refused.
        shuffle_seed: Seed of the global order; none: the order is kept.
        max_shard_mb: Largest size of a shard in MB (1024^2 bytes).
        view_by: A view for each value of this text, such as split; it is kept as by --meta.
        allow_empty_class: Accept classes that no sample has.
        overwrite: Replace the data set in the output.
        quiet: No progress line.
    """

    source: Path
    output: Path
    column: dict[str, str] = dataclasses.field(default_factory=dict)
    modality: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    label: tuple[str, ...] = dataclasses.field(default=(), metadata=_EACH)
    key: str | None = None
    group: str | None = None
    text: str | None = None
    meta: dict[str, str] = dataclasses.field(default_factory=dict)
    table: Path | None = None
    pool: str | None = None
    zero_padding: bool = False
    csv_columns: tuple[str, ...] = ()
    table_key: str | None = None
    encoding: str | None = None
    dtype: Literal["float32", "float16", "float64"] | None = None
    nan_row_missing: Literal["all", "any"] = "all"
    shuffle_seed: int | None = 0
    max_shard_mb: float = 256.0
    view_by: str | None = None
    allow_empty_class: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            raise ValueError(f"shuffle_seed: must be a number that is not negative, or none, got {self.shuffle_seed}")


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Make shards that webdataset.TarWriter, GNU tar or bsdtar wrote readable.

    Writes an index beside each *.tar of the folder, and a manifest. A SOURCE is an extension (cls, txt) or a place in a
    JSON member (json#labels.mood).

    Attributes:
        data: Folder of the archives; given without an option.
        column: An array of each sample, as NAME=EXTENSION; none: every .npy member. May be repeated.
        modality: Default composition of a modality, as NAME=COLUMN[,COLUMN]; none: one of each column.
        label: A label, as NAME=SOURCE:KIND[:CLASS,CLASS]; KIND is class, multilabel or continuous. May be repeated.
        group: The SOURCE that says whose sample it is (speaker).
        text: The SOURCE of the transcript.
        meta: A further text, as NAME=SOURCE; may be repeated.
        encoding: Of text members that are not UTF-8, such as cp1252; none: UTF-8.
        nan_row_missing: How many NaN make a column missing; with `all`, rows with fewer are refused.
        output: Folder where index, manifest and links to the shards go; none: index and manifest beside the shards.
        overwrite: Replace manifest and indexes that are there.
    """

    data: str
    column: dict[str, str] = dataclasses.field(default_factory=dict)
    modality: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    label: tuple[str, ...] = dataclasses.field(default=(), metadata=_EACH)
    group: str | None = None
    text: str | None = None
    meta: dict[str, str] = dataclasses.field(default_factory=dict)
    encoding: str | None = None
    nan_row_missing: Literal["all", "any"] = "all"
    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ConvertPickleJob:
    """Convert a pickled feature file (MMSA, MultiBench: splits of fields of arrays) to .npz.

    Its opcodes are read, not run: only arrays, numbers, text, lists, tuples and dicts are accepted.

    Attributes:
        source: The pickled file; given without an option.
        output: File.npz where the arrays are written.
        overwrite: Replace a file that is there.
    """

    source: Path
    output: Path
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """Read every byte of a data set, or of several. Each problem is one line: shard, sample, reason, what to do.

    Exit status: 0 whole, 1 damaged, 2 wrong input, 3 repaired without the shards that are named.

    Attributes:
        data: Folder or URL of the shards, of features or of clips; or several, each as FOLDER or NAME=FOLDER, whose
            problems name shards NAME/SHARD as a run on a mixture does. Given without an option.
        repair: Make a manifest of the whole shards: rebuild indexes that are lost, leave damaged shards out and list
            them (they stay in the folder).
        quiet: No progress line.
    """

    data: tuple[str, ...] = dataclasses.field(metadata=_EACH)
    repair: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if len(by_name(self.data)) > 1 and self.repair:
            raise ValueError(
                f"repair: found {len(self.data)} folders, expected one; repair them one after another, each when its "
                "problems are known"
            )


@dataclass(frozen=True, kw_only=True)
class StatsJob:
    """Describe a data set: columns, presence, labels, groups, means and deviations.

    Of several folders: what a mixture of them would be, with shares, modalities, speakers, and keys in common.

    Attributes:
        data: Folder or URL of the shards, or several, each as FOLDER or NAME=FOLDER; given without an option.
        view: Describe this view only; none: every row.
        weight: Of several folders: weight of each in a mixture, as NAME=WEIGHT; none: by their rows.
        global_batch: Of several folders: rows of a batch of the mixture.
        speaker: Of several folders: column that says who speaks, as NAME=COLUMN; none: group.
        modalities: Of several folders: composition of modalities from a corpus's own columns, e.g.
            `{own: {video: [openface]}}`; none: its manifest's.
        max_rows: Rows from which means and deviations are taken, at most about so many.
        seed: Of the choice of those rows.
        json: File for the summary; `-`: to standard output, and nothing else; none: it is only printed.
    """

    data: tuple[str, ...] = dataclasses.field(metadata=_EACH)
    view: str | None = None
    weight: dict[str, float] = dataclasses.field(default_factory=dict)
    global_batch: int = 4096
    speaker: dict[str, str] = dataclasses.field(default_factory=dict)
    modalities: dict[str, dict[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    max_rows: int = 100_000
    seed: int = 0
    json: str | None = None

    def __post_init__(self) -> None:
        if len(by_name(self.data)) == 1:
            for name in ("weight", "speaker", "modalities"):
                if getattr(self, name):
                    raise ValueError(f"{name}: is of several folders, found one; leave it out, or name the others")
        if self.global_batch < 1:
            raise ValueError(f"global_batch: must be at least 1, got {self.global_batch}")


@dataclass(frozen=True, kw_only=True)
class SplitJob:
    """Make views by group, or by any column of the index.

    Splitting by group keeps every speaker on one side. With --parts the column's values are distributed by share, with
    --take they are listed; with neither, each value is a view of its own name.

    Attributes:
        data: Folder or URL of the shards; given without an option.
        by: Index column to split by: group, text, meta.NAME, label.NAME, ...; or row.
        parts: Shares of the rows, as train=0.8,valid=0.1,test=0.1.
        take: A view of these values, as NAME=VALUE[,VALUE...]; NAME=@FILE reads one value a line. May be repeated.
        rest: With --take: a view of all rows that no other view takes.
        seed: Of the distribution of groups over --parts.
        allow_leak: Allow --by row on data with groups.
        overwrite: Replace views of the same names.
    """

    data: str
    by: str = "group"
    parts: dict[str, float] | None = None
    take: tuple[str, ...] = dataclasses.field(default=(), metadata=_EACH)
    rest: str | None = None
    seed: int = 0
    allow_leak: bool = False
    overwrite: bool = False


def by_name(words: Sequence[str]) -> dict[str, str]:
    """Corpus -> folder of words such as `vox=/data/vox`. A folder alone has the name of its last part, and a word that
    is a folder's whole name is that folder. Of one folder any name will do.

    Raises ValueError where two corpora have one name, one folder has two names, or a name could not be a corpus's."""
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or "/" in name or Path(word).is_dir():
            name, folder = Path(word.rstrip("/")).absolute().name, word
        if len(words) > 1:
            check_corpus(name, f"data: corpus {name!r}", f"name it NAME={folder}")
        if name in found:
            raise ValueError(f"data: corpus {name!r} is named twice ({found[name]}, {folder}); name them NAME=FOLDER")
        place = folder if "://" in folder else str(Path(absolute(folder, "data")).resolve())
        if place in places:
            raise ValueError(
                f"data: found {folder} twice, as {places[place]!r} and {name!r}, expected each folder once; leave one "
                "out"
            )
        found[name], places[place] = folder, name
    if not found:
        raise ValueError("data: missing; name a folder of shards")
    return found
