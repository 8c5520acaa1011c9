"""Commands over shards, killed before every rename: what is left is the old, the new, or refused in words; the same
command ends with what an undisturbed one makes; nothing ever takes a part for the whole."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards import Manifest, View
from shards.format import publication
from shards.format.publication import STAGING, Publication
from shards.packing.command import work_of
from shards.packing.inputs import PackOptions
from shards.planning.split import save_views
from tests.shards.small_data import make_samples, write
from tests.stops import Ended, Stops

_ROWS = 60
# The default run kills before every sixth rename.
_EVERY = pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stops]:
    with Stops(tmp_path_factory.mktemp("stops")) as server:
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 60 samples by six speakers, which make three shards and two views."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("source") / "features.npz"
    np.savez(
        path,
        video=random.normal(size=(_ROWS, 500)).astype(np.float32),
        speaker=np.array([f"s{i % 6}" for i in range(_ROWS)]),
        part=np.array(["train" if i % 6 < 4 else "test" for i in range(_ROWS)]),
    )
    return path


def packing(source: Path, out: Path, *more: str) -> list[object]:
    options = ["--column", "video", "--group", "speaker", "--meta", "part", "--view-by", "part", "--quiet"]
    return ["--source", source, "--output", out, *options, "--max-shard-mb", "0.09", *more]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def whole(stops: Stops, folder: Path) -> Ended:
    return stops.run("verify", [folder, "--quiet"])


@pytest.fixture(scope="module")
def packed(stops: Stops, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    out = tmp_path_factory.mktemp("packed") / "data"
    ended = stops.run("pack", packing(source, out))
    assert ended.status == 0, ended.error
    assert len(Manifest.open(out)) == 3 and View.names(Manifest.open(out)) == ["test", "train"]
    assert not (out / STAGING).exists() and not (out / ".lock").exists()
    return ended, out


@_EVERY
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_pack_stopped_at_any_rename(
    stops: Stops, source: Path, packed: tuple[Ended, Path], tmp_path: Path, number: signal.Signals, every: int
) -> None:
    ended, reference = packed
    finished = 0
    for place in range(ended.renames, 0, -every):
        out = tmp_path / f"{place}"
        stopped = stops.run("pack", packing(source, out), number, "rename", place)
        if number == signal.SIGKILL:
            assert stopped.status == -9
        else:
            assert stopped.status == 143 and "terminated: " in stopped.error, (place, stopped)
            told = "the same command finishes" in stopped.error or "the same command starts over" in stopped.error
            assert told and "Traceback" not in stopped.error
        if out.exists():
            assert whole(stops, out).status != 0 or content(out).keys() >= content(reference).keys()
        again = stops.run("pack", packing(source, out))
        assert again.status == 0, (place, again.error)
        assert content(out) == content(reference), place
        finished += "was stopped while it published" in again.out
    assert finished > 5 / every, "most renames are those of the publication"


@_EVERY
def test_what_pack_was_publishing_is_finished_by_whoever_comes_next(
    stops: Stops, source: Path, packed: tuple[Ended, Path], tmp_path: Path, every: int
) -> None:
    """Before, `verify --repair` called the shards that had been moved by then a whole data set, and so did `index`."""
    ended, reference = packed
    pending = 0
    for place in range(ended.renames, 0, -every):
        out = tmp_path / f"{place}"
        stops.run("pack", packing(source, out), signal.SIGKILL, "rename", place)
        if not (out / STAGING / "publish.json").is_file():
            continue
        pending += 1
        if pending % 3 == 0:
            refused = stops.run("index", [out])
            assert refused.status == 2 and "has a manifest already" in refused.error, (place, refused)
        elif pending % 3 == 1:
            split = stops.run("split", [out, "--by", "group"])
            assert split.status == 0 and "s5" in split.out, (place, split)
        else:
            repaired = stops.run("verify", [out, "--repair", "--quiet"])
            assert repaired.status == 0 and f"{_ROWS} samples in 3 shards" in repaired.out, (place, repaired)
            assert "a data set of 3 shards were being published" in repaired.out
        assert content(out).items() >= content(reference).items()
        assert not (out / STAGING).exists()
        assert whole(stops, out).status == 0
    assert pending > 5 / every


def test_shards_of_a_publication_without_a_plan_are_not_called_whole(
    stops: Stops, source: Path, packed: tuple[Ended, Path], tmp_path: Path
) -> None:
    """What version 0.1 left: some shards moved, the manifest and the others staged."""
    out = tmp_path / "data"
    shutil.copytree(packed[1], out)
    (out / STAGING).mkdir()
    for name in ("manifest.parquet", "part-000002.tar", "part-000002.index.parquet"):
        (out / name).rename(out / STAGING / name)
    for command, more in (("verify", ["--repair"]), ("index", []), ("pack", packing(source, out))):
        ended = stops.run(command, more if command == "pack" else [out, *more])
        assert ended.status == 2 and "may be a part" in ended.error, ended
    assert stops.run("pack", packing(source, out, "--overwrite")).status == 0
    assert content(out) == content(packed[1])


@pytest.mark.slow
def test_pack_over_another_data_set_leaves_the_old_or_the_new(
    stops: Stops, source: Path, packed: tuple[Ended, Path], tmp_path: Path
) -> None:
    write(tmp_path / "old", make_samples(35))
    before = content(tmp_path / "old")
    ended = stops.run("pack", packing(source, copied(tmp_path / "old", tmp_path / "whole"), "--overwrite"))
    assert ended.status == 0 and content(tmp_path / "whole") == content(packed[1])
    for place in range(1, ended.renames + 1):
        out = copied(tmp_path / "old", tmp_path / f"{place}")
        stops.run("pack", packing(source, out, "--overwrite"), signal.SIGKILL, "rename", place)
        now = {name: data for name, data in content(out).items() if not name.startswith(".")}
        if whole(stops, out).status == 0:
            assert now == before or now.keys() >= content(packed[1]).keys(), place
        again = stops.run("pack", packing(source, out, "--overwrite"))
        assert again.status == 0, (place, again.error)
        assert content(out) == content(packed[1]), place


@_EVERY
def test_split_replaces_all_views_or_none(stops: Stops, packed: tuple[Ended, Path], tmp_path: Path, every: int) -> None:
    """Views of two splits side by side would put speakers of training into the test."""
    first = [copied(packed[1], tmp_path / "first"), "--parts", "train=0.6,test=0.4", "--overwrite"]
    ended = stops.run("split", [*first, "--seed", "1"])
    assert ended.status == 0, ended.error
    other = stops.run("split", [copied(tmp_path / "first", tmp_path / "other"), *first[1:], "--seed", "2"])
    assert other.status == 0
    one, two = digests(tmp_path / "first"), digests(tmp_path / "other")
    assert one["train"] != two["train"] and one["test"] != two["test"]
    for place in range(other.renames, 0, -every):
        folder = copied(tmp_path / "first", tmp_path / f"{place}")
        stopped = stops.run("split", [folder, *first[1:], "--seed", "2"], signal.SIGKILL, "rename", place)
        assert stopped.status == -9
        try:
            found = digests(folder)
        except ValueError as error:
            assert "were being published" in str(error)
        else:
            assert found in (one, two), place
        again = stops.run("split", [folder, *first[1:], "--seed", "2"])
        assert again.status == 0, again.error
        assert content(folder) == content(tmp_path / "other"), place


@_EVERY
@pytest.mark.parametrize("beside", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_index_stopped_at_any_rename(
    stops: Stops, packed: tuple[Ended, Path], tmp_path: Path, beside: bool, every: int
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for path in packed[1].glob("*.tar"):
        shutil.copy(path, tars)

    def arguments(name: str) -> tuple[Path, list[object]]:
        if beside:
            folder = tmp_path / name
            if not folder.exists():
                shutil.copytree(tars, folder)
            return folder, [folder]
        return tmp_path / name, [tars, "--output", tmp_path / name]

    reference, line = arguments("reference")
    ended = stops.run("index", line)
    assert ended.status == 0, ended.error
    for place in range(ended.renames, 0, -every):
        folder, line = arguments(f"{place}")
        assert stops.run("index", line, signal.SIGKILL, "rename", place).status == -9
        again = stops.run("index", line)
        assert again.status == 0, (place, again.error)
        digest = Manifest.open(reference).digest
        assert Manifest.open(folder).digest == digest and content(folder).keys() == content(reference).keys()


def test_pack_into_its_own_source_knows_its_work_again(
    stops: Stops, packed: tuple[Ended, Path], source: Path, tmp_path: Path
) -> None:
    """What lies in the output is no part of the work, wherever the output is; a file of the source always is."""
    with np.load(source) as arrays:
        kept = dict(arrays)
    for name, below in (("around", "shards"), ("same", ".")):
        folder = tmp_path / name
        folder.mkdir()
        for column, values in kept.items():
            np.save(folder / f"{column}.npy", values)
        out = folder / below
        stopped = stops.run("pack", packing(folder, out), signal.SIGKILL, "rename", packed[0].renames - 2)
        assert stopped.status == -9 and (out / STAGING / "publish.json").is_file(), stopped
        again = stops.run("pack", packing(folder, out))
        assert again.status == 0 and "was stopped while it published" in again.out, (name, again)
        assert Manifest.open(out).digest == Manifest.open(packed[1]).digest

    options = PackOptions(folder, folder, {"video": "video"})
    before = work_of(options)
    (folder / "notes.txt").touch()
    assert work_of(options) != before
    assert work_of(PackOptions(source, source, {"video": "video"}))  # refused later, in words


def test_folders_and_files_that_stand_in_the_way(tmp_path: Path) -> None:
    """Nothing of what is no shard is removed, and nothing is begun that could not be finished."""
    folder = tmp_path / "data"
    old = write(folder, make_samples(20))
    (folder / "raw.tar").mkdir()
    (folder / "raw.tar" / "kept").touch()
    new = write(folder, make_samples(30), overwrite=True)
    assert Manifest.open(folder).digest == new.digest != old.digest
    assert (folder / "raw.tar" / "kept").exists()

    (folder / "views").touch()
    with pytest.raises(NotADirectoryError, match=r"Not a directory: .*views"):
        save_views(new, [View.where(new, np.arange(30) < 9, "train")])
    (folder / "views").unlink()
    (folder / "part-000000.tar").rename(folder / "kept")
    (folder / "part-000000.tar").mkdir()
    with pytest.raises(IsADirectoryError, match=r"part-000000\.tar"):
        write(folder, make_samples(10), overwrite=True)
    (folder / "part-000000.tar").rmdir()
    (folder / "kept").rename(folder / "part-000000.tar")
    assert Manifest.open(folder).digest == new.digest and publication.pending(folder) is None


@pytest.mark.parametrize("committed", [False, True])
def test_views_behind_a_link_are_left_alone(tmp_path: Path, committed: bool) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train.parquet").write_bytes(b"somebody's")
    manifest = write(folder, make_samples(20))
    view = View.where(manifest, np.arange(20) < 9, "train")
    if committed:  # and the link is put there before anybody finishes
        view.save(publication.discard(folder))
        publication.commit(folder, Publication(("views/train.parquet",), replaces=True))
    (folder / "views").symlink_to(elsewhere)
    told = r"views: is a link, and views are written in the data set's own folder; put a folder there"
    for writes in (
        lambda: save_views(manifest, [view], overwrite=True),
        lambda: write(folder, make_samples(5), overwrite=True),
        view.save,
    ):
        with pytest.raises(ValueError, match=told):
            writes()
    assert content(elsewhere) == {"train.parquet": b"somebody's"}
    (folder / "views").unlink()
    if committed:
        publication.finish(folder)
    else:
        save_views(manifest, [view])
    assert View.open(manifest, "train").digest == view.digest


def test_every_name_that_a_view_may_have_is_published(tmp_path: Path) -> None:
    manifest = write(tmp_path, make_samples(20))
    names = ["a..b", "a.", "0+-_", "x" * 100]
    save_views(manifest, [View.where(manifest, np.arange(20) < n, name) for n, name in enumerate(names)])
    assert [View.open(manifest, name).rows for name in names] == [0, 1, 2, 3]
    for name in ("../x.tar", "views/../x.tar", "views/.x.parquet", "/x.tar", "views/a/b.parquet", "x.txt"):
        with pytest.raises(ValueError, match="it names"):
            publication.commit(tmp_path, Publication((name,), replaces=False))
    assert not publication.pending(tmp_path)


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("sync_file", "nothing was published; the same command starts over"),
        ("_remove_others", "publishing a data set of 3 shards; the same command finishes that"),
    ],
)
def test_what_a_stop_while_publishing_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, told: str
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publication, at, stopped)
    with pytest.raises(KeyboardInterrupt) as stop:
        write(tmp_path, make_samples(20))
    assert stop.value.__notes__ == [told]
    monkeypatch.undo()
    finished = publication.finish(tmp_path)
    assert (finished is not None) == ("finishes" in told)
    assert (tmp_path / "manifest.parquet").exists() == (finished is not None) and not (tmp_path / STAGING).exists()


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def digests(folder: Path) -> dict[str, str]:
    manifest = Manifest.open(folder)
    return {name: View.open(manifest, name).digest for name in ("train", "test")}
