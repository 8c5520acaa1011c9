"""Files and flags become frozen dataclasses: precedence, strictness, and nothing imported on a configuration's word."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from conclugen import PretrainConfig, presets
from ray_jobs import configuration, evaluate, pretrain
from ray_jobs.strict_yaml import ConfigurationError, load
from tuning import ablate
from tuning.sweep import sweep


@dataclass(frozen=True)
class Source:
    """Where from.

    Attributes:
        folder: Folder of the shards,
            or a URL.
        columns: Composition.
        mode: How.
    """

    folder: str
    columns: dict[str, tuple[str, ...]] | None = None
    weights: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    mode: Literal["drop", "pad"] = "drop"
    rows: int | None = None


@dataclass(frozen=True)
class Extra:
    rate: float = 0.5
    names: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class Place:
    name: str
    gpu: bool = False
    extra: Extra | None = None
    deep: Extra = field(default_factory=lambda: Extra(rate=0.25))


@dataclass(frozen=True)
class Job:
    pretrain: PretrainConfig
    data: Source
    run: Place


@dataclass(frozen=True)
class PlainJob:
    data: Source
    count: int = 3


NEEDED = ["--data.folder", "/d", "--run.name", "r"]


def parse(*arguments: str) -> Job:
    return configuration.parse(Job, [*NEEDED, *arguments])


def yaml_file(folder: Path, text: str, name: str = "job.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_defaults_are_those_of_the_dataclasses_and_the_preset():
    assert parse() == Job(presets.build("conclugen", "improved"), Source("/d"), Place("r"))
    assert parse("--preset", "simclr", "--recipe", "paper").pretrain == presets.build("simclr", "paper")
    assert parse("--preset", "generative").pretrain == presets.build("generative_only")


def test_single_nested_fields_override_the_preset():
    got = parse(
        *("--preset", "contrast_only", "--recipe", "paper", "--pretrain.model.representation_dim", "512"),
        *("--pretrain.optimizer.lr", "1e-3", "--pretrain.tasks.contrastive.weight=0.25"),
        *("--pretrain.modalities", "[video, audio]", "--pretrain.clip_norm", "null"),
    ).pretrain
    base = presets.build("contrast_only", "paper")
    assert base.tasks.contrastive is not None
    expected = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, representation_dim=512),
        optimizer=dataclasses.replace(base.optimizer, lr=1e-3),
        tasks=dataclasses.replace(base.tasks, contrastive=dataclasses.replace(base.tasks.contrastive, weight=0.25)),
        modalities=("video", "audio"),
        clip_norm=None,
    )
    assert got == expected


def test_precedence_is_preset_then_files_in_order_then_flags(tmp_path):
    first = yaml_file(
        tmp_path,
        "preset: contrast_cluster\n"
        "pretrain: {epochs: 11, seed: 12, global_batch: 130, optimizer: {lr: 1e-2, weight_decay: 0.5}}\n"
        "run: {gpu: true}\n",
    )
    second = yaml_file(tmp_path, "pretrain: {seed: 22, global_batch: 230, optimizer: {lr: 2e-2}}\n", "second.yaml")
    job = parse("--pretrain.global_batch", "330", "--config", first, "--config", second)
    base = presets.build("contrast_cluster")
    assert job.pretrain == dataclasses.replace(
        base,
        epochs=11,
        seed=22,
        global_batch=330,
        optimizer=dataclasses.replace(base.optimizer, lr=2e-2, weight_decay=0.5),
    )
    assert job.run.gpu is True
    assert parse("--config", first, "--preset", "contrast_only").pretrain.preset == "contrast_only"


def test_tuples_mappings_choices_and_optional_groups():
    job = parse(
        *("--data.columns.video", "[v2, v3]", "--data.columns.audio", "[mfcc]", "--data.mode", "pad"),
        *("--data.weights.b", "2", "--run.extra.rate", "2", "--run.deep.names", "[p, q]", "--data.rows", "7"),
    )
    assert job.data == Source("/d", {"video": ("v2", "v3"), "audio": ("mfcc",)}, {"a": 1.0, "b": 2.0}, "pad", 7)
    assert job.run == Place("r", extra=Extra(rate=2.0), deep=Extra(0.25, ("p", "q")))
    assert isinstance(job.run.extra, Extra) and isinstance(job.run.extra.rate, float)


def test_a_whole_mapping_replaces_and_a_single_key_adds(tmp_path):
    path = yaml_file(tmp_path, "data: {columns: {video: [v], text: [t]}, weights: {c: 3}}\n")
    assert parse("--config", path).data.columns == {"video": ("v",), "text": ("t",)}
    assert parse("--config", path).data.weights == {"c": 3.0}
    assert parse("--config", path, "--data.columns.audio", "[a]").data.columns == {
        "video": ("v",),
        "text": ("t",),
        "audio": ("a",),
    }
    assert parse("--config", path, "--data.columns", "{audio: [a]}").data.columns == {"audio": ("a",)}


@pytest.mark.parametrize("by_file", [False, True])
def test_null_switches_a_task_off(tmp_path, by_file):
    path = yaml_file(tmp_path, "pretrain: {tasks: {clustering: null}}\n")
    job = parse("--config", path) if by_file else parse("--pretrain.tasks.clustering", "null")
    assert list(job.pretrain.tasks.active) == ["contrastive", "reconstruction"]
    with pytest.raises(ConfigurationError, match="a group takes only null"):
        parse("--pretrain.tasks.clustering", "3")


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize(("given", "weight"), [("{}", 0.2), ("{weight: 0.5}", 0.5)])
def test_any_task_is_added_to_any_preset(tmp_path, by_file, given, weight):
    """With the recipe's values where nothing else is said; what is saved reads back."""
    path = yaml_file(tmp_path, f"pretrain: {{tasks: {{clustering: {given}, contrastive: null}}}}\n")
    flag = ["--pretrain.tasks.clustering", "{}"] if given == "{}" else ["--pretrain.tasks.clustering.weight", "0.5"]
    flags = ["--config", path] if by_file else [*flag, "--pretrain.tasks.contrastive", "null"]
    job = parse("--preset", "contrast_generative", *flags)
    expected = presets.build("conclugen").tasks.clustering
    assert job.pretrain.tasks.active.keys() == {"clustering", "reconstruction"}
    assert job.pretrain.tasks.clustering == dataclasses.replace(expected, weight=weight)
    configuration.save(job, tmp_path / "saved.yaml")
    assert parse("--config", str(tmp_path / "saved.yaml")) == job


