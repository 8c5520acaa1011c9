"""Views against plain boolean arrays; splits against their rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.commands import COMMANDS
from shards.errors import ShardError
from shards.format.manifest import Manifest
from shards.format.schema import Column, Label, Sample, Schema
from shards.format.writer import ShardWriter
from shards.planning import split
from shards.planning.view import IndexValues, View
from shards.reading.reader import Reader

SPEAKERS = ("ann", "bob", "cho", "dee", "eva")
ROWS = 103


def write(folder: Path, rows: int = ROWS, grouped: bool = True, scale: float = 1.0) -> Manifest:
    """Some 8 shards; row i holds the number i, and belongs to a speaker (every 20th row to none)."""
    schema = Schema(
        columns=(Column("x", 2),), labels=(Label("mood", "class", ("up", "down")),), grouped=grouped, meta=("part",)
    )
    with ShardWriter(folder, schema, max_shard_bytes=40_960) as writer:
        for i in range(rows):
            writer.append(
                Sample(
                    key=f"k{i}",
                    columns={"x": np.array([i, scale])},
                    labels={"mood": None if i % 10 == 0 else ("up", "down")[i % 2]},
                    group=SPEAKERS[i * i % 5] if grouped and i % 20 else None,
                    meta={"part": ("one", "two, too", None)[i % 3]},
                )
            )
    assert writer.manifest is not None
    assert len(writer.manifest) > 3
    return writer.manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("views") / "data")


def selected(view: View) -> np.ndarray:
    """Global rows of a view."""
    before = view.manifest.rows_before
    parts = [view.indices(shard) + before[shard] for shard in range(len(view.manifest))]
    return np.concatenate(parts)


@given(st.randoms(use_true_random=False), st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_a_view_is_its_mask(manifest: Manifest, random: object, share: float) -> None:
    mask = np.array([random.random() < share for _ in range(ROWS)])  # type: ignore[attr-defined]
    view = View.where(manifest, mask)
    assert np.array_equal(selected(view), np.flatnonzero(mask))
    assert view.rows == mask.sum() and view.counts.sum() == view.rows
    by_shard = View.where(manifest, lambda shard: mask[manifest.rows_before[shard] : manifest.rows_before[shard + 1]])
    assert by_shard.digest == view.digest
    view.save()
    again = View.open(manifest, "selection")
    assert np.array_equal(selected(again), np.flatnonzero(mask))
    assert again.digest == view.digest and again.rule == {"by": "mask"} and np.array_equal(again.counts, view.counts)


def test_digest_is_of_the_selection(manifest: Manifest, tmp_path: Path) -> None:
    mask = np.arange(ROWS) % 3 == 0
    one, two = View.where(manifest, mask, "a"), View.where(manifest, mask, "b", {"by": "else"})
    other = View.where(manifest, ~mask)
    assert one.digest == two.digest != other.digest
    assert View.where(manifest, np.ones(ROWS, bool)).digest == View.everything(manifest).digest
    assert View.everything(write(tmp_path / "d", scale=2.0)).digest != View.everything(manifest).digest


def test_a_reader_reads_a_view(manifest: Manifest) -> None:
    view = View.where(manifest, np.arange(ROWS) % 7 == 3)
    reader = Reader(manifest, view)
    rows = reader.read_ranges([(shard, 0, int(view.counts[shard])) for shard in range(len(manifest))])
    assert rows.row.tolist() == list(range(3, ROWS, 7))
    assert rows.features["x"][:, 0].tolist() == rows.row.tolist()


def test_saved_everything_and_nothing(manifest: Manifest) -> None:
    for name, mask in (("all", np.ones(ROWS, bool)), ("none", np.zeros(ROWS, bool))):
        View.where(manifest, mask, name).save()
        assert View.open(manifest, name).rows == mask.sum()
        assert np.array_equal(selected(View.open(manifest, name)), np.flatnonzero(mask))
    assert View.open(manifest, "everything").rows == ROWS
    assert {"all", "none"} <= set(View.names(manifest))


def test_a_stale_view_is_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "data")
    path = View.where(old, np.ones(ROWS, bool), "train").save()
    kept = path.read_bytes()
    new = write(tmp_path / "other", scale=3.0)
    target = Path(new.folder) / "views" / path.name
    target.parent.mkdir()
    target.write_bytes(kept)
    with pytest.raises(ShardError, match=r"stale.*conclugen split") as caught:
        View.open(new, "train")
    assert old.digest in str(caught.value) and new.digest in str(caught.value)


def test_damaged_views_are_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path / "data")
    path = View.where(manifest, np.arange(ROWS) % 2 == 0, "even").save()
    good = path.read_bytes()
    for position in range(0, len(good), 41):
        bad = bytearray(good)
        bad[position] ^= 0x55
        path.write_bytes(bytes(bad))
        try:
            view = View.open(manifest, "even")
        except ValueError:
            continue
        assert np.array_equal(selected(view), np.arange(0, ROWS, 2))  # a byte that carries nothing
    table = pq.read_table(path) if path.write_bytes(good) else None
    assert table is not None
    pq.write_table(table.slice(1).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ShardError, match="number of shards"):
        View.open(manifest, "even")
    last = np.packbits(np.ones(8, bool))
    with pytest.raises(ValueError, match="beyond the end"):
        View(manifest, "x", np.tile(last, int((-(-manifest.counts // 8)).sum())), {})


def test_messages_of_views(manifest: Manifest) -> None:
    View.where(manifest, np.ones(ROWS, bool), "train").save()
    with pytest.raises(ValueError, match=r"no view 'trian'.*did you mean 'train'"):
        View.open(manifest, "trian")
    for name in ("../x", "a/b", "", ".hidden", "everything"):
        with pytest.raises(ValueError, match="view name"):
            View.where(manifest, np.ones(ROWS, bool), name)
    with pytest.raises(ValueError, match=r"expected a bool array of shape \(103,\)"):
        View.where(manifest, np.ones(ROWS))
    with pytest.raises(ValueError, match=r"the mask of shard .*bool \(1,\)"):
        View.where(manifest, lambda shard: np.ones(1, bool))
    with pytest.raises(ValueError, match=r"group 'bbo'.*did you mean 'bob'"):
        View.from_groups(manifest, "x", ["bbo"])


def test_from_groups_and_index_values(manifest: Manifest) -> None:
    expected = np.array([i for i in range(ROWS) if i % 20 and SPEAKERS[i * i % 5] in ("ann", "eva")])
    view = View.from_groups(manifest, "pair", ["eva", "ann"])
    assert np.array_equal(selected(view), expected)
    assert view.rule == {"by": "group", "values": ["ann", "eva"]}
    moods = IndexValues.read(manifest, "label.mood")
    assert moods.sizes == {"up": sum(i % 2 == 0 and i % 10 != 0 for i in range(ROWS)), "down": ROWS // 2}
    assert moods.missing == len(range(0, ROWS, 10))


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 200), min_size=3, max_size=40),
    st.integers(-5, 5),
    st.sampled_from([{"train": 0.8, "valid": 0.1, "test": 0.1}, {"a": 0.5, "b": 0.5}, {"a": 0.3, "b": 0.2}]),
)
@settings(deadline=None)
def test_assign_divides_no_group_and_keeps_the_shares(sizes: dict[str, int], seed: int, shares: dict) -> None:
    parts = split.assign(sizes, shares, seed)
    names = [name for part in parts.values() for name in part]
    assert len(set(names)) == len(names) and set(names) <= set(sizes)
    assert set(parts) == set(shares) and all(parts.values())
    if sum(shares.values()) > 0.999:
        assert set(names) == set(sizes)
    assert parts == split.assign(dict(reversed(sizes.items())), shares, seed)
    # A part may miss its share by about one large group, never by more.
    total, largest = sum(sizes.values()), max(sizes.values())
    for part, members in parts.items():
        assert abs(sum(sizes[name] for name in members) - shares[part] * total) <= 2 * largest


def test_assign_of_equal_groups_is_exact_and_depends_on_the_seed() -> None:
    sizes = {f"s{i}": 60 for i in range(20)}
    results = [split.assign(sizes, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed) for seed in range(5)]
    assert all([len(part) for part in parts.values()] == [16, 2, 2] for parts in results)
    assert len({parts["test"] for parts in results}) > 1


def test_assign_messages() -> None:
    nan = float("nan")
    for shares in ({}, {"a": 0.0}, {"a": -1, "b": 1}, {"a": 0.6, "b": 0.6}, {"a": nan}, {"a": 0.5, "b": nan}):
        with pytest.raises(ValueError, match="expected positive shares"):
            split.assign({"x": 1, "y": 1}, shares, 0)
    with pytest.raises(ValueError, match="1 group"):
        split.assign({"x": 1}, {"a": 0.5, "b": 0.5}, 0)


def command(*arguments: str) -> int:
    return split.run(COMMANDS["split"].parse(arguments))


def test_split_command_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path / "data")
    folder = manifest.folder
    assert command(folder, "--parts", "train=0.6,valid=0.2,test=0.2", "--seed", "3") == 0
    out = capsys.readouterr().out
    groups = IndexValues.read(manifest, "group")
    seen: list[set[int]] = []
    for name in ("train", "valid", "test"):
        view = View.open(manifest, name)
        assert f"{view.rows} rows" in out and view.rule["seed"] == 3
        codes = set(groups.codes[selected(view)].tolist())
        assert codes and -1 not in codes
        assert all(groups.names[code] in out for code in codes)
        seen.append(codes)
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert "6 rows are in no view (6 have no group)" in out
    with pytest.raises(ValueError, match=r"has view.*train.*--overwrite"):
        command(folder, "--parts", "train=0.5,extra=0.5")
    assert "extra" not in View.names(manifest)
    assert command(folder, "--parts", "train=0.5,extra=0.5", "--replace") == 0
    assert "note: --replace is called --overwrite now" in capsys.readouterr().err


def test_split_command_by_other_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path / "data")
    folder = manifest.folder
    assert command(folder, "--by", "meta.part", "--take", "train=one") == 0
    assert np.array_equal(selected(View.open(manifest, "train")), np.arange(0, ROWS, 3))
    assert command(folder, "--by", "label.mood") == 0
    out = capsys.readouterr().out
    assert View.open(manifest, "down").rows == ROWS // 2
    assert "warning: " in out and "groups are in more than one view" in out
    listing = tmp_path / "values.txt"
    listing.write_text("two, too\n\n")
    assert command(folder, "--by", "meta.part", "--take", f"second=@{listing}", "--rest", "others") == 0
    assert np.array_equal(selected(View.open(manifest, "second")), np.arange(1, ROWS, 3))
    assert np.array_equal(selected(View.open(manifest, "others")), np.arange(0, ROWS, 3))
    assert command(folder, "--groups", "fold=ann,bob", "--rest", "rest") == 0
    assert View.open(manifest, "fold").rows + View.open(manifest, "rest").rows == ROWS - 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--parts", "train=0.7,train=0.3"), "'train' is named twice"),
        (("--parts", "train=0.7, train =0.2,test=0.1"), "'train' is named twice"),
        (("--parts", "train=0.7,test=few"), "must be a number, got 'few'"),
        (("--parts", "train=0.7,test"), "must be a number, got '0.7,test'"),
        (("--parts", "0.7"), "must be a mapping, such as name=value, got '0.7'"),
        (("--take", "train=@/nowhere.txt"), "/nowhere.txt cannot be read"),
    ],
)
def test_wrong_options_of_split(
    manifest: Manifest, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = View.names(manifest)
    assert COMMANDS["split"].main([manifest.folder, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert View.names(manifest) == before


def test_every_row_by_itself_takes_four_bytes_a_row(manifest: Manifest) -> None:
    """A billion rows are split in 4 GB; 2**31 - 1 of them are as many as that holds."""
    values = IndexValues.of_rows(manifest)
    assert values.codes.dtype == np.int32 and values.codes.tolist() == list(range(ROWS))
    assert values.names == tuple(map(str, range(ROWS))) and values.missing == 0


def test_split_refuses_leaks_and_nonsense(tmp_path: Path) -> None:
    manifest = write(tmp_path / "data")
    folder = manifest.folder
    for by in ("row", "key"):
        with pytest.raises(ValueError, match=r"both sides.*--allow-leak"):
            command(folder, "--by", by, "--parts", "a=0.5,b=0.5")
    assert command(folder, "--by", "row", "--parts", "a=0.5,b=0.5", "--allow-leak") == 0
    one, two = (set(selected(View.open(manifest, name)).tolist()) for name in "ab")
    assert not one & two and one | two == set(range(ROWS))
    for arguments, words in [
        (("--by", "gruop"), "'gruop' is unknown.*did you mean 'group'"),
        (("--groups", "a=zed"), "no row has group 'zed'"),
        (("--groups", "a=ann", "--groups", "b=ann"), "'ann' is in the views 'a' and 'b'"),
        (("--groups", "a=ann", "--groups", "a=bob"), "named twice"),
        (("--groups", "a=ann", "--parts", "a=1"), "either --parts or --take"),
        (("--rest", "a"), "--rest is what --take leaves"),
        (("--groups", "../a=ann"), "view name"),
    ]:
        before = View.names(manifest)
        with pytest.raises(ValueError, match=words):
            command(folder, *arguments)
        assert View.names(manifest) == before
    loose = write(tmp_path / "loose", grouped=False)
    assert command(loose.folder, "--by", "row", "--parts", "a=0.5,b=0.5") == 0
    with pytest.raises(ValueError, match="no row has a value in group"):
        command(loose.folder, "--parts", "a=0.5,b=0.5")
