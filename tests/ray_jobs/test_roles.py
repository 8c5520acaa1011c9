"""Three roles of a row: the unit of splits, the speaker of negatives, the unit of intervals, each a column."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from conclugen.evaluation.statistics import Comparison, Interval
from ray_jobs.evaluate import EvaluateJob
from ray_jobs.evaluation import check_split, read_labelled
from ray_jobs.roles import Units, refuse_shared
from ray_jobs.run_config import DataConfig, ShardsConfig
from ray_jobs.source import held_out_view, open_reader
from shards import Column, Label, Manifest, Sample, Schema, ShardWriter, View, group_id
from shards.adapters import read_clips
from shards.adapters.meld import FOLDERS
from shards.planning.split import make_views

SPLITS, PER = ("train", "test"), 24


def official(folder: Path) -> Manifest:
    """As the MELD adapter leaves it: the group is the speaker, who is in all parts; a dialogue is in one of them."""
    g = np.random.default_rng(0)
    label = Label("emotion", "class", ("calm", "happy"))
    columns = (Column("audio", 3), Column("text", 4))
    schema = Schema(columns, labels=(label,), grouped=True, meta=("split", "dialogue"))
    with ShardWriter(folder, schema, max_shard_bytes=40_000) as writer:
        for split in SPLITS:
            for i in range(PER):
                arrays = {c.name: g.normal(i % 2, 1, c.width).astype(np.float32) for c in columns}
                meta = {"split": split, "dialogue": None if i == 5 else f"{split}_dia{i // 4}"}
                group = f"speaker{i % 5}" if i % 5 < 4 else f"{split} guest"
                writer.append(Sample(f"{split}{i:02d}", arrays, {"emotion": i % 2}, group, meta=meta))
    manifest = Manifest.open(folder)
    for view in make_views(manifest, by="meta.split")[0]:
        view.save()
    return manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return official(tmp_path_factory.mktemp("roles") / "meld")


def ask(manifest: Manifest, interval_unit: str | None = None, **data: str) -> EvaluateJob:
    return EvaluateJob("first", "emotion", ShardsConfig(manifest.folder, **data), interval_unit=interval_unit)  # type: ignore[arg-type]


def test_a_split_with_speakers_in_common_is_refused_with_what_to_give(manifest: Manifest) -> None:
    with pytest.raises(ValueError) as caught:
        check_split(ask(manifest), read_labelled(ask(manifest), ("audio", "text")))
    told = str(caught.value)
    assert told.startswith("label 'emotion', views 'train' and 'test': 4 of 6 values of 'group' ('speaker0', ")
    assert "20 of the 24 test rows are theirs" in told  # i % 5 < 4 of 24 rows
    assert told.endswith("name the unit that it divides: --data.split-unit meta.dialogue") and "\n" not in told
    assert "conclugen split FOLDER --by group" in told and "meta.split" not in told


def test_a_head_s_epoch_is_not_chosen_on_rows_that_are_judged(tmp_path: Path) -> None:
    """Neither on the very rows, under whatever name, nor on others of their dialogues; a probe chooses no epoch."""
    meld = {"split_unit": "meta.dialogue"}
    manifest, rows = official(tmp_path / "meld"), PER + np.arange(PER)  # of `test`
    View.where(manifest, np.isin(np.arange(2 * PER), rows[:9]), "some-test").save()
    View.where(manifest, np.isin(np.arange(2 * PER), rows[9:10]), "rest-test").save()
    for name, told in (("test", "holds 24 of the 24 test rows"), ("some-test", "holds 9 of the 24 test rows")):
        job = ask(manifest, validation_view=name, **meld)
        read = read_labelled(job, ("audio", "text"))
        check_split(job, read, ("probe",))
        with pytest.raises(ValueError, match=f"data.validation_view: '{name}' {told}.*or null for the training rows"):
            check_split(job, read, ("probe", "fine_tune"))
    others = ask(manifest, validation_view="some-test", **meld)
    others = dataclasses.replace(others, test_view="rest-test")
    with pytest.raises(ValueError, match=r"'meta.dialogue' \('test_dia2'\) are in validation and in test"):
        check_split(others, read_labelled(others, ("audio", "text")), ("fine_tune",))
    check_split(ask(manifest, **meld), read_labelled(ask(manifest, **meld), ("audio", "text")), ("fine_tune",))


def test_the_official_split_is_judged_by_dialogue(manifest: Manifest) -> None:
    read = read_labelled(ask(manifest, split_unit="meta.dialogue"), ("audio", "text"))
    check_split(ask(manifest, split_unit="meta.dialogue"), read)
    assert len(read.fold.train_rows) == len(read.fold.test_rows) == PER
    dialogues = [f"test_dia{n}" for n in range(6)]
    expected = {name: (3 if name == "test_dia1" else 4) for name in dialogues} | {"row 29": 1}
    assert dict(read.unit_rows().values()) == expected
    by_name = dict(zip(read.units.names(read.rows.row), read.groups, strict=True))
    assert by_name["test_dia3"] == group_id("test_dia3") and by_name["row 29"] < -1  # nobody else's
    assert read.units.noun(6) == "6 dialogues"
    # Intervals over speakers beside a split by dialogue: the roles are independent.
    apart = read_labelled(ask(manifest, "group", split_unit="meta.dialogue"), ("audio", "text"))
    np.testing.assert_array_equal(apart.groups, read.groups)
    assert dict(apart.unit_rows().values()) == {"test guest": 4} | {f"speaker{n}": 5 for n in range(4)}
    rows = read_labelled(ask(manifest, split_unit="row"), ("audio", "text"))
    assert len(np.unique(rows.groups)) == 2 * PER and rows.units.noun(1) == "1 row"


def test_meld_as_its_adapter_reads_it_is_judged_on_its_official_parts(tmp_path: Path) -> None:
    """Six friends are in every part, and dialogue 0 of one part is another than dialogue 0 of the next."""
    g = np.random.default_rng(0)
    friends = ("Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross")
    for part, folder in FOLDERS.items():
        (tmp_path / "MELD" / part / folder).mkdir(parents=True)
        lines = ["Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"]
        for i in range(30):
            name = f"dia{i // 6}_utt{i % 6}"
            lines.append(f"{i},Oh,{friends[(i + i // 6) % 6]},{('joy', 'anger')[i % 2]},neutral,{i // 6},{i % 6}")
            (tmp_path / "MELD" / part / folder / f"{name}.mp4").touch()
        (tmp_path / "MELD" / f"{part}_sent_emo.csv").write_text("\n".join(lines) + "\n")
    found = read_clips("meld", tmp_path / "MELD", allow_incomplete=True)
    columns = (Column("audio", 3), Column("text", 4))
    schema = Schema(columns, labels=found.labels, grouped=True, meta=("split", *found.meta))
    with ShardWriter(tmp_path / "features", schema, max_shard_bytes=400_000) as writer:  # as extraction keeps them
        for clip in found.clips:
            arrays = {c.name: g.normal(size=c.width).astype(np.float32) for c in columns}
            meta = {"split": clip.split, **clip.meta}
            writer.append(Sample(clip.key, arrays, clip.labels, clip.group, meta=meta))
    made = Manifest.open(tmp_path / "features")
    for view in make_views(made, by="meta.split")[0]:
        view.save()
    plain = ask(made)
    with pytest.raises(
        ValueError, match=r"6 of 6 values of 'group' .*30 of the 30 test rows.*--data.split-unit meta.dialogue$"
    ):
        check_split(plain, read_labelled(plain, ("audio", "text")))
    job = ask(made, split_unit="meta.dialogue", validation_view="dev")
    read = read_labelled(job, ("audio", "text"))
    check_split(job, read)
    assert dict(read.unit_rows().values()) == {f"test_dia{n}": 6 for n in range(5)}
    assert [len(rows) for rows in (read.fold.train_rows, read.fold.validation_rows, read.fold.test_rows)] == [30] * 3
    data = DataConfig(made.folder)
    reader = open_reader(data, made, View.open(made, "train"), ("audio",), speaker=data.speaker)
    group = reader.read_ranges([(0, 0, 30)]).group  # negatives stay by speaker
    assert group is not None and set(group) == {group_id(name) for name in friends}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"split_unit": "meta.dialog"}, r"data\.split_unit: column 'meta\.dialog' is .*did you mean 'meta\.dialogue'"),
        ({"split_unit": "meta.dialogue", "interval_unit": "speaker"}, "interval_unit: column 'speaker' is unknown"),
    ],
)
def test_an_unknown_column_names_its_option(manifest: Manifest, fields: dict[str, str], told: str) -> None:
    interval = fields.pop("interval_unit", None)
    with pytest.raises(ValueError, match=told):
        read_labelled(ask(manifest, interval, **fields), ("audio", "text"))


def test_no_column_that_divides_the_split_leaves_a_placeholder(manifest: Manifest) -> None:
    dialogue = Units.read(manifest, "meta.dialogue", "data.split_unit")
    rows = np.arange(2 * PER)
    odd = np.flatnonzero(rows % 2)
    with pytest.raises(ValueError, match=r"12 of 14 values of 'meta.dialogue'.*--data.split-unit meta.NAME$"):
        refuse_shared(manifest, dialogue, odd, np.setdiff1d(rows, odd), where="x", option="--data.split-unit")


def test_negatives_are_of_the_named_column(manifest: Manifest) -> None:
    """The reader's groups are hashes of the column's values, whichever view and however it is opened again."""
    data = DataConfig(manifest.folder, speaker="meta.dialogue")
    reader = open_reader(data, manifest, View.open(manifest, "test"), ("audio",), speaker=data.speaker)
    group = reader.over(None).read_ranges([(s, 0, int(n)) for s, n in enumerate(manifest.counts)]).group
    assert group is not None
    expected = [-1 if i == 5 else group_id(f"{split}_dia{i // 4}") for split in SPLITS for i in range(PER)]
    np.testing.assert_array_equal(group, expected)
    with pytest.raises(ValueError, match=r"data\.speaker: column 'row' is unknown"):
        open_reader(data, manifest, View.open(manifest, "test"), ("audio",), speaker="row")


def test_without_a_view_valid_the_default_is_none(manifest: Manifest) -> None:
    assert held_out_view(DataConfig(manifest.folder), manifest) is None
    assert held_out_view(DataConfig(manifest.folder, validation_view="dev"), manifest) == "dev"  # named: must be there
    assert held_out_view(DataConfig(manifest.folder, validation_view=None), manifest) is None


def test_a_verdict_counts_the_units_by_their_name() -> None:
    few = Comparison("a", "b", Interval(0.1, 0.0, 0.2, 0.95, 4), 0.125, 0.125)
    assert few.verdict(units="dialogues") == "cannot be told with 4 dialogues"
