"""Damaged data sets are read exactly, refused or quarantined by name; never anything else.

The long run, with a table: `python -m tests.campaigns.shard_fuzz --cases 2000 --seed 0 --results fuzz.jsonl`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import Manifest, ManifestError, Reader, ShardError, View
from shards.format.index import read_table
from shards.format.parquet import read_parquet
from tests.campaigns.shard_fuzz.bombs import bomb, zeros
from tests.campaigns.shard_fuzz.corruptions import KINDS, Damage
from tests.campaigns.shard_fuzz.judge import DefectError, bounded, judge, read_everything
from tests.campaigns.shard_fuzz.runner import OUTCOMES, plan_case, run_case
from tests.campaigns.shard_fuzz.sealed import Lie
from tests.campaigns.shard_fuzz.targets import Target, targets

SEED = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


def place(folder: Path, target: Target, damage: Damage | None = None) -> Path:
    for name, data in {**target.files, **(damage.files if damage else {})}.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "rounds", [range(1), pytest.param(range(1, 8), marks=pytest.mark.slow)], ids=["one", "seven more"]
)
@pytest.mark.parametrize("number", range(len(KINDS)), ids=list(KINDS))
def test_a_kind_of_damage(made: list[Target], tmp_path: Path, number: int, rounds: range) -> None:
    for i in rounds:
        result = run_case(SEED, number + i * len(KINDS), made, tmp_path / "case", repair=i < 2)
        assert result.outcome in OUTCOMES, result


def test_whole_data_sets_are_read_whole(made: list[Target], tmp_path: Path) -> None:
    for target in made:
        reading = read_everything(place(tmp_path / target.name, target), target)
        assert reading.exact == set(target.values) and reading.outcome == "exact"


def test_the_oracle_sees_a_wrong_value_and_a_lost_sample(made: list[Target], tmp_path: Path) -> None:
    """Without this no case could fail: one number differs in the last bit, or one sample is not in the archive."""
    for target in made:
        folder = place(tmp_path / target.name, target)
        key, other = list(target.values)[:2]
        values = target.values[key]
        name, x = next((name, x) for name, x in values.features.items() if x is not None)
        changed = x.copy()
        changed[-1] = changed[-1] + changed[-1] * 1e-7 if x.itemsize == 8 else changed[-1] * (1 + 2e-7)
        wrong = type(values)({**values.features, name: changed}, values.labels, values.group)
        with pytest.raises(DefectError, match=f"WRONG VALUE: {key}"):
            read_everything(folder, Target(**{**vars(target), "values": {**target.values, key: wrong}}))
        more = {**target.values, "lost": target.values[other]}
        with pytest.raises(DefectError, match="lost in silence"):
            read_everything(folder, Target(**{**vars(target), "values": more}))
        assert judge(folder, target, set()) == "exact"


def test_cases_are_a_function_of_seed_and_number(made: list[Target]) -> None:
    for case in range(len(KINDS)):
        one, two = (plan_case(SEED, case, made)[2] for _ in range(2))
        assert (one == two and one != plan_case(SEED + 1, case, made)[2]) or one.files == two.files


@pytest.mark.parametrize(
    "table", [lambda: bomb(4000, 1 << 18), lambda: zeros(50_000_000)], ids=["repeated string", "run of numbers"]
)
def test_tables_that_would_fill_the_memory_are_refused(
    made: list[Target], tmp_path: Path, table: Callable[[], bytes]
) -> None:
    data = table()
    assert len(data) < 500_000
    with bounded(60, 1 << 29), pytest.raises(ValueError, match=r"decode to"):
        read_parquet(data, limit=1 << 24)
    with bounded(60, 1 << 30), pytest.raises(ShardError, match=r"'t7'.*index cannot be read.*decode to"):
        read_table("t7", data)
    folder = place(tmp_path, made[0])
    (folder / "views" / "some.parquet").write_bytes(data)
    with bounded(60, 1 << 30), pytest.raises(ShardError, match=r"views/some\.parquet.*decode to"):
        View.open(Manifest.open(folder), "some")
    (folder / "manifest.parquet").write_bytes(data)
    with bounded(60, 1 << 30), pytest.raises(ManifestError, match=r"manifest\.parquet.*decode to"):
        Manifest.open(folder)


def test_a_table_read_in_parts_is_the_same_table() -> None:
    sink = io.BytesIO()
    texts = ["long " * 200 + str(i % 7) for i in range(3000)]
    table = pa.table({"key": [f"k{i}" for i in range(3000)], "text": texts})
    pq.write_table(table, sink, use_dictionary=["text"], write_page_checksum=True)
    data = sink.getvalue()
    whole = pq.ParquetFile(io.BytesIO(data)).read()
    assert read_parquet(data, limit=whole.nbytes + 1000).equals(whole)
    assert read_parquet(data, ["key"], limit=whole.nbytes + 1000).equals(whole.select(["key"]))
    with pytest.raises(ValueError, match="decode to more"):
        read_parquet(data, limit=whole.nbytes // 2)


@pytest.mark.parametrize("change", ["count", "width", "width everywhere"])
def test_no_memory_is_taken_for_what_a_manifest_only_claims(made: list[Target], tmp_path: Path, change: str) -> None:
    lie = Lie(made[1])
    shard = made[1].shards[0]
    if change == "count":
        lie.row(shard).update(count=10**9, bytes=10**13)
    for description in (lie.description, *(lie.descriptions.values() if change == "width everywhere" else ())):
        if change != "count":
            description["schema"]["columns"][0]["width"] = 1 << 27
    folder = place(tmp_path, made[1], lie.seal(change, follow=False))
    with bounded(60, 1 << 29), pytest.raises(ShardError, match=shard):
        reader = Reader(Manifest.open(folder))
        reader.read(0, 0, int(reader.counts[0]))
