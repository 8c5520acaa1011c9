"""A job's folder: gone on with, refused or replaced, and nothing but the job's own files removed."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from conclugen.common.locks import FolderInUseError, folder_held
from shards.output_folder import Ownership, OwnershipLostError, digest_of

JOB = Ownership("job", "job.json", ("*.tar", "reports/*.json"))


def test_the_same_job_goes_on_and_another_is_refused_by_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "new/out"
    JOB.acquire(out, {"seed": 1, "size": (2, 3), "old": None})
    (out / "a.tar").touch()
    JOB.acquire(out, {"seed": 1, "size": (2, 3)}, overwrite=True)
    assert (out / "a.tar").exists()
    with pytest.raises(ValueError, match=r"holds a job that differs in seed \(there 1, here 2\), size \(.*--overwrite"):
        JOB.acquire(out, {"seed": 2, "size": [2]})
    assert json.loads((out / "job.json").read_text()) == {"seed": 1, "size": [2, 3], "old": None}


NESTED: dict[str, Any] = {
    "limits": {"seconds": 3, "gap": {"share": 0.5}},
    "encoders": [{"name": "a", "width": 8}, {"name": "b", "width": 8}],
    "faces": True,
}
ENCODERS = '[{"name": "a", "width": 8}, {"name": "b", "width": 8}]'
DIFFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"limits": {"seconds": 4, "gap": {"share": 0.5}}}, "limits.seconds (there 3, here 4)"),
    ({"limits": {"seconds": 3, "gap": {}}}, "limits.gap.share (there 0.5, here absent)"),
    ({"limits": {"seconds": 3, "gap": {"share": 0.5}, "bytes": 7}}, "limits.bytes (there absent, here 7)"),
    ({"limits": {"seconds": 3, "gap": 0.5}}, 'limits.gap (there {"share": 0.5}, here 0.5)'),
    ({"limits": None}, 'limits (there {"gap": {"share": 0.5}, "seconds": 3}, here absent)'),
    ({"faces": 1}, "faces (there true, here 1)"),
    (
        {"encoders": ({"name": "a", "width": 9}, {"name": "c", "width": 8})},
        'encoders[0].width (there 8, here 9), encoders[1].name (there "b", here "c")',
    ),
    ({"encoders": [], "faces": False}, f"encoders (there {ENCODERS}, here []), faces (there true, here false)"),
    ({"encoders": ["x" * 500]}, f'encoders (there {ENCODERS}, here ["{"x" * 78}...)'),
    (
        {f"n{i}": i for i in range(9)},
        ", ".join(f"n{i} (there absent, here {i})" for i in range(5)) + " and 4 more",
    ),
]


@pytest.mark.parametrize(("change", "told"), DIFFERENCES)
def test_what_differs_is_named_as_deep_as_it_lies(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    """And what `take` refuses is another job to its tasks too."""
    JOB.acquire(tmp_path, NESTED)
    with pytest.raises(ValueError) as caught:
        JOB.acquire(tmp_path, NESTED | change)
    assert str(caught.value) == (
        f"{tmp_path} holds a job that differs in {told}; resume it with the options and the version that it was "
        "started with, or choose another folder, or replace it with --overwrite"
    )
    with pytest.raises(OwnershipLostError):
        JOB.check(tmp_path, digest_of(NESTED | change))


@pytest.mark.parametrize("gap", [{"share": 0.5}, {"share": 0.5, "new": None}])
def test_what_is_gone_on_with_is_the_same_job_to_its_tasks(gap: dict[str, Any], tmp_path: Path) -> None:
    JOB.acquire(tmp_path, NESTED)
    same = {**NESTED, "limits": {"seconds": 3.0, "gap": gap}, "sound": None}
    JOB.acquire(tmp_path, same)
    JOB.check(tmp_path, digest_of(same))


def test_overwriting_removes_what_the_job_wrote_and_nothing_else(tmp_path: Path) -> None:
    JOB.acquire(tmp_path, {"seed": 1})
    (tmp_path / "reports").mkdir()
    written = ["manifest.parquet", "a.tar", "reports/a.json"]
    for name in [*written, "notes.txt", "reports/mine.txt"]:
        (tmp_path / name).touch()
    JOB.acquire(tmp_path, {"seed": 2}, overwrite=True)
    assert not any((tmp_path / name).exists() for name in written)
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "reports/mine.txt").exists()
    assert json.loads((tmp_path / "job.json").read_text()) == {"seed": 2}


def test_a_kill_while_it_is_replaced_does_not_lock_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    JOB.acquire(tmp_path, {"seed": 1})
    for name in ("a.tar", "notes.txt"):
        (tmp_path / name).touch()

    def killed(path: Path, content: object, indent: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shards.output_folder.write_json", killed)
        JOB.acquire(tmp_path, {"seed": 2}, overwrite=True)
    assert not (tmp_path / "a.tar").exists()
    with pytest.raises(ValueError, match="differs in seed"):
        JOB.acquire(tmp_path, {"seed": 2})
    JOB.acquire(tmp_path, {"seed": 2}, overwrite=True)
    JOB.acquire(tmp_path, {"seed": 2})


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_record_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"job.json cannot be read .*--overwrite"):
        JOB.acquire(tmp_path, {"seed": 1})
    JOB.acquire(tmp_path, {"seed": 1}, overwrite=True)
    JOB.acquire(tmp_path, {"seed": 1})


def test_folders_of_somebody_else_are_never_taken(tmp_path: Path) -> None:
    for name in (".job.json.00000000000000ff.partial", ".room-0123abcd", ".lock"):  # what was killed leaves it free
        (tmp_path / name).touch()
    JOB.acquire(tmp_path, {"seed": 1})
    (tmp_path / "job.json").unlink()
    (tmp_path / "a.tar").touch()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is not empty and has no job in it"):
            JOB.acquire(tmp_path, {"seed": 1}, overwrite)
    (tmp_path / "a.tar").unlink()
    JOB.acquire(tmp_path, {"seed": 1})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        JOB.acquire(tmp_path / "file", {"seed": 1})


def test_what_another_job_has_taken_over_is_told(tmp_path: Path) -> None:
    """A task that outlives its job must not write into what the folder has become since."""
    JOB.acquire(tmp_path, {"seed": 1, "size": (2, 3)})
    JOB.check(tmp_path, digest_of({"size": (2, 3), "seed": 1}))
    JOB.acquire(tmp_path, {"seed": 2}, overwrite=True)
    JOB.check(tmp_path, digest_of({"seed": 2}))
    with pytest.raises(OwnershipLostError, match=r"belongs to another job by now, .*writes nothing more there"):
        JOB.check(tmp_path, digest_of({"seed": 1, "size": [2, 3]}))
    (tmp_path / "job.json").unlink()
    with pytest.raises(OwnershipLostError, match="can't be read any more"):
        JOB.check(tmp_path, digest_of({"seed": 2}))


def test_a_lock_makes_a_folder_nobodys(tmp_path: Path) -> None:
    with folder_held(tmp_path / "out", "a job is run here", "another"):
        JOB.acquire(tmp_path / "out", {"seed": 1})
        with pytest.raises(FolderInUseError, match=r"a job is run here by process \d+ on .*; wait"), held(tmp_path):
            pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["job.json"]


def held(folder: Path) -> AbstractContextManager[None]:
    return folder_held(folder / "out", "a job is run here", "another")
