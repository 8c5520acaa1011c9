"""Every command of the project: each option has help of its own and shows its default, and what is wrong is told before
anything heavy is imported."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from conclugen.common.options import OptionsError, schema
from conclugen.common.options.command import _leaves
from ray_jobs.build_shards import BuildJob
from shards.clips.plan import BuildOptions
from shards.media.limits import Limits
from tests import jobs

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = (*jobs.JOBS, *jobs.SHARDS)
_GUARD = '\nif __name__ == "__main__":\n'
# Run by other means: the child of a preparation, and the script that goes with a report.
NO_COMMANDS = ("shards.media.child", "tuning.report.figures")
# One meaning each in all commands: the option, and what its field is called where it has another name.
VOCABULARY = {
    "--run": ("run", "run.name", "name"),
    "--data": ("data", "data.folder", "datasets"),
    "--output": ("output", "run.output"),
    "--source": ("source",),
    "--overwrite": ("overwrite",),
    "--quiet": ("quiet",),
}


def printed(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        jobs.load(name).main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_its_own_help_and_shows_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = jobs.load(name)
    text = "".join(printed(name, capsys, "--help-all").split())  # wherever its lines are broken
    leaves = _leaves(command)
    assert leaves
    for leaf in leaves:
        assert len(leaf.help) > 8, (leaf.name, leaf.help)
        option = command.option(leaf.name)
        metavar = "" if leaf.hint is bool else leaf.metavar
        entry = "".join(f"{option}{metavar}{leaf.help}".split())
        assert entry in text, f"{leaf.help!r} is not the help of {option}"
        assert re.match(r"\((default:.+?|required)\)", text[text.index(entry) + len(entry) :]), option
    for cls in {command.job, *(cls for _, cls, _ in schema.groups(command.job))}:
        fields = {field.name for field in dataclasses.fields(cls)}
        texts = [text for field, text in schema.documentation(cls).items() if field in fields]
        assert len(set(texts)) == len(texts), f"{cls.__name__}: two fields have the same help"


@pytest.mark.parametrize("name", NAMES)
def test_help_is_about_a_dozen_options_in_the_words_of_all_commands(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = jobs.load(name)
    shown = re.findall(r"^  (--[\w.-]+)", printed(name, capsys, "--help"), re.M)
    assert {"--config", "--print-config", "--help", "--help-all"} <= set(shown)
    assert len(shown) - 4 <= (24 if name in jobs.SHARDS else 16)
    for option, fields in VOCABULARY.items():
        for leaf in _leaves(command):
            assert command.option(leaf.name) != option or leaf.name in fields, (option, leaf.name)


@pytest.mark.parametrize("name", NAMES)
def test_the_template_is_whole_and_reads_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = jobs.load(name)
    path = tmp_path / "job.yaml"
    path.write_text(printed(name, capsys, "--print-config"))
    missing = [leaf for leaf in _leaves(command) if leaf.default is schema.REQUIRED]
    if not missing:
        assert command.parse(["--config", str(path)]) == command.parse([])
        return
    with pytest.raises(OptionsError, match="missing: ") as refused:
        command.parse(["--config", str(path)])
    given = []
    for leaf in missing:
        assert f"{command.option(leaf.name)} " in str(refused.value)
        given += [command.option(leaf.name), "a=b" if schema.is_mapping(leaf.hint) else "x"]
    assert command.parse(["--config", str(path), *given]) == command.parse(given)


def test_nothing_heavy_is_imported_for_help_or_for_a_wrong_option() -> None:
    """In a process of its own for each command."""
    program = f"""
import contextlib, io, json, sys
from tests import jobs
command = jobs.load(sys.argv[1])
found = {{}}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
    for arguments in (["--help"], ["--no-such-option", "1"]):
        try:
            status = command.main(arguments)
        except SystemExit as stopped:
            status = stopped.code
        found[arguments[0]] = [status, [name for name in {jobs.HEAVY!r} if name in sys.modules]]
print(json.dumps(found))
"""
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", program, name],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in NAMES
    }
    for name, process in running.items():
        out, error = process.communicate(timeout=250)
        assert process.returncode == 0, error
        assert json.loads(out) == {"--help": [0, []], "--no-such-option": [2, []]}, name


def _scripts() -> list[str]:
    """Modules that are run by `python -m`."""
    packages = [REPOSITORY / name for name in ("conclugen", "shards", "ray_jobs", "tuning")]
    found = [
        path for package in packages for path in sorted(package.rglob("*.py")) if _GUARD in path.read_text("utf-8")
    ]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__main__") for path in found]
    return [name for name in names if name not in NO_COMMANDS]


@pytest.mark.parametrize("module", _scripts())
def test_a_module_that_is_run_ends_with_its_command_s_status(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--no-such-option"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore")  # it may have been imported before
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err


def test_defaults_that_stand_in_two_places_agree() -> None:
    limits, options = Limits(), BuildOptions()
    job = BuildJob(adapter="folder", source=Path(), output=Path())
    assert (job.max_seconds, int(job.max_megapixels * 1e6)) == (limits.max_seconds, limits.max_pixels)
    assert (job.audio_gap_seconds, job.audio_gap_share) == (limits.audio_gap_seconds, limits.audio_gap_share)
    assert job.picture_gap_seconds == limits.picture_gap_seconds
    for name in ("clips_per_shard", "shuffle_seed", "sound", "audio_rate", "audio_length", "faces", "timeout"):
        assert getattr(job, name) == getattr(options, name), name


def test_the_campaign_of_endings_stops_every_command() -> None:
    from tests.campaigns import endings  # which imports what all of them need

    assert {job.command for job in endings.JOBS.values()} == set(NAMES) - set(endings.ENDLESS)
    renamed = ["/f/a", "/f/b", "/f/a", "/g/x", "/f/c/*", "/f/c/d"]
    assert endings.points_of(renamed, Path("/f")) == ("b", "c/d") and endings.points_of(renamed[:3], Path("/f")) is None


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_path_is_not_the_working_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = jobs.load(name)
    for leaf in _leaves(job):
        if Path in schema._options(leaf.hint):
            assert job.main([f"{job.option(leaf.name)}="]) == 2, leaf.name
            error = capsys.readouterr().err
            assert f"{job.option(leaf.name)}: must name a file or folder, got ''" in error, (leaf.name, error)
