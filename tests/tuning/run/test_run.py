"""`conclugen run`: what it chooses and finds, by hand; and whole, on rendered clips, feature files and shards."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from conclugen.common.options import OptionsError
from ray_jobs.run_folder import DATA, RunFolder
from ray_jobs.tracking.journal import Journal
from ray_jobs.training.pretraining import PretrainResult
from shards import Manifest, View
from shards.corpus.writing import CorpusConfig, write_corpus
from tests.cluster.runs import without_ray_of_the_test
from tests.conclugen.encoders import test_hugging_face as hf_models
from tests.tuning.labelled_shards import write_labelled
from tuning.report.page import html
from tuning.run import data, found, page, stages
from tuning.run.__main__ import COMMAND
from tuning.run.done import Stages
from tuning.run.job import RunJob
from tuning.run.sizes import sizes

ROOT = Path(__file__).parents[3]


def job(tmp_path: Path, *words: str) -> RunJob:
    parsed: RunJob = COMMAND.parse([str(tmp_path / "my study"), "--output", str(tmp_path / "outputs"), *words])
    return parsed


@pytest.mark.parametrize(
    ("column", "modality"),
    [
        ("visual_au35", "video"),
        ("audio_mfcc259", "audio"),
        ("audio_egemaps88", "audio"),
        ("text_minilm384", "text"),
        ("AU01_r", "video"),
        ("glove", "text"),
        ("COVAREP", "audio"),
        ("gsr", "gsr"),
        ("skin response", "skin_response"),
        ("author", "author"),  # begins with `au`, and is none
    ],
)
def test_a_column_s_name_says_its_modality(column: str, modality: str) -> None:
    assert data.modality_of(column) == modality


def test_a_run_is_named_after_its_source_and_repeated_from_what_it_chose(tmp_path: Path) -> None:
    asked = job(tmp_path, "--labels", str(tmp_path / "l.csv"), "--label", "emotion", "--group", "person")
    assert asked.name == "my-study" and asked.folder == tmp_path / "outputs/my-study"
    chosen = asked.chosen(sizes(200), ("video", "audio"))
    stages.save(chosen, tmp_path / "run.yaml")
    again = COMMAND.parse(["--config", str(tmp_path / "run.yaml")])
    assert again == chosen and (again.batch, again.representation, again.epochs) == (32, 128, 50)
    assert again.modalities == ("video", "audio") and again.name == asked.name and not again.overwrite
    with pytest.raises(OptionsError, match="--epochs: must be at least 1, got 0"):
        job(tmp_path, "--epochs", "0")


@pytest.mark.parametrize("modalities", [("video",), ("video", "audio"), ("video", "audio", "text")])
def test_what_is_chosen_can_be_trained(modalities: tuple[str, ...], tmp_path: Path) -> None:
    manifest = Manifest.open(write_labelled(tmp_path / "shards", modalities))
    asked = job(tmp_path, "--label", "emotion:class")
    views, lines = data.views_of(asked, manifest)
    assert views == data.Views("train", "valid", "test") and any("speakers" in line for line in lines)
    groups = {}
    for name in ("train", "valid", "test"):
        values = data.IndexValues.read(manifest, "group")
        mask = np.concatenate([View.open(manifest, name).mask(shard) for shard in range(len(manifest))])
        groups[name] = {values.names[code] for code in values.codes[mask]}
    assert not groups["train"] & groups["test"] and not groups["valid"] & groups["test"]
    rows = View.open(manifest, "train").rows
    assert data.present(manifest, "train") == dict.fromkeys(modalities, rows)
    chosen = sizes(rows)
    planned = stages.pretraining(asked.chosen(chosen, modalities), chosen, manifest, views)
    assert planned.pretrain.modalities == modalities and planned.data.label == "emotion"
    assert ("contrastive" in planned.pretrain.tasks.active) is (len(modalities) > 1)
    assert planned.pretrain.global_batch == chosen.batch and planned.pretrain.model.representation_dim == 128
    assert data.views_of(asked, manifest)[0] == views  # found again, not made again


def test_rows_that_lack_a_column_lack_the_modality(tmp_path: Path) -> None:
    manifest = Manifest.open(write_labelled(tmp_path / "shards", missing=40))
    assert data.present(manifest, "everything") == {"video": 128, "audio": 128, "text": 88}


def test_without_speakers_rows_are_divided_and_it_is_said(tmp_path: Path) -> None:
    manifest = Manifest.open(write_labelled(tmp_path / "shards", speakers=2))
    views, lines = data.views_of(job(tmp_path), manifest)
    assert views == data.Views("train", "valid", None)
    assert "2 speaker(s) are known, so rows are divided one by one" in lines[-1] and "--group COLUMN" in lines[-1]


def test_stages_are_done_while_their_inputs_stay(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    stage = Stages(tmp_path)
    assert not stage.done("pack", {"a": 1})
    stage.end("pack", {"a": 1, "b": (1, Path("x"))})
    assert Stages(tmp_path).done("pack", {"a": 1, "b": [1, "x"]}) and not stage.done("pack", {"a": 2})
    stage.end("embed", {})
    assert stage.done("pack", {"a": 1, "b": [1, "x"]}) and stage.done("embed", {})


def test_embeddings_are_gathered_with_keys_speakers_labels_and_views(tmp_path: Path) -> None:
    manifest = Manifest.open(write_labelled(tmp_path / "shards", published=True))
    rng, expected = np.random.default_rng(0), {}
    for shard in range(len(manifest)):
        entry = manifest.entry(shard)
        keys = [f"{entry.name}-{row}" for row in range(entry.count)]
        vectors: list[list[float] | None] = rng.normal(size=(entry.count, 3)).astype(np.float32).tolist()
        if shard == 0:
            vectors[1] = None
        expected |= {key: vector for key, vector in zip(keys, vectors, strict=True) if vector is not None}
        rows = {"key": keys, "row": np.arange(entry.count, dtype=np.int32)}
        table = pa.table({**rows, "embedding": pa.array(vectors, pa.list_(pa.float32()))})
        (tmp_path / "embeddings").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "embeddings" / f"{entry.name}.parquet")
    found.gather(manifest, tmp_path / "embeddings", tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert dict(zip(arrays["keys"].tolist(), arrays["vectors"].tolist(), strict=True)) == expected
    assert len(arrays["keys"]) == manifest.rows - 1 and set(arrays["label.emotion"]) == {"calm", "happy"}
    assert (arrays["view.train"] ^ arrays["view.test"]).all() and len(set(arrays["groups"])) == 8
    for value, test in zip(arrays["groups"], arrays["view.test"], strict=True):
        assert (int(value) > 6) is bool(test)


def test_figures_are_no_way_into_or_out_of_the_folder(tmp_path: Path) -> None:
    folder, secret, config = tmp_path / "run", tmp_path / "secret", tmp_path / "config"
    secret.write_bytes(b"of this user")
    config.write_bytes(b"of this user too")
    (folder / "plots").mkdir(parents=True)
    (folder / "figures").mkdir()
    (folder / "plots/a.png").write_bytes(b"picture")
    (folder / "figures/a.png").symlink_to(config)
    charts = page._pictures(folder, {"a.png": folder / "plots/a.png"})
    shown = html("t", [], [charts], folder / "figures")
    assert "cGljdHVyZQ==" in shown and (folder / "figures/a.png").read_bytes() == b"picture"
    assert config.read_bytes() == b"of this user too"
    (folder / "figures/a.pdf").symlink_to(secret)
    with pytest.raises(ValueError, match=r"a\.pdf: leads out of"):
        html("t", [], [charts], folder / "figures")
    (folder / "plots/b.png").symlink_to(secret)
    with pytest.raises(ValueError, match=r"b\.png: leads out of"):
        page._pictures(folder, {"b.png": folder / "plots/b.png"})
    assert not (folder / "figures/b.png").exists()


def test_retrieval_says_whether_it_is_above_chance() -> None:
    assert "chance 22%: above chance" in str(found.Retrieval("a-b", 46, 0.37, 0.24, 0.51))
    assert "not told from chance" in str(found.Retrieval("a-b", 46, 0.3, 0.19, 0.44))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["labels.csv"], "labels.csv is a table; give the folder of its clips, and the table by --labels"),
        (["clips", "--label", "emotion"], "--labels: must be given with label, group, text and field"),
        (["clips", "--run", "../x"], "'../x' cannot name a folder"),
        (["clips", "--label", "a:clas"], "did you mean 'class'?"),
        (["clips", "--encoders", "offlin"], "did you mean 'offline'?"),
        (["clips", "--batch", "many"], "--batch"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages.ray_cluster, "connect", lambda *_: None)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("path,emotion\na.mp4,glad\n")
    assert COMMAND.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list((tmp_path / "outputs").glob("*")), "nothing is left of what was refused"


def test_what_stages_warned_of_is_kept_by_stage_and_over_starts(tmp_path: Path) -> None:
    """A stage that is done again warns anew; one that is passed over, or goes on, warned before."""
    (tmp_path / DATA).mkdir()
    heard = ["before any stage"]
    first = Stages(tmp_path, heard=heard)
    assert first.warned() == {}
    for name, lines in (("data", ["a"]), ("pretraining", ["b", "c"]), ("evaluation of x", [])):
        first.begin("...", name)
        heard += lines
    assert first.warned() == {"data": ["a"], "pretraining": ["b", "c"]}

    heard = []
    second = Stages(tmp_path, heard=heard)
    second.begin("...", "data")
    heard.append("mended")
    second.begin("...", "pretraining")
    second.again()
    heard += ["c", "d"]
    second.begin("...", "evaluation of x")
    second.again()
    assert second.warned() == {"data": ["mended"], "pretraining": ["b", "c", "d"]}
    assert list(second.warned()) == ["data", "pretraining"], "in the order of the stages"
    second.forget()
    third = Stages(tmp_path, heard=[])
    third.begin("...", "pretraining")
    third.again()
    assert third.warned() == {}


def test_a_run_hears_the_warnings_of_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says them; what is refused leaves nothing."""
    told: list[dict[str, list[str]]] = []

    def stage(job: RunJob, kind: str, own: Stages) -> int:
        own.begin("data", "data")
        print("warning: of a library of ours", file=sys.stderr)
        if job.overwrite:
            (job.folder / DATA / "clips").mkdir()
        else:
            raise ValueError("refused")
        told.append(own.warned())
        return 0

    monkeypatch.setattr(stages, "kind_of", lambda _: "features")
    monkeypatch.setattr(stages, "_run", stage)
    asked = RunJob(source=tmp_path, run="x", output=str(tmp_path / "outputs"))
    with pytest.raises(ValueError, match="refused"):
        stages.run(asked)
    assert not (asked.folder / DATA).exists()
    assert stages.run(dataclasses.replace(asked, overwrite=True)) == 0
    assert told == [{"data": ["of a library of ours"]}]
    assert json.loads((asked.folder / DATA / "warnings.json").read_text()) == told[0]


