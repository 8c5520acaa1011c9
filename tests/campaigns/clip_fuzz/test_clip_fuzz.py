"""Damaged videos end in the feature shards or in quarantine, and hurt nobody else.

The long run, of real clips, with a table: `python -m tests.campaigns.clip_fuzz CLIPS --cases 550 --results fuzz.jsonl`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from tests.campaigns.clip_fuzz.campaign import (
    BUILD,
    EXTRACTION,
    MADE,
    DefectError,
    account,
    features_of,
    one_process,
    run_block,
)
from tests.campaigns.clip_fuzz.damage import EVERY_KIND, mp4_boxes, variant
from tests.shards.media.make_media import make_video, sine

SEED = 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [
        make_video(folder / "a.mp4", 20, sound=sine(0.8, 44_100, 1)),
        make_video(folder / "b.mpg", 20, (288, 352), codec="mpeg1video", format="mpeg"),
        make_video(folder / "c.avi", 20, codec="mpeg4"),
    ]


@pytest.fixture(scope="module")
def alone(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    one_process(sources[0].parent, folder / "clips", folder / "features", lambda: None)
    return features_of(folder / "features")


def test_a_block_of_every_kind_of_damage(sources: list[Path], alone: dict[str, bytes], tmp_path: Path) -> None:
    cases = range(3 * len(EVERY_KIND))
    jobs = partial(one_process, isolated=True)
    results = run_block(SEED, cases, sources, tmp_path / "block", jobs, alone)
    assert [result.case for result in results] == list(cases)
    outcomes = {result.outcome for result in results}
    assert {BUILD, EXTRACTION, MADE} <= outcomes
    # What was accounted for is so no more when one line of it is missing, doubled, or says nothing.
    clips, features = tmp_path / "block/clips", tmp_path / "block/features"
    names = {path.name for path in (tmp_path / "block/videos").iterdir()}
    account(clips, features, names)
    quarantine = clips / "quarantine.jsonl"
    lines = quarantine.read_text().splitlines(keepends=True)
    silent = json.dumps(json.loads(lines[0]) | {"message": ""}) + "\n"
    for wrong, message in ((lines[1:], "lost"), ([*lines, lines[0]], "twice"), ([silent, *lines[1:]], "message")):
        quarantine.write_text("".join(wrong))
        with pytest.raises(DefectError, match=message):
            account(clips, features, names)


def test_a_changed_neighbour_is_seen(sources: list[Path], alone: dict[str, bytes], tmp_path: Path) -> None:
    assert run_block(SEED, [], sources, tmp_path / "block", one_process, alone) == []
    wrong = {name: bytes(len(data)) for name, data in alone.items()}
    with pytest.raises(DefectError, match="its features differ"):
        run_block(SEED, [], sources, tmp_path / "block", one_process, wrong)


def test_variants_are_a_function_of_seed_and_number(sources: list[Path]) -> None:
    data = sources[0].read_bytes()
    for case in range(len(EVERY_KIND)):
        assert variant(SEED, case, data) == variant(SEED, case, data)
    assert len({variant(SEED, case, data) for case in range(3 * len(EVERY_KIND))}) > 2 * len(EVERY_KIND)
    kinds = {data[start + 4 : start + 8] for start, _ in mp4_boxes(data, 0, len(data))}
    assert {b"ftyp", b"moov", b"mdat", b"trak", b"stts", b"stsz"} <= kinds
    assert not list(mp4_boxes(b"\0\0\1\xba" + bytes(60), 0, 64))
