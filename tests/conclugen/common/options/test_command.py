"""Files and flags become frozen dataclasses: precedence, strictness, and nothing imported on a configuration's word."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from conclugen import PretrainConfig, presets
from conclugen.common.options import PARTIAL, Command, JobFailedError, OptionsError, build, save
from conclugen.common.options.strict_yaml import inline, load
from ray_jobs.run_config import preset_with


@dataclass(frozen=True)
class Extra:
    """What is beside it.

    Attributes:
        rate: Changes a second.
        names: Of whatever.
    """

    rate: float = 0.5
    names: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class Source:
    """Where from.

    Attributes:
        folder: Folder of the shards,
            or a URL: both are read.
        columns: Composition.
        weights: Of each.
        mode: How.
        rows: At most; none: all.
    """

    folder: str
    columns: dict[str, tuple[str, ...]] | None = None
    weights: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    mode: Literal["drop", "pad"] = "drop"
    rows: int | None = field(default=None, metadata={"was": "max_rows"})


@dataclass(frozen=True)
class Place:
    """Where to.

    Attributes:
        name: Of the run.
        gpu: Whether on one.
        profile: Steps, or true.
        extra: More.
        deep: Deeper.
    """

    name: str
    gpu: bool = False
    profile: bool | int = False
    extra: Extra | None = None
    deep: Extra = field(default_factory=lambda: Extra(rate=0.25))


@dataclass(frozen=True)
class Job:
    """What it does.

    At some length.
    """

    pretrain: PretrainConfig
    data: Source
    run: Place


@dataclass(frozen=True)
class PlainJob:
    """Plain.

    Attributes:
        data: Where from.
        clips: Files.
        count: How many of 100%.
        label: Labels, each NAME:CLASS,CLASS.
        quiet: No progress.
        renamed: Name -> its new name.
    """

    data: Source
    clips: tuple[str, ...] = ()
    count: int = 3
    label: tuple[str, ...] = field(default=(), metadata={"whole": True})
    quiet: bool = False
    renamed: dict[str, str] = field(default_factory=dict)


def nothing(job: Any) -> int:
    return 0


NEEDED = ["--data", "/d", "--run", "r"]
JOB = Command(
    "tests.job",
    Job,
    nothing,
    short={"data": "data.folder", "run": "run.name", "epochs": "pretrain.epochs", "preset": "pretrain.preset"}
    | {"recipe": "pretrain.recipe"},
    shown=("epochs",),
    was={"out": "run", "run.nom": "run"},
    built={"pretrain": preset_with},
)
PLAIN = Command("tests.plain", PlainJob, nothing, short={"data": "data.folder"}, bare="clips")


def parse(*arguments: str) -> Job:
    job: Job = JOB.parse([*NEEDED, *arguments])
    return job


def yaml_file(folder: Path, text: str, name: str = "job.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def said(command: Command, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that ends well without work."""
    with pytest.raises(SystemExit) as stopped:
        command.main(list(arguments))
    assert stopped.value.code == 0
    return capsys.readouterr().out


@dataclass
class OneJob:
    """A job whose source stands without an option, beside a list.

    Attributes:
        source: Folder to read.
        encoders: Encoders.
        quiet: Say less.
    """

    source: str
    encoders: tuple[str, ...] = ("a",)
    quiet: bool = False


ONE = Command("tests.one", OneJob, nothing, bare="source")


@pytest.mark.parametrize(
    ("line", "source", "encoders"),
    [
        ("/d --encoders a b", "/d", ("a", "b")),
        ("/d --encoders a,b", "/d", ("a", "b")),
        ("--source /d --encoders a b", "/d", ("a", "b")),
        ("--source=/d --encoders a b", "/d", ("a", "b")),
        ("--encoders a b --source /d", "/d", ("a", "b")),
        ("--encoders a b /d", "/d", ("a", "b")),
        ("--encoders a /d", "/d", ("a",)),
        ("--encoders a b --quiet /d", "/d", ("a", "b")),
        ("--quiet /d --encoders a b c", "/d", ("a", "b", "c")),
    ],
)
def test_a_list_takes_words_beside_the_one_that_needs_no_option(line, source, encoders):
    job = ONE.parse(line.split())
    assert (job.source, job.encoders) == (source, encoders)


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
    with pytest.raises(OptionsError, match="takes only null"):
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
    save(job, tmp_path / "saved.yaml")
    assert parse("--config", str(tmp_path / "saved.yaml")) == job


