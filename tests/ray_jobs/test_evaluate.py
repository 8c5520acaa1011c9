"""An evaluation leaves corrupt rows out with a message, knows rows without a group, and joins the run where it is
tracked."""

import dataclasses
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from sklearn.preprocessing import StandardScaler

from conclugen import Pretrainer, encoders, export, load, presets
from conclugen.common.options import OptionsError, save
from conclugen.evaluation.config import (
    LAYERS_WEIGHED,
    RAW_SYSTEMS,
    ComparisonConfig,
    FineTuneConfig,
    ProbeConfig,
    SelectBy,
)
from conclugen.evaluation.judge import Predictions, compare, group_class_rows, score
from conclugen.evaluation.protocol import Fold, Protocol, Target
from conclugen.evaluation.solvers import LayerBlock
from ray_jobs import evaluation
from ray_jobs.evaluate import COMMAND, EvaluateJob, evaluate, main
from ray_jobs.evaluation import (
    EvaluateResult,
    LabelledRows,
    embed_untrained,
    raw_modalities,
    read_labelled,
    representations,
    table,
)
from ray_jobs.extraction.plan import recipe_of, stored_layers
from ray_jobs.roles import Units
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, ShardsConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.destination import uri_of_run
from ray_jobs.tracking.journal import Journal
from ray_jobs.tracking.mlflow_sink import MlflowSink
from ray_jobs.training.validation import Validation, spread_rows
from ray_jobs.verdict import verdict as verdict_of
from ray_jobs.verdict import which
from shards import Column, Label, Manifest, Reader, Rows, Sample, Schema, ShardWriter, View
from shards.planning.view import IndexValues

pytestmark = pytest.mark.usefixtures("blank_pictures")

