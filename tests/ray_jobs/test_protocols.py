"""`evaluate --protocol`: every protocol of a run on real shards, in files, in MLflow and in the report."""

from __future__ import annotations

import csv
import dataclasses
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from conclugen import Pretrainer, export, presets
from conclugen.common.options import save
from conclugen.evaluation.config import LAYERS_WEIGHED, ComparisonConfig
from conclugen.evaluation.protocols import registry
from conclugen.evaluation.protocols.base import ProtocolOptions
from ray_jobs import protocol_document
from ray_jobs.evaluate import EvaluateJob, evaluate, main
from ray_jobs.evaluation import open_run
from ray_jobs.protocols import material, unlikeness
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, ShardsConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal
from shards import Column, Label, Manifest, Sample, Schema, ShardWriter
from shards.planning.view import IndexValues
from tuning.report.__main__ import main as report

pytestmark = pytest.mark.usefixtures("blank_pictures")

WIDTHS = {"video": 6, "audio": 5}
CLASSES = ("calm", "happy")
QUICK = ("--protocols.resamples", "50", "--protocols.draws", "2", "--protocols.missing-modalities.rates", "0.5")
QUICK += ("--protocols.missing-modalities.patterns", "1", "--protocols.centring.clips", "2")
QUICK += ("--protocols.labels-to-target.targets", "0.5", "--protocols.labels-to-target.fractions", "0.25,1")