def test_clips_that_are_not_used_are_read_from_the_lists_of_all_stages(tmp_path: Path) -> None:
    clips, features = tmp_path / DATA / "clips", tmp_path / DATA / "features"
    for folder in (clips, features):
        folder.mkdir(parents=True)
    missing = {
        "key": None,
        "source": "gone.mp4",
        "reason": "missing",
        "message": "videos of the table: it is not there",
    }
    silent = {"shard": "s", "key": "k", "source": "", "reason": "nothing_to_encode", "message": "nothing of it"}
    (clips / "quarantine.jsonl").write_text(json.dumps(missing) + "\n[1]\n")
    (features / "quarantine.jsonl").write_text(json.dumps(silent) + "\n{\n")
    found = page._unused(tmp_path)
    assert found == [missing, silent]
    table = page._listed_clips(found)
    assert [(line.name, *(entry.text for entry in line.entries)) for line in table.lines] == [
        ("gone.mp4", "missing", "videos of the table: it is not there"),
        ("k", "nothing_to_encode", "nothing of it"),
    ]
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_text(json.dumps({"source": "secret"}))
    (clips / "quarantine.jsonl").unlink()
    (clips / "quarantine.jsonl").symlink_to(secret)
    assert page._unused(tmp_path) == [silent], "a link leads nowhere outside of the run"
    assert page._unused(tmp_path / "nowhere") == []