@pytest.mark.parametrize("preset", [*presets.PRESETS])
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_saved_configuration_reads_back_equal(tmp_path, preset, ending):
    job = parse("--preset", preset, "--recipe", "paper", "--pretrain.seed", "5", "--data.columns.v", "[ä]")
    path = tmp_path / f"saved.{ending}"
    configuration.save(job, path)
    assert configuration.parse(Job, ["--config", str(path)]) == job
    assert configuration.parse(Job, ["--config", str(path), "--pretrain.seed", "6"]).pretrain.seed == 6


def test_print_config_prints_what_would_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--preset", "contrast_only", "--print_config")
    assert stopped.value.code == 0
    printed = yaml_file(tmp_path, capsys.readouterr().out)
    assert configuration.parse(Job, ["--config", printed]) == parse("--preset", "contrast_only")


def test_a_job_without_pretraining_has_no_preset():
    assert configuration.parse(PlainJob, ["--data.folder", "/d", "--count", "4"]) == PlainJob(Source("/d"), 4)
    with pytest.raises(ConfigurationError, match="unknown flag '--preset'"):
        configuration.parse(PlainJob, ["--data.folder", "/d", "--preset", "simclr"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrain.tasks.contrastive.wieght", "1"], "did you mean 'pretrain.tasks.contrastive.weight'"),
        (["--preset", "conclugn"], "did you mean 'conclugen'"),
        (["--recipe", "papr"], "did you mean 'paper'"),
        (
            ["--preset", "contrast_only", "--pretrain.tasks.simclr.modality", "tex"],
            "simclr.modality.*'tex'.*'text'",
        ),
        (["--data.mode", "dorp"], "data.mode.*'drop', 'pad'"),
        (["--data.rows", "many"], "data.rows.*many"),
        (["--pretrain.precision", "float16"], "precision.*float16.*bfloat16"),
        (["--pretrain.modalities", "{a: 1}"], "pretrain.modalities"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["--run.extra.class_path", "antigravity.X"], "class_path names code to import"),
        (["--pretrain", '{"class_path": "antigravity.X"}'], "class_path names code to import"),
        (["--data.weights", "{init_args: 1}"], "init_args names code to import"),
        (["--pretrain", "other.yaml"], "--pretrain is a group of fields"),
        (["--pretrain.tasks", "[contrastive]"], "--pretrain.tasks is a group.*such as --pretrain.tasks"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        parse(*arguments)


def test_required_fields_are_asked_for_by_name():
    with pytest.raises(ConfigurationError, match=r"run\.name: missing; give --run\.name"):
        configuration.parse(Job, ["--data.folder", "/d"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {nam: x}", r"job\.yaml: unknown field 'run\.nam'; did you mean 'name'"),
        ("pretrian: {}", "unknown field 'pretrian'; did you mean 'pretrain'"),
        ("pretrain: {tasks: {contrastive: {wieght: 1}}}", "'pretrain.tasks.contrastive.wieght'; did you mean 'weight'"),
        ("data: 3", "data: found 3, expected a mapping"),
        ("data: {rows: 1.5}", "job.yaml: .*data.rows.*1.5"),
        ("run:\n  gpu: true\n  gpu: false", r"job\.yaml:3: 'run\.gpu' is given twice, first in line 2"),
        ("run: !!python/object/apply:os.system ['true']", "tag 'tag:yaml.org,2002:python.*' is refused"),
        ("run: {name: !!str 3}", "tag 'tag:yaml.org,2002:str' is refused"),
        ("run: &a {name: x}\ndata: *a", r"job\.yaml:2: alias \*a is refused"),
        ("- 1", "found a list, expected a mapping"),
        ("run: {name: x", "no valid YAML"),
        ("a: 1\n---\nb: 2", "no valid YAML"),
        ("run:\n  extra:\n    class_path: antigravity.Thing", r"job\.yaml:3: 'run\.extra\.class_path' names code"),
        ("data: {columns: {v: [{init_args: {}}]}}", r"'data\.columns\.v\.0\.init_args' names code"),
    ],
)
def test_bad_files_are_refused_with_file_and_key(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse("--config", yaml_file(tmp_path, text))


def test_nothing_named_in_a_configuration_is_imported(tmp_path, monkeypatch):
    (tmp_path / "trapdoor.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("{class_path: trapdoor.X}", "{extra: {class_path: trapdoor.X, init_args: {}}}", "{name: trapdoor.X}"):
        path = yaml_file(tmp_path, f"run: {text}")
        with pytest.raises(ConfigurationError):
            configuration.parse(Job, ["--config", path])
    parse("--run.extra.names", "[trapdoor.X]", "--run.name", "trapdoor.X")
    assert "trapdoor" not in sys.modules


@dataclass(frozen=True)
class CodeJob:
    hook: Callable[[], None] | None = None


@dataclass(frozen=True)
class AnythingJob:
    options: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("job", [CodeJob, AnythingJob])
def test_a_job_whose_fields_could_name_code_is_a_mistake_of_its_author(job):
    with pytest.raises(TypeError, match="no plain data"):
        configuration.parse(job, [])


def test_as_a_program_errors_are_a_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["job", "--run.nam", "x"])
    with pytest.raises(SystemExit) as stopped:
        configuration.parse(Job)
    assert stopped.value.code == 2
    said = "error: unknown flag '--run.nam'; did you mean 'run.name'? allowed: run.gpu, run.name\n"
    assert capsys.readouterr().err == said


def test_help_describes_fields(capsys):
    with pytest.raises(SystemExit) as stopped:
        configuration.parse(Job, ["--help"], description="What it does.")
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "What it does." in shown and "Folder of the shards, or a URL." in shown and "--run.extra.rate" in shown


def help_of(main: Callable[[list[str]], Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_job_of_this_layer_is_called_by_its_command(capsys):
    """Not by the file in which Python finds it (`__main__.py`)."""
    jobs = {
        "ray_jobs.pretrain": pretrain,
        "ray_jobs.evaluate": evaluate,
        "tuning.ablate": ablate,
        "tuning.sweep": sweep,
    }
    for name, job in jobs.items():
        assert help_of(job.main, capsys).startswith(f"usage: python -m {name} ")


def test_a_configuration_that_extends_another_describes_the_fields_of_both(capsys):
    shown = help_of(pretrain.main, capsys)
    assert "View to learn from" in shown and "Rows from which the input standardisation is fitted" in shown


def test_scalars_are_what_they_look_like(tmp_path):
    content = {"run": {"name": "x", "gpu": True}, "lr": 1e-5, "n": [0, -3, None, 2.5e10]}
    assert load(yaml_file(tmp_path, json.dumps(content))) == content
    text = "a: no\nb: 1:30\nc: 010\nd: 2026-01-02\ne: 0x1f\nf: 1_000\n"
    assert list(load(yaml_file(tmp_path, text)).values()) == ["no", "1:30", "010", "2026-01-02", "0x1f", "1_000"]


@pytest.mark.parametrize("name", ["1e-5", "no", "1:30", "010", "null", "12", ".5", "", " x", "2026-01-02", "a: b", "ü"])
def test_text_that_looks_like_something_else_survives_saving(tmp_path, name):
    job = PlainJob(Source(name))
    configuration.save(job, tmp_path / "saved.yaml")
    assert configuration.parse(PlainJob, ["--config", str(tmp_path / "saved.yaml")]) == job