@pytest.mark.parametrize("preset", [*presets.PRESETS])
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_saved_configuration_reads_back_equal(tmp_path, preset, ending):
    job = parse("--preset", preset, "--recipe", "paper", "--pretrain.seed", "5", "--data.columns.v", "[ä]")
    path = tmp_path / f"saved.{ending}"
    save(job, path)
    if ending == "json":
        assert json.loads(path.read_text())["run"]["name"] == job.run.name
    else:
        assert path.read_text().startswith("pretrain:\n")
    assert JOB.parse(["--config", str(path)]) == job
    assert JOB.parse(["--config", str(path), "--pretrain.seed", "6"]).pretrain.seed == 6


def test_the_template_is_a_file_of_the_same_job(tmp_path, capsys):
    printed = yaml_file(tmp_path, said(JOB, capsys, *NEEDED, "--preset", "contrast_only", "--print_config"))
    assert JOB.parse(["--config", printed]) == parse("--preset", "contrast_only")


def test_the_template_is_whole_where_fields_are_missing(tmp_path, capsys):
    text = said(JOB, capsys, "--data.weights.b", "2", "--print-config")
    assert "  # Folder of the shards, or a URL: both are read. (required)\n  folder: ???\n" in text
    assert "  # Of each. (default: a=1)\n  weights: {a: 1.0, b: 2.0}\n" in text
    assert "  # What is beside it.\n  extra: null\n" in text
    path = yaml_file(tmp_path, text)
    with pytest.raises(OptionsError, match=r"missing: --data FOLDER, --run NAME; give it as in .*, or in a file"):
        JOB.parse(["--config", path])
    assert JOB.parse(["--config", path, *NEEDED]) == parse("--data.weights.b", "2")


def test_a_value_stays_on_its_line_and_text_stays_text(tmp_path):
    for value in ([f"speaker {n}: on" for n in range(60)], {"a": "1e-5", "b": ".5e3", "c": 1e-5}, "of " * 90 + "it"):
        line = inline(value)
        assert "\n" not in line and load(yaml_file(tmp_path, f"field: {line}\n")) == {"field": value}


def test_every_field_stands_in_the_template_once(capsys):
    text = said(JOB, capsys, "--preset", "conclugen", "--run.extra.rate", "1", "--print-config")
    written = [line.strip().partition(":")[0] for line in text.splitlines() if not line.lstrip().startswith("#")]
    for name, count in {"folder": 1, "rate": 2, "global_batch": 1, "lr": 1, "preset": 1, "gpu": 1, "rows": 1}.items():
        assert written.count(name) == count, name


def test_a_job_without_pretraining_has_no_preset():
    assert PLAIN.parse(["--data", "/d", "--count", "4"]) == PlainJob(Source("/d"), count=4)
    with pytest.raises(OptionsError, match="unknown option --preset"):
        PLAIN.parse(["--data", "/d", "--preset", "simclr"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--run.deep.names", "p,q"],
        ["--run.deep.names", "[p, q]"],
        ["--run.deep.names", "p", "q"],
        ["--run.deep.names=p", "--run.deep.names=q"],
        ["--run.deep-names", "p,q"],
    ],
)
def test_every_spelling_of_a_list(arguments):
    if arguments[0] == "--run.deep-names":
        with pytest.raises(OptionsError, match=r"did you mean --run\.deep\.names"):
            parse(*arguments)
    else:
        assert parse(*arguments).run.deep.names == ("p", "q")


def test_words_mean_what_the_type_of_their_field_says():
    job = parse("--run", "12", "--run.gpu", "--run.profile", "5", "--data.rows", "none", "--run.deep.names", "1,true")
    assert job.run == Place("12", True, 5, None, Extra(0.25, ("1", "true")))
    assert parse("--run.profile", "--no-run.gpu").run == Place("r", False, True)
    assert parse("--run.gpu", "yes", "--run.profile=false").run == Place("r", True, False)
    assert parse("--data.columns", "video=a,b,audio=c").data.columns == {"video": ("a", "b"), "audio": ("c",)}
    assert PLAIN.parse(["--data", "/d", "--renamed", "a,b", "--renamed", "c=d"]).renamed == {
        "a": "a",
        "b": "b",
        "c": "d",
    }
    assert parse("--pretrain.optimizer.lr", "1e-3").pretrain.optimizer.lr == 1e-3


