"""`conclugen NAME`: every command is found where the project is installed, in a clone, and from other packages."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from conclugen.__main__ import main
from conclugen.common import commands, extras
from conclugen.common.extras import EXTRA_OF
from conclugen.common.revision import revision_of
from ray_jobs import doctor
from tests.conclugen.common.test_extras import HIDE
from tests.jobs import HEAVY

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED = PROJECT["entry-points"][commands.GROUP]
WANTED = {"demo", "check", "build", "pack", "index", "split", "verify", "features", "pretrain", "evaluate", "embed"}
WANTED |= {"sweep", "ablate", "report", "track", "doctor"}


def installed_at(place: Path, name: str, points: str, version: str = "1.0") -> str:
    """PYTHONPATH of a process that has a package's metadata, and this repository."""
    folder = place / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    (folder / "entry_points.txt").write_text(f"[{commands.GROUP}]\n{points}", "utf-8")
    return os.pathsep.join([str(place), str(ROOT)])


def typed(*lines: str, path: str = str(ROOT), cwd: Path = ROOT, code: str = "") -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each command line, one after another in a process of its own."""
    program = f"""{code}
import contextlib, io, json, sys
from conclugen.__main__ import main
ended = []
for line in {[line.split() for line in lines]!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(line)
        except SystemExit as stop:
            status = stop.code
    ended.append((status, out.getvalue(), err.getvalue()))
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps([ended, heavy]))"""
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended, heavy = json.loads(done.stdout)
    assert not heavy, f"imported: {heavy}"
    return [(status, out, err) for status, out, err in ended]


def test_every_command_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")  # every command is loaded
    assert set(DECLARED) >= WANTED and set(commands.registered().entries) == set(DECLARED)
    assert main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z-]+) +(\S.*)$", capsys.readouterr().out, re.M)
    assert [name for name, _ in listed] == sorted(DECLARED)
    for name, about in listed:
        assert about == (commands.load(name).job.__doc__ or "").partition("\n")[0] and about.endswith((".", "alike."))
    assert main([]) == 0 and capsys.readouterr().out.startswith("usage: conclugen COMMAND")


def test_a_command_is_called_as_it_was_typed_and_nothing_heavy_is_imported() -> None:
    listed, called, helped, same, unknown, wrong = typed(
        "--help", "pretrain --help", "help split", "split --help", "pretrian --data x", "doctor chekc"
    )
    assert listed[0] == 0 and "\n  pretrain " in listed[1]
    assert called[1].startswith("usage: conclugen pretrain FOLDER --run NAME [options]")
    assert helped == same != (0, "", "")
    assert unknown[:2] == (2, "") and wrong[0] == 2
    assert re.fullmatch(r"error: unknown command 'pretrian'; .*did you mean 'pretrain'\?\n", unknown[2])
    assert "did you mean 'check'?" in wrong[2]


def test_no_job_is_named_in_the_core() -> None:
    """A command is a line of pyproject.toml: its module stands in no source file of `conclugen/`."""
    modules = {value.partition(":")[0] for value in DECLARED.values()}
    for path in (ROOT / "conclugen").rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
        assert not modules & set(filter(lambda text: isinstance(text, str), texts)), path


def test_missing_libraries_are_named_at_once_with_their_extras(tmp_path: Path) -> None:
    names = [name for name in DECLARED if commands.extras_of(name)]
    hide = HIDE.replace("sys.argv[1]", repr(",".join(EXTRA_OF)))
    listed, *ended = typed("--help", *(f"{name} --output x" for name in names), code=hide, cwd=tmp_path)
    for name, (status, out, err) in zip(names, ended, strict=True):
        assert set(commands.extras_of(name)) <= set(EXTRA_OF.values())
        install = f'pip install "conclugen[{",".join(commands.extras_of(name))}]"'
        assert (status, out) == (2, "")
        assert re.fullmatch(rf"error: conclugen {name} needs .+, not installed: {re.escape(install)}\n", err)
        assert re.search(rf"^  {name} .*\({re.escape(install)}\)$", listed[1], re.M)
    assert not list(tmp_path.iterdir())


def test_another_package_adds_a_command_and_breaks_none(tmp_path: Path) -> None:
    (tmp_path / "helpful.py").write_text(
        "from dataclasses import dataclass\nfrom conclugen.common.options import Command\n"
        '@dataclass\nclass Job:\n    """Greet."""\n    whom: str = "you"\n'
        "def work(job):\n    print('hello', job.whom)\n    return 0\n"
        "COMMAND = Command('helpful', Job, work)\n"
    )
    points = "greet = helpful:COMMAND\nwrong = helpful:Job\ngone = no_such_module:X\npretrain = helpful:COMMAND\n"
    path = os.pathsep.join([str(tmp_path), installed_at(tmp_path / "site", "helpful", points)])
    listed, greeted, wrong, gone = typed("--help", "greet --whom all", "wrong", "gone", path=path)
    assert re.search(r"^  greet +Greet\.$", listed[1], re.M) and "Pretrain on feature shards" in listed[1]
    assert greeted == (0, "hello all\n", "")
    for ended, why in ((wrong, "is type, expected a Command"), (gone, "No module named 'no_such_module'")):
        assert ended[0] == 2 and why in ended[2] and ended[2].count("\n") == 1, ended


def test_an_installation_without_a_clone_reads_its_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The packages alone, as in site-packages, with the metadata that an installation writes."""
    site = tmp_path / "site"
    installed_at(site, "conclugen", "".join(f"{name} = {value}\n" for name, value in DECLARED.items()), "9.8")
    for package in ("conclugen", "shards", "ray_jobs", "tuning"):
        (site / package).symlink_to(ROOT / package)
    code = f"from conclugen.common import commands; commands.CLONE = commands.Path({str(tmp_path)!r})"
    listed, version = typed("--help", "--version", path=str(site), cwd=tmp_path, code=code)
    assert main(["--help"]) == 0
    assert listed == (0, capsys.readouterr().out, "") and version == (0, "conclugen 9.8\n", "")


