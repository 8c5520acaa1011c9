"""Whole or not at all: under kills, failures, full folders and other writers; and on the disk when it stands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conclugen.common import atomic

REPOSITORY = Path(__file__).resolve().parents[3]


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    text = "import os, signal, sys\nfrom pathlib import Path\nfrom conclugen.common import atomic\n" + code
    return subprocess.Popen([sys.executable, "-c", text, *map(str, arguments)], cwd=REPOSITORY, text=True)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writers_leave_what_they_were_given(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "b", memoryview(b"\0\1"))
    atomic.write_text(tmp_path / "t", "ä\n")
    atomic.write_json(tmp_path / "j", {"b": [1, None], "a": 0.5})
    assert (tmp_path / "b").read_bytes() == b"\0\1" and (tmp_path / "t").read_bytes() == "ä\n".encode()
    assert (tmp_path / "j").read_text() == '{\n  "a": 0.5,\n  "b": [\n    1,\n    null\n  ]\n}'
    assert names(tmp_path) == ["b", "j", "t"]


def test_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    atomic.write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("moment", ["replace", "rename"])
def test_a_kill_between_write_and_rename_leaves_the_old_content(tmp_path: Path, moment: str) -> None:
    (tmp_path / "f").write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_text("old")
    code = f"Path.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    if moment == "replace":
        code += "atomic.write_text(Path(sys.argv[1], 'f'), 'new')"
    else:
        code += "with atomic.atomic_folder(Path(sys.argv[1], 'd')) as folder: (folder / 'x').write_text('new')"
    assert run(code, tmp_path).wait() == -signal.SIGKILL
    assert (tmp_path / "f").read_text() == "old" and names(tmp_path / "d") == ["x"]
    assert (tmp_path / "d/x").read_text() == "old"
    name = "f" if moment == "replace" else "d"
    left = [entry for entry in names(tmp_path) if entry not in ("f", "d")]
    assert len(left) == 1 and atomic.is_remnant(left[0], name) and not atomic.is_remnant(left[0], "other")
    atomic.write_text(tmp_path / "f", "newer")  # what is left is in nobody's way
    assert (tmp_path / "f").read_text() == "newer"
    atomic.remove_remnants(tmp_path / "other")
    assert len(names(tmp_path)) == 3
    atomic.remove_remnants(tmp_path / name)
    assert names(tmp_path) == ["d", "f"]


def test_a_failure_leaves_the_old_content_and_no_remnant(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.atomic_file(tmp_path / "f") as file:
        file.write(b"new")
        raise ZeroDivisionError
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "f", {"x": object()})
    with pytest.raises(ZeroDivisionError), atomic.atomic_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path) == ["f"] and (tmp_path / "f").read_text() == "old"


def test_a_folder_that_cannot_be_renamed_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space"), atomic.atomic_folder(tmp_path / "d") as folder:
        (folder / "y").write_text("new")
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["x"]


def test_a_folder_replaces_another_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic.atomic_folder(tmp_path / "above/d") as folder:
            (folder / content).mkdir()
            (folder / content / "x").write_text(content)
    assert names(tmp_path / "above") == ["d"] and names(tmp_path / "above/d") == ["new"]


def test_errors_name_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomic.write_text(tmp_path / "no/such/f", "")
    assert caught.value.filename == str(tmp_path / "no/such/f")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught_too:
        atomic.write_text(tmp_path / "folder", "")
    assert caught_too.value.filename == str(tmp_path / "folder")
    assert names(tmp_path) == ["folder"]


def test_content_is_synced_before_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of system calls, by the files they are about: fsync of what is written, rename, fsync of the folder."""
    calls: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def named(path: Path) -> str:
        return "partial" if path.suffix == ".partial" else path.name

    def synced(descriptor: int) -> None:
        calls.append(("sync", named(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append(("name", to.name)), replace(self, to))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (calls.append(("name", to.name)), rename(self, to))[1])
    atomic.write_text(tmp_path / "f", "x")
    assert calls == [("sync", "partial"), ("name", "f"), ("sync", tmp_path.name)]
    calls.clear()
    with atomic.atomic_folder(tmp_path / "d") as folder:
        (folder / "below").mkdir()
        (folder / "below/x").write_text("x")
    assert calls == [("sync", "partial"), ("sync", "x"), ("sync", "below"), ("name", "d"), ("sync", tmp_path.name)]


def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_alone(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    atomic.write_text(tmp_path / "f", "x")
    assert (tmp_path / "f").read_text() == "x"

    def full(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Input/output"):
        atomic.write_text(tmp_path / "f", "y")
    assert (tmp_path / "f").read_text() == "x"


def test_two_writers_at_once_never_mix(tmp_path: Path) -> None:
    code = "for _ in range(60): atomic.write_json(Path(sys.argv[1], 'f'), [sys.argv[2]] * 2000)"
    (tmp_path / "f").write_text("[]")
    writers = [run(code, tmp_path, number) for number in range(2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = json.loads((tmp_path / "f").read_text())
        assert len(content) in (0, 2000) and len(set(content)) <= 1
        seen.update(content)
    assert [writer.returncode for writer in writers] == [0, 0] and seen <= {"0", "1"}
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["n" * 250, "ö" * 125])
def test_names_as_long_as_file_systems_allow(tmp_path: Path, name: str) -> None:
    atomic.write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_a_link_that_waits_under_the_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "0" * 16)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".f.{'0' * 16}.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        atomic.write_text(tmp_path / "f", "x")
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_is_added_to_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    atomic.append_text(tmp_path / "f", "ä\n")
    atomic.append_text(tmp_path / "f", "b\n")
    assert (tmp_path / "f").read_text("utf-8") == "ä\nb\n"
    (tmp_path / "link").symlink_to(tmp_path / "f")
    (tmp_path / "new").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "new", "pipe"):
        with pytest.raises(OSError, match=name):
            atomic.append_text(tmp_path / name, "c\n")
    assert (tmp_path / "f").read_text("utf-8") == "ä\nb\n" and not (tmp_path / "nothing").exists()