@pytest.mark.parametrize("told", [True, False])
def test_the_report_counts_and_lists_what_was_warned_of_and_not_used(told: bool, tmp_path: Path) -> None:
    manifest = Manifest.open(write_labelled(tmp_path / "shards"))
    asked = job(tmp_path).chosen(sizes(128), ("video", "audio"))
    folder = RunFolder(asked.folder)
    (folder.path / DATA / "clips").mkdir(parents=True)
    folder.config.write_text(json.dumps({"run": {"commit": "abc"}}))
    with Journal(folder.journal, experiment="e", name="x"):
        pass
    warned = {"data": ["few <rows> & more", "gone.mp4"], "pretraining": ["no mates"]} if told else {}
    entry = {"key": None, "source": "gone.mp4", "reason": "missing", "message": "it is not there"}
    (folder.path / DATA / "clips/quarantine.jsonl").write_text(f"{json.dumps(entry)}\n" * told)
    pretrained = PretrainResult(folder, folder.model, 5, "sqlite:///x", None)
    findings = found.Findings(lines=["clusters: none"], health={"loss": 1.0})
    path = page.write(asked, manifest, pretrained, findings, {}, {}, warned)
    read, text = Page(path), html_text(path.read_text("utf-8"))
    if not told:
        assert not [one for one in read.headings if one.startswith(("Warnings", "Clips"))]
        assert "warnings none clips that are not used none" in text
        return
    assert read.headings[-2:] == ["Warnings: 3", "Clips that are not used: 1"]
    assert "warnings 3, listed at the end clips that are not used 1, listed at the end" in text
    assert all(f"{stage}: {line}" in text for stage, lines in warned.items() for line in lines)
    assert "gone.mp4 missing it is not there" in text
    assert "gone.mp4" not in (folder.path / "table.tex").read_text(), "papers have no use for it"