ROWS, SPEAKERS, CLASSES = 120, 12, ("calm", "happy")
WIDTHS = {"video": 6, "audio": 5}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A class that both modalities carry; every tenth row has no speaker, and is in no view but `train`."""
    g = np.random.default_rng(0)
    schema = Schema(tuple(Column(*c) for c in WIDTHS.items()), labels=(Label("emotion", "class", CLASSES),))
    schema = Schema(schema.columns, {m: (m,) for m in WIDTHS}, schema.labels, grouped=True)
    with ShardWriter(tmp_path / "voices", schema, max_shard_bytes=40_000) as writer:
        for i in range(ROWS):
            mean = 2.0 * (i % 2)
            columns = {m: g.normal(mean, 1, width).astype(np.float32) for m, width in WIDTHS.items()}
            group = None if i % 10 == 9 else f"speaker{i // 2 % SPEAKERS}"
            writer.append(Sample(f"clip{i:03d}", columns, {"emotion": CLASSES[i % 2]}, group))
    written = Manifest.open(tmp_path / "voices")
    speakers = IndexValues.read(written, "group")
    for name, numbers in (("train", range(8)), ("valid", (8, 9)), ("test", (10, 11))):
        speakers.view(name, [f"speaker{n}" for n in numbers], {"by": "group"}).save()
    return written


@pytest.fixture
def job(tmp_path: Path, manifest: Manifest) -> PretrainJob:
    """A run as pretraining leaves it, tracked at a store that is not the default one."""
    config = presets.build(
        "contrast_generative",
        modalities=tuple(WIDTHS),
        global_batch=16,
        model={"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 8, "standardize": False},
    )
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere' / 'other.db'}"
    run = RunConfig("first", str(tmp_path / "runs"), tracking_uri=elsewhere)
    job = PretrainJob(config, DataConfig(manifest.folder, label="emotion", max_corrupt_share=0.2), run)
    folder = RunFolder(job.run.output_folder / "first")
    folder.path.mkdir(parents=True)
    save(job, folder.config)
    export.save(folder.model, Pretrainer(config, WIDTHS, steps_per_epoch=4), {})
    with Journal(folder.journal, experiment="e", name="first") as journal, MlflowSink(folder.journal, elsewhere):
        journal.metrics(0, {"loss": 1.0})
    return job


@pytest.fixture
def shards(manifest: Manifest) -> ShardsConfig:
    return ShardsConfig(manifest.folder, max_corrupt_share=0.2)


def damage(manifest: Manifest, keys: tuple[str, ...]) -> None:
    """Flip a bit in the middle of the samples' raw."""
    reader = Reader(manifest)
    for shard, entry in enumerate(manifest.entry(i) for i in range(len(manifest))):
        listed = reader.metadata(shard)["key"].to_pylist()
        path = Path(manifest.folder) / f"{entry.name}.tar"
        data = bytearray(path.read_bytes())
        for position in (i for i, key in enumerate(listed) if key in keys):
            data[position * entry.stride + entry.stride // 2] ^= 0x10
        path.write_bytes(data)


def test_damaged_rows_are_left_out_and_named(
    manifest: Manifest, job: PretrainJob, shards: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = EvaluateJob("first", "emotion", shards, output=job.run.output)
    before = read_labelled(wanted, tuple(WIDTHS))
    assert before.corrupt == []
    speaker_11 = tuple(f"clip{i:03d}" for i in (22, 23, 46))
    damage(manifest, speaker_11)
    after = read_labelled(wanted, tuple(WIDTHS))
    assert sorted(sample.key for sample in after.corrupt) == list(speaker_11)
    first, second = before.fold, after.fold
    assert len(first.test_rows) - len(second.test_rows) == 3 and len(first.train_rows) == len(second.train_rows)

    wanted = EvaluateJob("first", "emotion", shards, output=job.run.output, comparison=_QUICK)
    result = evaluate(dataclasses.replace(wanted, tracking_uri=job.run.tracking_uri))
    assert capsys.readouterr().out.count("left out: sample 'clip0") == 3
    assert len(json.loads((result.folder / "scores.json").read_text())["damaged"]) == 3


_QUICK = ComparisonConfig(methods=("probe",), fractions=(1.0,))


def test_another_view_of_the_same_data_and_label_is_another_evaluation(
    job: PretrainJob, shards: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither takes the other's folder or metrics; the same one again takes its own, and says so."""
    folder = RunFolder(job.run.output_folder / "first")
    first = EvaluateJob("first", "emotion", shards, output=job.run.output)
    second = dataclasses.replace(first, test_view="valid")
    names = []
    for ask in (first, second, first, second):
        series = evaluation.series_of(folder, ask)
        place = evaluation.place_of(folder, series)
        evaluation.take_name(place, ask)
        place.mkdir(exist_ok=True)
        (place / "scores.json").write_text("{}")
        names.append((series, place))
    assert names[:2] == names[2:]
    assert names[0][0] == "voices/emotion"
    assert names[1][0].startswith("voices-") and names[1][0].endswith("/emotion") and names[0][1] != names[1][1]
    assert capsys.readouterr().out.count("is replaced") == 2


def test_an_evaluation_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "evaluation" / "mine"

    def write(text: str, fails: bool = False) -> None:
        with evaluation.replaced(place) as whole:
            for name in ("scores.json", "bars.png"):
                (whole / name).write_text(text)
            if fails:
                raise OSError("disk full")

    write("first")
    (place / "probe.json").write_text("kept")
    write("second")
    with pytest.raises(OSError, match="disk full"):
        write("third", fails=True)
    found = {path.name: path.read_text() for path in place.iterdir()}
    assert found == {"scores.json": "second", "bars.png": "second", "probe.json": "kept"}
    assert [path.name for path in place.parent.iterdir()] == ["mine"]


def test_what_a_killed_evaluation_left_in_its_folder_is_removed(job: PretrainJob, shards: ShardsConfig) -> None:
    ask = EvaluateJob("first", "emotion", shards, output=job.run.output)
    place = evaluation.place_of(folder := RunFolder(job.run.output_folder / "first"), evaluation.series_of(folder, ask))
    place.mkdir(parents=True)
    for name in (".draws.table.json.0123456789abcdef.partial", "scores.json", ".own"):
        (place / name).write_text("{}")
    with evaluation.being_written(ask):
        assert {path.name for path in place.iterdir()} == {"scores.json", ".own"}


def test_an_evaluation_joins_the_run_where_the_run_is_tracked(
    tmp_path: Path, job: PretrainJob, shards: ShardsConfig
) -> None:
    ask = EvaluateJob("first", "emotion", shards, output=job.run.output, comparison=_QUICK)
    with pytest.raises(ValueError, match=r"is tracked at sqlite:.*other\.db.*confirm it by --tracking_uri"):
        evaluate(ask)
    assert not (tmp_path / "runs" / "first" / "evaluation").exists()  # refused before any work
    result = evaluate(dataclasses.replace(ask, tracking_uri=job.run.tracking_uri))
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    with sqlite3.connect(tmp_path / "elsewhere" / "other.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (1,)
        keys = {key for (key,) in store.execute("select key from latest_metrics")}
        ((name, digest, source, profile),) = store.execute(
            "select name, digest, dataset_source, dataset_profile from datasets"
        )
        assert store.execute("select name, value from input_tags").fetchall() == [("mlflow.data.context", "evaluation")]
    assert (name, json.loads(source), len(digest)) == ("voices", {"uri": shards.folder}, 32)
    judged = [i for i in range(ROWS) if i % 10 != 9 and i // 2 % SPEAKERS in (10, 11)]
    assert json.loads(profile) == {"num_rows": len(judged)}
    assert {"loss", "evaluation/voices/emotion/100 percent of labels/accuracy pretrained"} <= keys
    table = (result.folder / "table.md").read_text()
    for row in ("pretrained, probe", "pretrained + raw, probe", "raw balanced, probe", "best single modality, probe"):
        assert f"| {row} | 0." in table or f"| {row} | 1." in table
    assert "- best single modality, 100% of labels: " in table
    cells = {c["system"]: c for c in json.loads((result.folder / "scores.json").read_text())["cells"]}
    raw = {name: cells[name]["scores"]["accuracy"] for name in ("raw", "raw balanced", "best single modality")}
    best = max(raw, key=raw.get)  # type: ignore[arg-type]
    gain = cells["pretrained"]["scores"]["accuracy"] - raw[best]
    [alone] = cells["best single modality"]["choices"]  # of all labels there is one draw
    assert f"\nbest single modality: {alone} at 100% of labels.\n" in table
    told = f"{best}, {alone}" if best == "best single modality" else best
    assert f"- 100% of labels: {told}, probe ({raw[best]:.3f}); minus it: pretrained, probe {gain:+.3f} [" in table
    assert "cannot be told with 2 speakers" in table


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0,), "label 'emotion': all 40 training rows are 'calm', and with one class nothing is learned or judged"),
        ((0, 1), "no row of class 'angry'"),
    ],
)
def test_training_rows_of_one_class_or_without_one_end_an_evaluation(
    tmp_path: Path, job: PretrainJob, capsys: pytest.CaptureFixture[str], classes: tuple[int, ...], message: str
) -> None:
    """From the command line; nothing is written."""
    names = ("calm", "happy", "angry")
    schema = Schema(tuple(Column(*c) for c in WIDTHS.items()), labels=(Label("emotion", "class", names),), grouped=True)
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "few", schema) as writer:
        for i in range(80):
            label = i % len(classes) if i < 40 else i % 3
            columns = {m: rng.normal(size=width) for m, width in WIDTHS.items()}
            writer.append(Sample(f"k{i}", columns, {"emotion": names[label]}, f"s{i // 10}"))
    written = Manifest.open(tmp_path / "few")
    for view, rows in (("train", np.arange(80) < 40), ("test", np.arange(80) >= 40)):
        View.where(written, rows, view).save()
    arguments = ["--run", "first", "--label", "emotion", "--data.folder", written.folder, "--output", job.run.output]
    arguments += ["--data.validation_view", "null", "--comparison.fractions", "[1.0]"]
    arguments += ["--tracking_uri", str(job.run.tracking_uri)]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs" / "first" / "evaluation").exists()