@pytest.mark.slow
def test_an_editable_installation_has_the_script(tmp_path: Path) -> None:
    """As `make` installs, but for the dependencies, which are this environment's."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False, symlinks=True)
    site = place / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    copy = tmp_path / "clone"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ["--quiet", "--no-deps", "--config-settings", "editable_mode=compat"]
    install: list[str | Path] = [place / "bin/python", "-m", "pip", "install", *options, "-e", copy]
    subprocess.run(install, cwd=tmp_path, env=clean, check=True)
    programs: list[list[str | Path]] = [[place / "bin/conclugen"], [place / "bin/python", "-m", "conclugen"]]
    for program in programs:
        ended = subprocess.run([*program, "--help"], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert ended.returncode == 0 and ended.stdout == typed("--help")[0][1], ended.stderr
    where: list[str | Path] = [place / "bin/python", "-c", "import conclugen; print(conclugen.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(copy)


def test_what_is_typed_next_can_be_typed_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "env/bin"
    place.mkdir(parents=True)
    python, script = place / "python", place / "conclugen"
    for file in (python, script):
        file.write_text("")
        file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    assert commands.typed("split x") == "env/bin/conclugen split x"
    monkeypatch.setenv("PATH", str(place))
    assert commands.typed(["embed", "a b.mp4"]) == "conclugen embed 'a b.mp4'"
    script.unlink()
    assert commands.typed("split x") == "python -m conclugen split x"
    monkeypatch.setenv("PATH", "/usr/bin")
    assert commands.typed("split x") == "env/bin/python -m conclugen split x"


def test_absent_libraries_are_those_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRA_OF, "no_such_library", "data")
    assert extras.absent("data") == ["no_such_library"] and "pyarrow" in extras.libraries("data")


def test_doctor_tells_what_is_missing_for_which_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extras, "absent", lambda extra: [] if extra == "data" else [f"library_of_{extra}"])
    monkeypatch.setattr(doctor, "_FRAGILE", ())
    monkeypatch.setattr(doctor, "_devices", lambda: "")
    monkeypatch.setattr(doctor, "_media", lambda: doctor.Finding("ffmpeg", ""))
    assert main(["doctor"]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(DECLARED) <= set(lines)
    for name in DECLARED:
        lacking = [extra for extra in commands.extras_of(name) if extra != "data"]
        assert (" ok" in lines[name]) is not bool(lacking), lines[name]
        assert not lacking or lines[name].endswith(f'pip install "conclugen[{",".join(lacking)}]"')
    assert main(["doctor", "check", "split"]) == 0
    assert "pretrain" not in capsys.readouterr().out


def test_doctor_names_libraries_that_do_not_work_and_places_that_do_not_serve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "cv2.py").write_text("raise OSError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(doctor, "_FRAGILE", ("cv2",))
    monkeypatch.setattr(extras, "absent", lambda extra: [])
    monkeypatch.setattr(doctor, "_media", lambda: doctor.Finding("ffmpeg", "", True))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = {finding.name: finding for finding in doctor.examine(doctor.DoctorJob(("build", "check", "pretrain")))}
    assert "libGL.so.1" in found["cv2"].text and found["cv2"].good is False
    assert found["build"].good is False and found["check"].good and found["pretrain"].good
    assert found["Ray"].good is False and "unset RAY_ADDRESS" in found["Ray"].text


@pytest.mark.parametrize("changed", [False, True])
def test_the_revision_is_that_of_the_clone_that_tracks_the_files(changed: bool, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    package, site = tmp_path / "package", tmp_path / "env/site-packages"
    for folder in (package, site):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("1")
    assert revision_of(package) is None
    git("add", "package")
    git("commit", "-qm", "one")
    if changed:
        (package / "a.py").write_text("2")
    assert revision_of(package) == git("rev-parse", "HEAD") + "-dirty" * changed
    assert revision_of(site) is None and revision_of(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (["python", "-m", "conclugen", "pretrain", "--data", "/a/b"], "conclugen pretrain"),
        (["python", "/v/bin/conclugen", "run", "/a/videos"], "conclugen run"),
        (["/usr/bin/python3", "-m", "ray_jobs.pretrain", "--output", "/x"], "python3 -m ray_jobs.pretrain"),
        (["python", "/home/me/study.py", "/a"], "study.py"),
        (["python"], "python"),
        (["python", "-c", "1"], "python"),
    ],
)
def test_a_command_is_named_without_its_options(typed: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", typed)
    assert commands.given_name() == name