def test_words_without_an_option_go_to_the_field_that_takes_them():
    job = PLAIN.parse(["a.mp4", "--quiet", "b.mp4", "--data", "/d", "--label", "x:p,q", "--label", "y:r", "--", "--c"])
    assert (job.clips, job.quiet, job.label) == (("a.mp4", "b.mp4", "--c"), True, ("x:p,q", "y:r"))
    with pytest.raises(OptionsError, match=r"unexpected word 'a\.mp4'"):
        JOB.parse(["a.mp4"])


def test_underscores_dashes_and_old_names(tmp_path, capsys):
    assert parse("--pretrain.global-batch", "9").pretrain == parse("--pretrain.global_batch", "9").pretrain
    assert capsys.readouterr().err == ""
    assert JOB.parse(["--data.folder", "/d", "--out", "r"]) == parse()
    assert capsys.readouterr().err.splitlines() == [
        "note: --data.folder is called --data now; the old name will be removed in the next version",
        "note: --out is called --run now; the old name will be removed in the next version",
    ]
    path = yaml_file(tmp_path, "out: r\ndata: /d\nepochs: 3\n")
    assert JOB.parse(["--config", path]).run.name == "r"
    assert f"note: {path}: out is called run now" in capsys.readouterr().err
    assert JOB.parse(["--config", path]).pretrain.epochs == 3


def test_a_renamed_field_is_read_by_its_former_name(tmp_path, capsys):
    """On a command line, in a file, and in plain data that an earlier version has stored."""
    assert parse("--data.max-rows", "5").data.rows == 5
    assert "note: --data.max-rows is called --data.rows now" in capsys.readouterr().err
    path = yaml_file(tmp_path, "data: {folder: /d, max_rows: 6}\nrun: r\n")
    assert JOB.parse(["--config", path]).data.rows == 6
    assert f"note: {path}: data.max_rows is called data.rows now" in capsys.readouterr().err
    assert JOB.parse(["--config", path, "--data.rows", "7"]).data.rows == 7
    assert build(Source, {"folder": "/d", "max_rows": 8}).rows == 8
    assert build(Source, {"folder": "/d", "max_rows": None}, Source("/d", rows=3)).rows is None
    with pytest.raises(OptionsError, match=r"data\.rows: also given by its former name 'max_rows'; give one"):
        build(Source, {"folder": "/d", "max_rows": 8, "rows": 8}, path="data")
    saved = tmp_path / "job.yaml"
    save(parse("--data.rows", "9"), saved)
    assert "max_rows" not in saved.read_text() and JOB.parse(["--config", str(saved)]).data.rows == 9


