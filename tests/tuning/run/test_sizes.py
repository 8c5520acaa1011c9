"""The sizes that `run` chooses: worked out by hand at four numbers of rows, and their bounds everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclugen import presets
from shards.planning.split import assign
from tuning.run.sizes import Parts, Sizes, clusters_shown, fractions, modalities, parts, sizes


@pytest.mark.parametrize(
    ("rows", "gpu", "expected"),
    [
        # batch, representation, projection, hidden, clusters, queue, epochs
        (26, False, Sizes(16, 64, 32, 64, 4, 1, 60)),
        (200, False, Sizes(32, 128, 32, 128, 8, 6, 50)),
        (2_000, False, Sizes(256, 512, 128, 512, 32, 7, 43)),
        (100_000, False, Sizes(1024, 1024, 256, 1024, 32, 8, 20)),
        (100_000, True, Sizes(4096, 4096, 512, 1024, 32, 8, 20)),
        (8, False, Sizes(8, 64, 32, 64, 4, 1, 60)),
    ],
)
def test_the_rules_by_hand(rows: int, gpu: bool, expected: Sizes) -> None:
    assert sizes(rows, gpu) == expected


@given(rows=st.integers(8, 10**9), gpu=st.booleans())
def test_every_choice_can_be_trained(rows: int, gpu: bool) -> None:
    chosen = sizes(rows, gpu)
    assert 8 <= chosen.batch <= rows and 64 <= chosen.representation <= 4096
    assert chosen.projection <= chosen.representation and chosen.queue * chosen.batch <= rows
    assert 2 <= chosen.clusters <= 32 and 20 <= chosen.epochs <= 60
    assert gpu or (chosen.batch <= 1024 and chosen.representation <= 1024)
    presets.build(
        "conclugen",
        global_batch=chosen.batch,
        epochs=chosen.epochs,
        model={"representation_dim": chosen.representation, "projection_dim": chosen.projection},
        tasks={"clustering": {"clusters": chosen.clusters, "queue_batches": chosen.queue}},
    )


def test_what_is_given_stays_and_the_rest_follows_it() -> None:
    chosen = sizes(2_000, batch=500, representation=96)
    assert (chosen.batch, chosen.representation, chosen.projection, chosen.queue, chosen.epochs) == (500, 96, 32, 4, 60)
    with pytest.raises(ValueError, match="7 rows are too few to learn from; at least 8"):
        sizes(7)


def test_modalities_that_hardly_any_row_has_are_left_out() -> None:
    assert modalities({"video": 100, "audio": 5, "text": 4}, 100) == (["video", "audio"], {"text": 4})
    assert modalities({"video": 2, "audio": 1}, 20) == (["video"], {"audio": 1})


@pytest.mark.parametrize(
    ("rows", "groups", "labelled", "by", "views"),
    [
        (200, 16, True, "group", ["train", "valid", "test"]),
        (200, 5, True, "group", ["train", "test"]),
        (200, 2, True, "row", ["train", "valid", "test"]),
        (26, 0, True, "row", ["train", "valid", "test"]),
        (200, 16, False, "group", ["train", "valid"]),
        (200, 0, False, "row", ["train", "valid"]),
        (19, 5, False, "row", None),
        (19, 5, True, "row", None),
        (20, 5, True, "group", ["train", "test"]),
    ],
)
def test_speakers_stay_on_one_side_where_there_are_enough(
    rows: int, groups: int, labelled: bool, by: str, views: list[str] | None
) -> None:
    chosen: Parts = parts(rows, groups, labelled)
    assert (chosen.by, None if chosen.shares is None else list(chosen.shares)) == (by, views)
    assert chosen.shares is None or sum(chosen.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("groups", range(14, 60))
def test_where_there_are_enough_speakers_six_are_tested_on(groups: int) -> None:
    """Of five no test over signs gives a p below 2 / 2^5; six stay to learn from."""
    shares = parts(10 * groups, groups, True).shares
    assert shares is not None and sum(shares.values()) == pytest.approx(1)
    sizes_of_groups = {f"s{i}": 10 for i in range(groups)}
    for seed in range(5):
        chosen = assign(sizes_of_groups, shares, seed)
        assert len(chosen["test"]) >= 6 and len(chosen["train"]) >= 6 and len(chosen["valid"]) >= 1
    assert groups < 26 or shares == pytest.approx({"train": 0.6, "valid": 0.15, "test": 0.25})


def test_few_labels_are_not_divided_further() -> None:
    assert fractions(99, 2) == (1.0,) and fractions(100, 2) == (0.1, 1.0) and fractions(100, 20) == (1.0,)
    assert fractions(999, 6) == (0.1, 1.0) and fractions(1000, 6) == (0.03, 0.1, 1.0)
    assert list(clusters_shown(26)) == [2, 3] and list(clusters_shown(1000)) == list(range(2, 13))