def write_ratings(folder: Path, speakers: int) -> Manifest:
    """80 rows with a number that both modalities carry, 40 of them to train on, by so many speakers."""
    columns = tuple(Column(*c) for c in WIDTHS.items())
    schema = Schema(columns, labels=(Label("valence", "continuous"),), grouped=True)
    g = np.random.default_rng(0)
    with ShardWriter(folder, schema) as writer:
        for i in range(80):
            value = g.normal()
            features = {m: (value + g.normal(size=width)).astype(np.float32) for m, width in WIDTHS.items()}
            speaker = i % speakers if i < 40 else 90 + i % 4
            writer.append(Sample(f"k{i}", features, {"valence": value}, f"s{speaker}"))
    written = Manifest.open(folder)
    for view, rows in (("train", np.arange(80) < 40), ("test", np.arange(80) >= 40)):
        View.where(written, rows, view).save()
    return written


def test_labels_too_few_to_learn_from_leave_a_marked_hole_in_every_file(
    tmp_path: Path, job: PretrainJob, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line. Where nothing at all can be learned, it fails and writes nothing."""
    arguments = ["--run", "first", "--label", "valence", "--output", job.run.output, "--comparison.methods", "[probe]"]
    arguments += ["--tracking_uri", str(job.run.tracking_uri)]
    arguments += ["--comparison.fractions", "[0.03, 1.0]", "--comparison.draws", "2", "--data.validation_view", "null"]
    two = write_ratings(tmp_path / "two", speakers=2)
    assert main([*arguments, "--data.folder", two.folder]) == 2
    assert "label 'valence': no method could learn it at any share of labels; groups: " in capsys.readouterr().err
    assert not (tmp_path / "runs" / "first" / "evaluation").exists()

    written = write_ratings(tmp_path / "ratings", speakers=8)
    assert main([*arguments, "--data.folder", written.folder]) == 0
    folder = tmp_path / "runs" / "first" / "evaluation" / "ratings-valence"
    cells = {(c["system"], c["fraction"]): c for c in json.loads((folder / "scores.json").read_text())["cells"]}
    assert cells["pretrained", 0.03]["scores"] == {}
    assert [failure["draw"] for failure in cells["pretrained", 0.03]["failures"]] == [0, 1]
    assert np.isfinite(cells["pretrained", 1.0]["scores"]["concordance"]) and not cells["pretrained", 1.0]["failures"]
    lines = (folder / "table.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith("| pretrained, probe"))
    assert row.split("|")[2].strip() == "—" and row.split("|")[3].strip().startswith("0.")
    assert any(line.startswith("- 3% of labels, draw 1: groups: 1 group(s)") for line in lines)
    assert "pretrained,probe,0.03,concordance,,," in (folder / "scores.csv").read_text()
    assert "3% of labels   not scored; draw 0: groups: 1 group(s)" in capsys.readouterr().out


def test_names_of_classes_are_encoded_for_the_fine_tuned_head() -> None:
    target = Target("mood", "class", np.arange(6) % 2, ("very_sad", "happy"))
    steered = ComparisonConfig(fine_tune=FineTuneConfig(text_encoder="random-text", text_prompt="someone {}"))
    texts = evaluation.encoded_names(target, steered)
    expected = encoders.create("random-text").encode(["someone very sad", "someone happy"])
    assert texts is not None
    np.testing.assert_array_equal(texts, expected)
    assert evaluation.encoded_names(target, ComparisonConfig()) is None
    assert evaluation.encoded_names(target, dataclasses.replace(steered, methods=("probe",))) is None
    wrong = dataclasses.replace(steered, fine_tune=FineTuneConfig(text_encoder="prosody"))
    with pytest.raises(ValueError, match=r"text_encoder: 'prosody' takes wave, expected an encoder of text"):
        evaluation.encoded_names(target, wrong)
    with pytest.raises(ValueError, match="class '0' has no name"):
        evaluation.encoded_names(dataclasses.replace(target, classes=("0", "1")), steered)


@pytest.mark.parametrize("field", ["label", "payload", "chunk_rows", "remainder", "standardization_rows"])
def test_fields_of_training_are_no_fields_of_an_evaluation(field: str) -> None:
    flags = ["--run", "first", "--label", "emotion", "--data.folder", "/nowhere"]
    with pytest.raises(OptionsError, match=f"unknown option --data.{field}"):
        COMMAND.parse([*flags, f"--data.{field}", "1"])


def test_what_every_evaluation_has_is_no_fusion_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"fusion: 'concat\+raw' is a row of every evaluation already"):
        EvaluateJob("first", "emotion", ShardsConfig("/nowhere"), fusion="concat+raw")


def test_a_run_s_store_is_found_from_its_folder(tmp_path: Path, job: PretrainJob) -> None:
    assert uri_of_run(tmp_path / "runs" / "first", "http://tracking:5000") == "http://tracking:5000"
    assert uri_of_run(tmp_path / "runs" / "nameless") == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"


def test_a_tracking_uri_with_a_password_is_refused_without_printing_it() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        RunConfig("first", tracking_uri="https://ada:secret@tracking:5000")
    assert "secret" not in str(refusal.value)


def test_a_damaged_configuration_of_the_run_is_named(
    job: PretrainJob, shards: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = job.run.output_folder / "first" / "config.json"
    arguments = ["--run", "first", "--label", "emotion", "--output", job.run.output]
    arguments += ["--tracking_uri", str(job.run.tracking_uri)]
    for content in ("", '{"pretrain": {', "[]", "{}", '{"pretrain": {"sead": 1}}', '{"pretrain": 1}', "[" * 100_000):
        saved.write_text(content)
        assert main([*arguments, "--data.folder", shards.folder]) == 2, content[:30]
        told = capsys.readouterr().err
        assert f"error: {saved}: is not the configuration of a run (" in told
        assert "start conclugen pretrain again" in told


def test_rows_without_a_speaker_are_no_speaker_in_common(manifest: Manifest, job: PretrainJob) -> None:
    alone = np.arange(ROWS) % 10 == 9
    View.where(manifest, alone & (np.arange(ROWS) < 60), "one").save()
    View.where(manifest, alone & (np.arange(ROWS) >= 60), "two").save()
    data = ShardsConfig(manifest.folder, view="one", validation_view=None)
    read = read_labelled(EvaluateJob("first", "emotion", data, test_view="two"), tuple(WIDTHS))
    assert len(read.fold.train_rows) == len(read.fold.test_rows) == 6
    assert len(np.unique(read.groups)) == 12


def test_untrained_heads_of_a_run_with_a_stored_second_view_need_no_second_view(tmp_path: Path) -> None:
    """Labelled shards hold the features alone; the run's own start, exported, is what they are compared with."""
    small = {"representation_dim": 8, "projection_dim": 4, "standardize": False}
    config = presets.build(
        "simclr", modalities=("v",), global_batch=16, model=small, tasks={"simclr": {"second_view": "v2"}}
    )
    (tmp_path / "config.json").write_text(json.dumps({"pretrain": config.to_dict()}))
    export.save(tmp_path / "start", Pretrainer(config, {"v": 5, "v2": 5}, steps_per_epoch=1))
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    rows = Rows({"v": x}, {"v": np.ones(8, bool)}, np.arange(8), {}, None)
    found = embed_untrained(RunFolder(tmp_path), rows, "concat")
    np.testing.assert_allclose(found, load(tmp_path / "start").embed({"v": x}), rtol=1e-6)


@pytest.mark.parametrize(
    ("fusion", "raw"), [("audio", ["audio"]), ("concat", ["video", "audio"]), ("mean", ["video", "audio"])]
)
def test_raw_features_stand_beside_a_modality_as_that_modality(tmp_path: Path, fusion: str, raw: list[str]) -> None:
    config = presets.build(
        "contrast_only",
        modalities=tuple(WIDTHS),
        global_batch=16,
        model={"representation_dim": 8, "standardize": False},
    )
    (tmp_path / "config.json").write_text(json.dumps({"pretrain": config.to_dict()}))
    export.save(tmp_path / "model", Pretrainer(config, WIDTHS, steps_per_epoch=1))
    g = np.random.default_rng(0)
    x = {m: g.normal(3, 2, (12, width)).astype(np.float32) for m, width in WIDTHS.items()}
    rows = Rows(x, {m: np.ones(12, bool) for m in WIDTHS}, np.arange(12), {}, None)
    train = np.arange(8)
    job = EvaluateJob("first", "emotion", ShardsConfig("/nowhere"), fusion=fusion)
    target = Target("emotion", "class", np.zeros(12, np.int64), CLASSES)
    every = np.arange(12)
    units = Units(IndexValues(None, "row", tuple(map(str, every)), every))  # type: ignore[arg-type]
    read = LabelledRows(rows, target, every, Fold(0, train, np.arange(8, 12)), [], every, units)
    modalities = raw_modalities(rows, train, fusion)
    found = representations(RunFolder(tmp_path), load(tmp_path / "model"), read, modalities, job)
    double = {m: x[m].astype(np.float64) for m in raw}
    by_sklearn = [StandardScaler().fit(values[train]).transform(values) for values in double.values()]
    np.testing.assert_allclose(np.concatenate(list(modalities.values()), axis=1), np.hstack(by_sklearn), rtol=1e-9)
    width = 16 if fusion == "concat" else 8
    assert found["pretrained"].matrix.shape == found["untrained"].matrix.shape == (12, width)
    both = found["pretrained + raw"]
    columns, factors = both.columns("halves")
    spread = (both.matrix[train][:, columns] * factors).var(axis=0)
    np.testing.assert_allclose([spread[:width].sum(), spread[width:].sum()], len(columns) / 2)
    np.testing.assert_allclose(both.matrix[:, width:], np.hstack(by_sklearn), rtol=1e-9)


def test_a_table_names_absent_classes_and_says_what_few_speakers_cannot_tell(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    speaker = np.arange(160) % 8
    y = np.where((speaker < 4) & (g.random(160) < 0.3), 2, g.integers(0, 2, 160))  # nobody who is tested shows fear
    raw = {"video": np.eye(3, 4)[y] + g.normal(size=(160, 4)), "audio": g.normal(size=(160, 6))}
    rows = np.arange(160)
    fold = Fold(0, rows[speaker < 4], rows[speaker >= 4])
    protocol = Protocol("made", Target("emotion", "class", y, ("calm", "happy", "fear")), speaker, (fold,))
    systems = {"pretrained": np.eye(3)[y] + 0.3 * g.normal(size=(160, 3))}
    scores = list(compare(protocol, systems, _QUICK, raw))
    counts = dict(zip(("calm", "happy", "fear"), np.bincount(y[fold.test_rows], minlength=3).tolist(), strict=True))
    rows_of = dict.fromkeys("4567", 20)
    result = EvaluateResult(tmp_path, "emotion", "accuracy", scores, [], "class", counts, rows_of)
    result = dataclasses.replace(result, group_class_rows=group_class_rows(protocol))
    found = table(result)
    assert "\nNo test row of class fear: macro scores are of 2 classes.\n" in found
    own = next(s for s in scores if s.system == "pretrained")
    truth = y[fold.test_rows]
    each = recall_score(truth, own.predictions, average=None, labels=[0, 1])
    f1 = f1_score(truth, own.predictions, average="macro", labels=[0, 1])
    assert f"| pretrained, probe | {each[0]:.2f} | {each[1]:.2f} |" in found
    for name, value in (("uar", each.mean()), ("f1_macro", f1)):
        part = found[found.index(f"| emotion: {name} | 100% of labels |") :]
        assert f"| pretrained, probe | {value:.3f} [" in part[: part.index("\n\n")]
    by_speaker = [(own.predictions == truth)[speaker[fold.test_rows] == s].mean() for s in range(4, 8)]
    assert "| pretrained, probe | " + " | ".join(f"{value:.2f}" for value in by_speaker) + " |" in found
    assert "accuracy by speaker, 100% of labels | 4 (20 rows) | 5 (20 rows)" in found
    best = max((s for s in scores if s.system in RAW_SYSTEMS), key=lambda s: s.scores["accuracy"])
    for s in (own, best):
        taken = confusion_matrix(truth, s.predictions, labels=[0, 1, 2])
        shown = found[found.index(f"| {s.system}, probe, 100% of labels: rows of | taken for calm | ") :].splitlines()[
            2:5
        ]
        for name, row, line in zip(("calm", "happy", "fear"), taken, shown, strict=True):
            cells = [f"{100 * n / row.sum():.0f} %" if row.sum() else "—" for n in row]
            assert line == f"| {name} ({row.sum()}) | {' | '.join(cells)} |"
    gain = own.scores["accuracy"] - best.scores["accuracy"]
    (line,) = (line for line in found.splitlines() if "; minus it: pretrained, probe" in line)
    assert (best.system, best.choices) == ("best single modality", {"video": 1})
    strongest = f"best single modality, video, probe ({best.scores['accuracy']:.3f})"
    assert f"{strongest}; minus it: pretrained, probe {gain:+.3f} [" in line
    assert gain > 0.1 and line.endswith("p 0.125, cannot be told with 4 speakers")
    told = found.splitlines()[-1]
    assert told.startswith("Whether pretraining helps here cannot be told with 4 speakers: at 100% of labels ")
    assert f" pretrained is {gain:+.3f} [" in told
    own_score, raw_score = own.scores["accuracy"], best.scores["accuracy"]
    named = "best single modality, video"
    assert told.endswith(f"] in accuracy from {named} ({own_score:.3f} against {raw_score:.3f}).")
    alone = dataclasses.replace(result, group_rows={"4": 80})
    assert verdict_of(alone).startswith(
        "Whether pretraining helps here can't be told, for the test rows are of one speaker"
    )
    no_raw = dataclasses.replace(result, scores=[own])
    assert verdict_of(no_raw) == "Whether pretraining helps here is unknown: there is no raw row to compare with."


def test_block_weights_of_representations_are_chosen_by_the_probe(job: PretrainJob, shards: ShardsConfig) -> None:
    ask = EvaluateJob(
        "first", "emotion", shards, block_scales="chosen", output=job.run.output, tracking_uri=job.run.tracking_uri
    )
    result = evaluate(dataclasses.replace(ask, comparison=dataclasses.replace(_QUICK, baselines=("late_fusion",))))
    rows = {(s.system, s.method): s for s in result.scores}
    assert set(rows) == {("pretrained", "probe"), ("pretrained + raw", "probe"), ("raw balanced", "late_fusion")}
    assert sum(rows["pretrained", "probe"].choices.values()) == 1
    with pytest.raises(ValueError, match="block_scales: 'chosen' is served by the probe alone"):
        dataclasses.replace(ask, comparison=ComparisonConfig(methods=("neighbours",)))
    with pytest.raises(ValueError, match="block_scales"):
        dataclasses.replace(ask, block_scales="balance")


def test_layers_that_the_shards_tell_are_weighed(
    job: PretrainJob, shards: ShardsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"name": "hf-audio:x@layers=all", "column": "audio", "modality": "audio", "width": 5, "stored_layers": 5}
    features = {"encoders": [told], "crop": "follow", "low_confidence": False}
    monkeypatch.setattr("ray_jobs.extraction.plan.recipe_of", lambda info: recipe_of({"features": features}))
    manifest = Manifest.open(shards.folder)
    assert stored_layers(manifest, None, ("video", "audio")) == {"audio": [LayerBlock("audio", 0, 5, 1)]}
    assert stored_layers(manifest, None, ("video", "text of another corpus")) == {}
    both = {"both": ("video", "audio")}
    assert stored_layers(manifest, both, ("both",)) == {"both": [LayerBlock("audio", 6, 5, 1)]}
    ask = EvaluateJob("first", "emotion", shards, output=job.run.output, tracking_uri=job.run.tracking_uri)
    result = evaluate(dataclasses.replace(ask, comparison=dataclasses.replace(_QUICK, baselines=("raw",))))
    (row,) = (s for s in result.scores if s.system == LAYERS_WEIGHED)
    ((weights, _),) = row.choices.items()
    assert weights.startswith("audio 0.") and sum(map(float, weights.split()[1:])) == pytest.approx(1, abs=0.03)
    assert f"{LAYERS_WEIGHED}, 100% of labels: {weights} (1)" in table(result)
    told["stored_layers"] = 2
    with pytest.raises(ValueError, match="stored_layers of column 'audio' is 2, expected a divisor of its width 5"):
        stored_layers(manifest, None, ("audio",))


def test_validation_rows_are_spread_and_never_more_than_asked(manifest: Manifest) -> None:
    reader = Reader(manifest)
    assert len(manifest) > 3
    assert len(spread_rows(reader, 1000)) == ROWS
    some = spread_rows(reader, 40)
    assert 20 <= len(some) <= 40
    shards = np.searchsorted(manifest.rows_before, some.row, side="right")
    assert shards.min() == 1 and shards.max() == len(manifest)  # from the first shard and from the last
    assert 1 <= len(spread_rows(reader, 2)) <= 2


def test_few_validation_rows_are_enough(manifest: Manifest, job: PretrainJob) -> None:
    validation = Validation.open(job.data, manifest, tuple(WIDTHS))
    assert validation is not None
    small = Validation(spread_rows(Reader(manifest), 8), "emotion", 2)
    pretrainer = Pretrainer(job.pretrain, WIDTHS, steps_per_epoch=4)
    for measures in (validation.measure(pretrainer), small.measure(pretrainer)):
        assert 0 <= measures["neighbour_accuracy"] <= 1 and measures["warnings"] >= 0


@pytest.mark.parametrize(
    ("select_by", "strongest", "verdict"), [("accuracy", "raw", "worse"), ("uar", "raw balanced", "better")]
)
def test_rows_are_compared_by_the_score_that_was_selected(
    tmp_path: Path, select_by: SelectBy, strongest: str, verdict: str
) -> None:
    """Raw features take nearly every row for the frequent class; balanced ones find both rare ones now and then."""
    g = np.random.default_rng(3)
    unit = np.arange(600) % 12
    y = g.choice(3, 600, p=(0.8, 0.1, 0.1))
    rows = np.arange(600)
    fold = Fold(0, rows[unit < 2], rows[unit >= 2])
    protocol = Protocol("made", Target("emotion", "class", y, ("calm", "happy", "fear")), unit, (fold,))
    protocol = dataclasses.replace(protocol, probe=ProbeConfig(select_by=select_by))
    guesses = {
        "raw": np.where(g.random(600) < 0.95, 0, y),
        "raw balanced": np.where(g.random(600) < 0.3, y, g.integers(0, 3, 600)),
        "pretrained": np.where(g.random(600) < 0.65, y, g.integers(0, 3, 600)),
    }
    scores, by_hand = [], {}
    for name, guess in guesses.items():
        draws = [guess, np.where(g.random(600) < 0.9, guess, 0)]  # the second draw of labels teaches less
        predicted = np.where(unit >= 2, np.stack(draws), -1)
        scores.append(score(Predictions(protocol, name, "probe", 1.0, predicted, np.full((2, 1), np.nan))))
        truth, tested = y[unit >= 2], [draw[unit >= 2] for draw in draws]
        each = {
            "accuracy": [(draw == truth).mean() for draw in tested],
            "uar": [recall_score(truth, draw, average="macro") for draw in tested],
        }[select_by]
        assert scores[-1].draws == pytest.approx(each)
        by_hand[name] = float(np.mean(each))
    counts = np.bincount(y[fold.test_rows], minlength=3).tolist()
    result = EvaluateResult(
        *(
            tmp_path,
            "emotion",
            protocol.main_score,
            scores,
            [],
            "class",
            dict(zip(protocol.target.classes, counts, strict=True)),
        ),
        group_rows={str(u): int((unit == u).sum()) for u in range(2, 12)},
        group_class_rows=group_class_rows(protocol),
    )
    found = table(result)
    assert found.startswith(f"| emotion: {select_by} | 100% of labels |")
    for name in ("accuracy", "uar", "f1_macro"):
        assert found.count(f"| emotion: {name} | ") == 1
    assert f"Strongest raw row by {select_by}, the best on the test rows" in found
    (line,) = (line for line in found.splitlines() if "; minus it: " in line)
    gain = by_hand["pretrained"] - by_hand[strongest]
    assert f": {strongest}, probe ({by_hand[strongest]:.3f}); minus it: pretrained, probe {gain:+.3f} [" in line
    assert line.endswith(verdict)
    begins = {"better": "Pretraining helps here: ", "worse": "Pretraining does harm here: "}
    told = found.splitlines()[-1]
    assert told.startswith(begins.get(verdict.rpartition(", ")[2], "No difference is shown: "))
    assert f" at 100% of labels pretrained is {gain:+.3f} " in told and f" in {select_by} from {strongest} (" in told


def test_the_best_single_modality_is_named_where_there_is_one_answer() -> None:
    choices = {0.03: {"video": 5}, 0.1: {"video": 3}, 1.0: {"audio": 1}, 0.5: {}}
    assert which(choices) == "best single modality: video at 3% and 10%, audio at 100% of labels"
    assert (
        which({0.03: {"audio": 2, "video": 3}}) == "best single modality: mostly video (3 of 5 times) at 3% of labels"
    )
    three = {share: {"text": 1} for share in (0.03, 0.1, 1.0)}
    assert which(three) == "best single modality: text at 3%, 10% and 100% of labels"
    assert which({}) == which({1.0: {}}) == ""