def test_a_group_is_switched_on_with_its_defaults_and_off_again(tmp_path):
    assert parse("--run.extra", "true").run.extra == Extra()
    path = yaml_file(tmp_path, "run: {extra: {}}\n")
    assert parse("--config", path).run.extra == Extra()
    assert parse("--config", path, "--run.extra", "null").run.extra is None
    assert parse("--run.extra", "null", "--run.extra.rate", "2").run.extra == Extra(2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrain.tasks.contrastive.wieght", "1"], r"did you mean --pretrain\.tasks\.contrastive\.weight\?"),
        (["--epoch", "3"], r"unknown option --epoch; did you mean --epochs\?"),
        (["--weight-decay", "3"], r"did you mean --pretrain\.optimizer\.weight-decay\?"),
        (["--epochs"], "--epochs: expected a value behind it"),
        (["--epochs", "1_0"], "--epochs: must be a whole number, got '1_0'"),
        (["--run.gpu=maybe"], "--run.gpu: must be true or false, got 'maybe'"),
        (["--data.weights", "a=x"], r"--data\.weights.a: must be a number, got 'x'"),
        (["--run.deep.names", "[[a]]"], r"--run\.deep\.names: must be text"),
        (["--preset", "conclugn"], "did you mean 'conclugen'"),
        (["--recipe", "papr"], "did you mean 'paper'"),
        (["--preset", "contrast_only", "--pretrain.tasks.simclr.modality", "tex"], "simclr.modality.*'tex'.*'text'"),
        (["--data.mode", "dorp"], r"--data\.mode: must be one of drop, pad, got 'dorp' \(did you mean 'drop'\?\)"),
        (["--data.rows", "many"], r"--data\.rows: must be a whole number, got 'many'"),
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
    with pytest.raises(OptionsError, match=message):
        parse(*arguments)


def test_required_fields_are_asked_for_by_their_options():
    with pytest.raises(
        OptionsError,
        match=r"missing: --run NAME; give it as in python -m tests\.job --data /d --run NAME, or in a file by --config",
    ):
        JOB.parse(["--data", "/d"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {nam: x}", r"job\.yaml: unknown field 'run\.nam' \(did you mean 'name'"),
        ("pretrian: {}", "unknown field 'pretrian' \\(did you mean 'pretrain'"),
        (
            "pretrain: {tasks: {contrastive: {wieght: 1}}}",
            "tasks.contrastive.wieght' \\(did you mean 'weight'",
        ),
        ("pretrain: 3", "pretrain: found 3, expected a mapping"),
        ("data: 3", r"job\.yaml: data\.folder: must be text, got 3"),
        ("epochs: '3'", r"pretrain\.epochs: must be a whole number, got '3'"),
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
    with pytest.raises(OptionsError, match=message):
        parse("--config", yaml_file(tmp_path, text))


def test_nothing_named_in_a_configuration_is_imported(tmp_path, monkeypatch):
    (tmp_path / "trapdoor.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("{class_path: trapdoor.X}", "{extra: {class_path: trapdoor.X, init_args: {}}}", "{name: trapdoor.X}"):
        path = yaml_file(tmp_path, f"run: {text}")
        with pytest.raises(OptionsError):
            JOB.parse(["--config", path])
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
    with pytest.raises(TypeError, match="not plain data"):
        Command("tests.job", job, nothing).parse([])


def test_errors_are_one_line_and_have_one_status_each(capsys):
    def ending(error: Exception | None, status: int = 0) -> tuple[int, str]:
        def work(job: Any) -> int:
            if error is not None:
                raise error
            return status

        ended = Command("tests.job", Job, work, short=JOB.short, built=JOB.built).main([*NEEDED, "--run.gpu"])
        return ended, capsys.readouterr().err

    assert JOB.main(["--run.nam", "x"]) == 2
    assert capsys.readouterr().err == "error: unknown option --run.nam; did you mean --run?\n"
    assert ending(None) == (0, "") and ending(None, PARTIAL) == (3, "")
    assert ending(ValueError("run.gpu: there is none")) == (2, "error: --run.gpu: there is none\n")
    assert ending(ValueError("model.representation_dim: 0")) == (2, "error: --pretrain.model.representation-dim: 0\n")
    assert ending(JobFailedError("rank 1, step 3")) == (1, "error: rank 1, step 3\n")
    missing = FileNotFoundError(2, "No such file or directory", "/d/manifest.parquet")
    assert ending(missing) == (2, "error: --data: /d/manifest.parquet: No such file or directory\n")
    assert ending(OSError(28, "No space left on device", "/x")) == (1, "error: /x: No space left on device\n")
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())


def test_help_shows_what_is_used_most_and_help_all_the_rest(capsys):
    most = said(JOB, capsys, "--help")
    assert most.startswith(
        "usage: python -m tests.job --data FOLDER --run NAME [options]\n\nWhat it does.\n\nAt some length."
    )
    options = [line.split()[0] for line in most.splitlines() if line.startswith("  --")]
    assert options == ["--data", "--run", "--epochs", "--config", "--print-config", "--help", "--help-all"]
    every = said(JOB, capsys, "--help-all")
    assert " ".join(every.split()).count("Folder of the shards, or a URL: both are read. (required)") == 1
    assert "\nrun.deep:\n  What is beside it.\n" in every
    assert re.search(r"--run\.deep\.rate X +Changes a second\. \(default: 0\.25\)", every)
    assert re.search(r"--count N +How many of 100%\. \(default: 3\)", said(PLAIN, capsys, "--help"))


def test_scalars_are_what_they_look_like(tmp_path):
    content = {"run": {"name": "x", "gpu": True}, "lr": 1e-5, "n": [0, -3, None, 2.5e10]}
    assert load(yaml_file(tmp_path, json.dumps(content))) == content
    text = "a: no\nb: 1:30\nc: 010\nd: 2026-01-02\ne: 0x1f\nf: 1_000\n"
    assert list(load(yaml_file(tmp_path, text)).values()) == ["no", "1:30", "010", "2026-01-02", "0x1f", "1_000"]


@pytest.mark.parametrize("name", ["1e-5", "no", "1:30", "010", "null", "12", ".5", "", " x", "2026-01-02", "a: b", "ü"])
def test_text_that_looks_like_something_else_survives_saving(tmp_path, name):
    job = PlainJob(Source(name))
    save(job, tmp_path / "saved.yaml")
    assert PLAIN.parse(["--config", str(tmp_path / "saved.yaml")]) == job