def write(
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    audio: int = 5,
    seed: int = 0,
    info: dict | None = None,
    sexes: bool = True,
) -> Manifest:
    """12 speakers of two sexes with 12 clips each; every seventh clip has no audio, every twentieth no sex."""
    g = np.random.default_rng(seed)
    columns = (Column("video", 6), Column("audio", audio))
    schema = Schema(columns, labels=(Label("emotion", "class", classes),), grouped=True, meta=("sex",) if sexes else ())
    with ShardWriter(folder, schema, info=info) as writer:
        for i in range(144):
            own = np.random.default_rng(i // 12).normal(size=8)
            values = {m: g.normal(i % 2, 1, w) + own[:w] for m, w in (("video", 6), ("audio", audio))}
            arrays = {m: x.astype(np.float32) for m, x in values.items() if m == "video" or i % 7}
            meta = {"sex": None if i % 20 == 19 else "fm"[i // 12 % 2]} if sexes else {}
            writer.append(Sample(f"clip{i:03d}", arrays, {"emotion": classes[i % 2]}, f"s{i // 12}", meta=meta))
    written = Manifest.open(folder)
    speakers = IndexValues.read(written, "group")
    for name, numbers in (("train", range(6)), ("test", range(6, 12))):
        speakers.view(name, [f"s{n}" for n in numbers], {"by": "group"}).save()
    return written


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `first` below `runs`, and the shards `voices`."""
    place = tmp_path_factory.mktemp("protocols")
    manifest = write(place / "voices")
    config = presets.build(
        "contrast_generative",
        modalities=tuple(WIDTHS),
        global_batch=16,
        model={"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 8, "standardize": False},
    )
    job = PretrainJob(config, DataConfig(manifest.folder), RunConfig("first", str(place / "runs")))
    folder = RunFolder(job.run.output_folder / "first")
    folder.path.mkdir(parents=True)
    save(job, folder.config)
    export.save(folder.model, Pretrainer(config, WIDTHS, steps_per_epoch=4), {})
    with Journal(folder.journal, experiment="e", name="first"):
        pass
    return place


def ask(place: Path, *more: str) -> int:
    words = ["--run", "first", "--label", "emotion", "--data", str(place / "voices"), "--output", str(place / "runs")]
    return main([*words, *QUICK, *more])


def answers(place: Path, evaluation: str = "voices-emotion") -> dict[str, dict]:
    path = place / "runs" / "first" / "evaluation" / evaluation / "protocols.json"
    return json.loads(path.read_text())["protocols"]


def test_every_protocol_stands_in_files_in_mlflow_and_in_the_report(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "runs" / "first" / "evaluation" / "voices-emotion"
    assert ask(place, "--protocol", "all", "--protocols.gaps.columns", "group,sex") == 0
    found = answers(place)
    asked = [name for name in registry.registered() if name != "transfer"]  # which needs another corpus
    assert list(found) == asked and not any(answer["reason"] for answer in found.values())
    for name, answer in found.items():
        for table in answer["tables"]:
            with (folder / "protocols" / name / f"{table['name']}.csv").open() as file:
                listed = list(csv.reader(file))
            assert listed[0] == table["columns"] and len(listed) == 1 + len(table["rows"])
        for chart in answer["charts"]:
            assert (folder / "protocols" / name / f"{chart['name']}.png").read_bytes().startswith(b"\x89PNG")
    assert found["gaps"]["options"]["columns"] == ["group", "sex"] and found["gaps"]["options"]["resamples"] == 50
    with sqlite3.connect(place / "runs" / "mlflow.db") as store:
        tracked = dict(store.execute("select key, value from latest_metrics"))
    prefix = "evaluation/voices/emotion/protocols/"
    for name, answer in found.items():
        for key, value in answer["headline"].items():
            kept = [v for k, v in tracked.items() if k.startswith(prefix + name)]
            assert any(abs(v - value) < 1e-9 for v in kept), key

    # One more, with another corpus; those of before stay, and the page has all.
    other = write(place / "other", ("low", "joy"), seed=1)
    classes = ("--protocols.transfer.judge-classes", "low=calm,joy=happy")
    assert ask(place, "--protocol", "transfer", "--protocols.transfer.folder", other.folder, *classes) == 0
    found = answers(place)
    assert set(found) == {*asked, "transfer"}
    assert found["transfer"]["headline"]["raw/accuracy"] > 0.6
    page = (folder / "protocols.md").read_text()
    assert page.index("## Labels to target") < page.index("## Transfer between corpora") < page.index("## Cost")

    assert report([str(place / "runs" / "first"), "--no-tracking"]) == 0
    html = (place / "runs" / "first" / "report" / "report.html").read_text()
    markdown = (place / "runs" / "first" / "report" / "report.md").read_text()
    for name, answer in found.items():
        assert f">{answer['title']}: first voices-emotion</h2>" in html
        assert f"## {answer['title']}: first voices-emotion" in markdown
        for table in answer["tables"]:
            assert all(f">{column}</th>" in html for column in table["columns"]), name
        for chart in answer["charts"]:
            assert f'<img alt="{chart["title"]}"' in html and f"![{chart['title']}](protocol_first" in markdown
    with (place / "runs" / "first" / "report" / "protocols.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(r) for a in found.values() for t in a["tables"] for r in t["rows"])
    capsys.readouterr()


@pytest.mark.slow
def test_the_systems_are_those_of_the_table(place: Path) -> None:
    """With all labels each system scores what the table of systems says of it."""
    shards = ShardsConfig(str(place / "voices"))
    baselines = ("untrained", "raw", "raw_balanced", "best_modality", "block_weights")
    for fusion in ("concat", "mean"):
        comparison = ComparisonConfig(methods=("probe",), fractions=(1.0,), baselines=baselines)
        job = EvaluateJob(
            "first", "emotion", shards, fusion=fusion, comparison=comparison, output=str(place / "runs"),
            protocols=registry.ProtocolsConfig(fill="zero"),
        )  # fmt: skip
        asked = material(job, open_run(job, ("probe",)))
        table = {score.system: score.scores["accuracy"] for score in evaluate(job).scores}
        for system in asked.systems:
            arrays = system.represent(asked.features)
            fits, _ = asked.fits(system, arrays, 1.0)
            value, _, _ = asked.measured(system.name, 1.0, asked.predicted(fits, arrays))
            assert value == pytest.approx(table[system.name], abs=0.03), (fusion, system.name)
            if system.name in ("raw", "raw balanced", "pretrained", "untrained"):
                assert value == table[system.name], (fusion, system.name)
        assert {s.name for s in asked.systems} >= {"pretrained", "untrained", "raw"}


def test_layers_of_an_encoder_are_weighed_as_in_the_table(place: Path) -> None:
    made = {"name": "x@layers=all", "column": "audio", "modality": "audio", "width": 5, "stored_layers": 5}
    features = {"encoders": [made], "crop": "follow", "low_confidence": False}
    shards = ShardsConfig(write(place / "layers", info={"features": features}).folder)
    comparison = ComparisonConfig(methods=("probe",), fractions=(1.0,), baselines=("raw",))
    job = EvaluateJob("first", "emotion", shards, comparison=comparison, output=str(place / "runs"))
    asked = material(job, open_run(job, ("probe",)))
    (system,) = (system for system in asked.systems if system.name == LAYERS_WEIGHED)
    assert system.only_raw
    arrays = system.represent(asked.features)
    fits, _ = asked.fits(system, arrays, 1.0)
    weights = fits[0].fitted.probe.model.mixtures["audio"]  # type: ignore[attr-defined]
    assert weights.shape == (5,) and weights.sum() == pytest.approx(1)
    value, _, _ = asked.measured(system.name, 1.0, asked.predicted(fits, arrays))
    (row,) = (score for score in evaluate(job).scores if score.system == LAYERS_WEIGHED)
    assert value == row.scores["accuracy"]
    without = dataclasses.replace(job, comparison=dataclasses.replace(comparison, baselines=("raw_balanced",)))
    assert LAYERS_WEIGHED not in {system.name for system in material(without, open_run(without, ("probe",))).systems}


def test_what_cannot_be_served_is_a_hole_and_the_others_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    age = ("--fusion", "mean", "--protocols.gaps.columns", "age")
    assert ask(place, "--protocol", "gaps,cost", *age) == 3
    told = capsys.readouterr().out
    assert "gaps: not measured: column 'age': index column 'age' is unknown, allowed: key" in told
    found = answers(place, "voices-emotion-mean")
    assert found["gaps"]["reason"].startswith("column 'age'") and "tables" not in found["gaps"]
    assert found["cost"]["reason"] == ""
    page = (place / "runs/first/evaluation/voices-emotion-mean/protocols.md").read_text()
    assert "Not measured: column 'age'" in page
    assert ask(place, "--protocol", "gaps", "--fusion", "mean") == 0
    assert ask(place, "--protocol", "gaps,cost", *age) == 3  # what was found before is not lost to a misspelt column
    assert "keeps what gaps found before" in capsys.readouterr().out
    assert answers(place, "voices-emotion-mean")["gaps"]["options"]["columns"] == ["group"]

    wide = write(place / "wide", audio=7)
    assert ask(place, "--protocol", "transfer", "--protocols.transfer.folder", wide.folder) == 0
    hole = "modality 'audio' is left out: column audio is 5 wide here and 7 there"
    assert hole in answers(place)["transfer"]["holes"]
    for classes, message in (
        (("p", "q"), "share no class, and two are needed: calm, happy here, p, q in strangers"),
        (("calm", "q"), "share 'calm', and two are needed"),
    ):
        strangers = write(place / f"{classes[0]}" / "strangers", classes)
        assert ask(place, "--protocol", "transfer", "--protocols.transfer.folder", strangers.folder) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert ask(place, "--protocol", "transfer", "--protocols.transfer.folder", str(place / "nowhere")) == 2
    assert ask(place, "--protocol", "calibraton") == 2
    assert "--protocol: no protocol 'calibraton'" in capsys.readouterr().err


def test_answers_of_another_model_or_by_other_settings_are_not_kept(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "runs" / "first" / "evaluation" / "voices-emotion-audio"
    audio = ("--fusion", "audio")
    misspelt = ("--protocol", "gaps", "--protocols.gaps.columns", "age")
    assert ask(place, "--protocol", "gaps,cost", *audio) == 0
    found = answers(place, folder.name)["gaps"]
    assert found["settings"]["seed"] == 127 and found["model"]
    page = (folder / "protocols.md").read_text()
    assert "Model of 0 steps; probe_weights none; select_by accuracy; seed 127; " in page
    assert ask(place, *misspelt, *audio) == 2
    assert answers(place, folder.name)["gaps"]["tables"]  # by the same settings: kept
    assert ask(place, *misspelt, *audio, "--comparison.seed", "5") == 2
    assert answers(place, folder.name)["gaps"]["reason"].startswith("column 'age'")

    path = folder / "protocols.json"
    document = json.loads(path.read_text())
    document["protocols"]["cost"]["model"] = "the run's model before it went on"
    path.write_text(json.dumps(document))
    capsys.readouterr()
    assert (folder / "protocols" / "cost").is_dir()
    assert ask(place, "--protocol", "gaps", *audio) == 0
    assert "protocols.md drops cost, found of another model of this run" in capsys.readouterr().out
    assert list(answers(place, folder.name)) == ["gaps"] and not (folder / "protocols" / "cost").exists()


def test_transfer_names_the_rows_and_units_of_the_other_corpus(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the sexes here; the other corpus tells none, and is judged by its speakers."""
    plain = write(place / "plain", seed=2, sexes=False)
    words = ("--protocol", "transfer", "--protocols.transfer.folder", plain.folder, "--interval-unit", "meta.sex")
    assert ask(place, *words, "--fusion", "video") == 0
    found = answers(place, "voices-emotion-video")["transfer"]
    assert (found["judged"], found["unit"], found["units"]) == ("emotion of plain, view everything", "speaker", 12)
    assert any("plain has no column meta.sex, and its units are of 'group'" in rule for rule in found["rules"])
    page = (place / "runs/first/evaluation/voices-emotion-video/protocols.md").read_text()
    told = "trained on train, judged on emotion of plain, view everything; intervals over 12 units (speaker)."
    assert told in page
    assert ask(place, *words, "--fusion", "video", "--protocols.transfer.unit", "row") == 0
    found = answers(place, "voices-emotion-video")["transfer"]
    assert (found["unit"], found["units"]) == ("row", 144)
    capsys.readouterr()
    assert ask(place, *words, "--fusion", "audio", "--protocols.transfer.unit", "meta.age") == 2
    assert "protocols.transfer.unit: column 'meta.age' is unknown" in capsys.readouterr().err


def test_modalities_are_one_where_columns_widths_and_encoders_are(tmp_path: Path) -> None:
    def made(name: str, digest: str | None, **options: int) -> Manifest:
        encoders = [{"column": "video", "name": "a", "weights": digest}, {"column": "audio", "name": "b"}]
        return write(tmp_path / name, info={"features": {"crop": "face", "encoders": encoders}} if digest else {})

    one, same, other, silent = made("1", "x"), made("2", "x"), made("3", "y"), made("4", None)
    assert unlikeness(one, same, None, "video") == "" == unlikeness(one, silent, None, "video")
    assert unlikeness(one, other, None, "video") == "column video was made by another encoder, or with other settings"
    assert unlikeness(one, other, None, "audio") == ""
    composed = {"both": ("video", "audio")}
    assert "another encoder" in unlikeness(one, other, composed, "both")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": "conclugen-protocols", "version": 1, "protocols": []}', "[" * 9999]
)
def test_a_document_that_cannot_be_read_is_refused_by_the_report(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "evaluation" / "v" / "protocols.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert report([str(tmp_path / "run"), "--no-tracking"]) == 2
    told = capsys.readouterr().err
    assert f"error: {path}: has no protocols that can be read (" in told and told.count("\n") == 1


def test_an_answer_is_checked_and_a_reason_needs_no_tables(tmp_path: Path) -> None:
    table = {"name": "t", "columns": ["a", "b"], "rows": [[1, "x"]]}
    chart = {"name": "c", "title": "", "xlabel": "", "ylabel": "", "series": {"s": [[0, 1, None, None]]}, "ticks": {}}
    asked = {"title": "T", "label": "l", "data": {"folder": "d", "train": "a", "test": "b"}, "units": 3, "unit": "u"}
    whole = asked | {"reason": "", "tables": [table], "charts": [chart | {"log": False, "diagonal": False}]}
    whole |= {"rules": [], "holes": []}

    def loaded(answer: dict[str, object]) -> dict[str, object]:
        document = {"schema": "conclugen-protocols", "version": 1, "protocols": {"p": answer}}
        (tmp_path / "protocols.json").write_text(json.dumps(document))
        found: dict[str, object] = protocol_document.load(tmp_path / "protocols.json")["protocols"]["p"]
        return found

    assert loaded(whole) == whole
    assert loaded(asked | {"reason": "no rows"}) == asked | {"reason": "no rows"}
    for wrong in (
        {"tables": [table | {"rows": [[1]]}]},
        {"tables": [table | {"rows": [[1, True]]}]},
        {"charts": [chart | {"series": {"s": []}}]},
        {"rules": None},
        {"holes": 3},
        {"reason": ["no rows"]},
    ):
        with pytest.raises(ValueError, match=r"protocols\.json: has no protocols that can be read \("):
            loaded(whole | wrong)
    for name in ("title", "units", "tables", "rules"):
        with pytest.raises(ValueError, match=f"that can be read .*KeyError: '{name}'"):
            loaded({key: value for key, value in whole.items() if key != name})


def test_every_protocol_is_listed_by_the_help_with_what_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    _, _, listed = capsys.readouterr().out.partition("protocols (docs/protocols.md):\n")
    lines = dict(line.split(maxsplit=1) for line in listed.splitlines() if line)
    assert ended.value.code in (0, None) and list(lines) == list(registry.registered())
    for name, protocol in registry.registered().items():
        assert lines[name] == (protocol.Config.__doc__ or "").strip().splitlines()[0], name


def test_options_of_all_protocols_are_checked_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", "r", "--label", "l", "--data", "/nowhere", "--protocol", "cost"]
    for option, value, message in (
        ("--protocols.fraction", "0", "--protocols.fraction: found 0.0, expected a share above 0"),
        ("--protocols.missing-modalities.rates", "1", "rates: found 1.0, expected rates between 0 and 1"),
        ("--protocols.centring.clips", "0", "clips: found 0, expected 1 or more"),
        ("--protocols.labels-to-target.fractions", "0.1", "at least 2 share(s)"),
        ("--protocols.calibration.bins", "0", "bins: found 0, expected 1 or more"),
        ("--protocols.score", "f2", "must be one of accuracy, uar, f1_macro, got 'f2'"),
    ):
        assert main([*words, option, value]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1, told
    assert ProtocolOptions().score is None  # by which probes are chosen: `Material.score`