def test_help_shows_what_tables_as_people_have_them_need(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        COMMAND.main(["--help"])
    shown = capsys.readouterr().out
    assert "--encoding" in shown and "--allow-incomplete" in shown and "cp1252" in shown


# ---- whole runs ----------------------------------------------------------------------------------------------------


def conclugen(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**without_ray_of_the_test(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "conclugen", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def html_text(document: str) -> str:
    """What is read of a page, with single spaces."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", document)).split())


class Page(HTMLParser):
    """What a page begins with, its headings, and pictures that are in the page itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lead: list[str] = []
        self.headings: list[str] = []
        self.pictures = 0
        self._tag = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = "lead" if dict(attrs).get("class") == "lead" else tag
        if tag == "img":
            assert re.match("data:image/(png|svg\\+xml);base64,", dict(attrs)["src"] or "")
            self.pictures += 1

    def handle_data(self, text: str) -> None:
        if self._tag in ("h2", "lead") and text.strip():
            (self.headings if self._tag == "h2" else self.lead).append(text)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_folder_of_clips_and_a_table_as_people_write_it(tmp_path: Path) -> None:
    """Semicolons, other names of columns, an unknown file; a speech encoder by its weights; the same command again does
    nothing anew."""
    rows = write_corpus(tmp_path / "videos", CorpusConfig(speakers=6, takes=1))
    table = ["filename;person;emotion;transcript"]
    table += [f"{row.path};{row.speaker};{row.emotion};{row.transcript or ''}" for row in rows]
    table.append(f"gone.mp4;{rows[0].speaker};{rows[0].emotion};")
    (tmp_path / "mine.csv").write_text("\n".join(table), "cp1252")
    (tmp_path / "videos/clips.csv").unlink()
    (tmp_path / "videos/notes.mp4").write_bytes(b"no video")
    encoders = f"random-image,random-text,hf-audio:{hf_models.make('wav2vec2', tmp_path / 'tiny')}"
    words = ("run", "videos", "--labels", "mine.csv", "--label", "emotion", "--encoders", encoders, "--epochs", "3")
    words += ("--allow-incomplete",)
    ended = conclugen(tmp_path, *words)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    folder = tmp_path / "outputs/videos"
    with np.load(folder / "embeddings.npz", allow_pickle=False) as archive:
        assert set(archive["keys"]) == {Path(row.path).with_suffix("").as_posix().replace("/", "_") for row in rows}
        assert set(archive["groups"]) == {row.speaker for row in rows}
        assert sorted(archive["label.emotion"]) == sorted(row.emotion for row in rows)
        vectors = archive["vectors"]
    assert {path.name for path in (folder / "figures").iterdir()} >= {
        "losses.png",
        "map-cluster.png",
        "map-emotion.png",
    }
    assert re.search(r"^next +\S+.* sweep --data ", ended.stdout, re.M)
    page = Page(folder / "report.html")
    assert page.headings[:2] == ["Set-up", "How well is emotion predicted?"] and page.pictures >= 6
    listed = [json.loads(line) for line in (folder / "data/clips/quarantine.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["reason"]) for entry in listed] == [("gone.mp4", "missing")]
    said = {line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip().startswith("warning: ")}
    assert any("missing: gone.mp4" in line for line in said) and any("notes.mp4" in line for line in said)
    assert page.headings[-2:] == [f"Warnings: {len(said)}", "Clips that are not used: 1"]
    text = html_text((folder / "report.html").read_text("utf-8"))
    assert all(line.removeprefix("warning: ") in text for line in said)
    scores = json.loads((folder / "evaluation/features-emotion/scores.json").read_text())
    assert (
        scores["verdict"] in ended.stdout
        and scores["verdict"] in page.lead
        and "pretraining helps here" in scores["verdict"].lower()
    )
    chosen = yaml.safe_load((folder / "run.yaml").read_text())
    assert (
        chosen["epochs"] == 3 and sorted(chosen["modalities"]) == ["audio", "text", "video"] and chosen["batch"] == 16
    )
    again = conclugen(tmp_path, "run", "--config", folder / "run.yaml")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "evaluated already" in again.stdout and "step 1/" not in again.stdout
    with np.load(folder / "embeddings.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["vectors"], vectors)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_feature_files_and_shards_without_labels(tmp_path: Path) -> None:
    write_labelled(tmp_path / "shards", missing=10)
    with np.load(tmp_path / "shards.npz") as archive:
        kept = {name: archive[name] for name in ("video", "audio", "text", "speaker")}
    np.savez(tmp_path / "mine.npz", **kept)
    packed = conclugen(tmp_path, "run", "mine.npz", "--group", "speaker", "--epochs", "2")
    assert packed.returncode == 0, packed.stdout[-3000:] + packed.stderr[-3000:]
    there = conclugen(tmp_path, "run", "shards", "--epochs", "2")
    assert there.returncode == 0, there.stdout[-3000:] + there.stderr[-3000:]
    for name in ("mine", "shards"):
        folder = tmp_path / "outputs" / name
        with np.load(folder / "embeddings.npz", allow_pickle=False) as archive:
            assert archive["vectors"].shape == (128, 3 * 128) and len(set(archive["groups"])) == 8
        page = Page(folder / "report.html")
        assert page.headings[:2] == ["Set-up", "What is in the embeddings"] and len(page.lead) == 1
        assert (folder / "clusters.csv").is_file() and (folder / "neighbours.csv").is_file()
        assert not (folder / "failures.jsonl").exists() and not RunFolder(folder).evaluation.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npz", "outputs", "shards", "shards.npz"]


def test_a_run_that_is_stopped_between_its_stages_says_which_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x" / DATA).mkdir(parents=True)
    done = Stages(tmp_path / "x")
    assert done.told() == "nothing was finished; the same command starts over"
    done.end("pack", {"source": "a"})
    RunFolder(tmp_path / "x").model.mkdir()
    assert done.told() == "run x: done are pack, pretrain; the same command continues with the rest"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "kind_of", lambda _: "features")
    monkeypatch.setattr(stages, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        stages.run(RunJob(source=str(tmp_path), run="x", output=str(tmp_path)))
    assert stop.value.__notes__ == [done.told()]
