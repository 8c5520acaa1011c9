"""World size and micro-batches change nothing, for configurations and data that nobody thought of."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from conclugen import presets
from tests.distributed import parity, ranks
from tests.distributed.pool import Pool

MODALITIES = ("video", "audio", "text", "video_3d")
SETTINGS: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Any configuration that is accepted: tasks, modalities, and every option that has arithmetic behind it."""
    modalities = draw(st.lists(st.sampled_from(MODALITIES), min_size=1, max_size=4, unique=True))
    names = draw(st.sets(st.sampled_from(["contrastive", "clustering", "reconstruction", "simclr"]), min_size=1))
    recipe = draw(st.sampled_from(["paper", "improved"]))
    if len(modalities) == 1:
        names = names - {"contrastive"} or {"reconstruction"}
    elif names == {"simclr"}:
        names = {"simclr", "clustering"}
    weight, blocks = st.sampled_from([1e-2, 0.5, 1.0, 3.0]), st.sampled_from([None, 1, 3])
    options: dict[str, dict[str, Any]] = {
        "contrastive": {
            "weight": draw(weight),
            "negatives": draw(st.sampled_from(["all", "same_group"])),
            "margin": draw(st.sampled_from([0.0, 0.001, 0.2])),
            "block_rows": draw(blocks),
            **draw(st.sampled_from([{"temperature": None}, {"temperature": 0.3, "learn_temperature": True}])),
        },
        "clustering": {
            "weight": draw(weight),
            "clusters": draw(st.integers(2, 4)),
            "queue_batches": draw(st.integers(0, 2)),
            "start_epoch": draw(st.integers(0, 1)),
            "mode": draw(st.sampled_from(["joint", "individual"])),
            "score": draw(st.sampled_from(["dot", "cosine"])),
            "kmeans_start": draw(st.sampled_from(["random", "warm"])),
            "queue": draw(st.sampled_from(["per_epoch", "rolling"])),
        },
        "reconstruction": {"weight": draw(weight), "cross_modal": len(modalities) > 1 and draw(st.booleans())},
        "simclr": {
            "weight": draw(weight),
            "modality": modalities[-1],
            "block_rows": draw(blocks),
            "second_view": "video_3d_again" if modalities[-1] == "video_3d" and draw(st.booleans()) else None,
        },
    }
    several = len(names) > 1
    tasks = {
        "weighting": draw(st.sampled_from(["static", "uncertainty", "gradnorm"])) if several else "static",
        "gradients": draw(st.sampled_from(["sum", "pcgrad"])) if several else "sum",
        "divisor": draw(st.sampled_from(["active", "configured"])),
    }
    built = presets.build("conclugen", recipe, tasks={}).to_dict() | {"modalities": modalities}
    built["tasks"] = {**built["tasks"], **tasks, **{n: options[n] if n in names else None for n in options}}
    built["model"] |= {
        **parity.SIZES,
        "feature_mask": draw(st.sampled_from([0.0, 0.4])) if list(names) != ["simclr"] else 0.0,
        "own_width_modalities": draw(st.sampled_from([[], ["audio"]])) if "audio" in modalities else [],
        "standardize": draw(st.booleans()),
    }
    return {
        **built,
        # With few rows many a bias has nothing but rounding noise for a gradient; divided by AdamW's usual 1e-8 that
        # alone has come to 2e-9 after 20 steps.
        "optimizer": {**built["optimizer"], **parity.QUICK, "eps": 1e-6},
        "global_batch": draw(st.integers(2, 13)),
        "micro_batch": draw(st.none() | st.integers(1, 5)),
        "clip_norm": draw(st.sampled_from([None, 0.05])),
        "precision": "float64",
    }


@st.composite
def data(draw: st.DrawFn, rows: int) -> list[dict[str, Any]]:
    """Batches in which modalities are missing at random, everywhere, or in a run of rows such as one rank's."""
    batches = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, rows))
        absent = (draw(st.sampled_from(MODALITIES)), start, draw(st.integers(start, rows)))
        missing = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9]))
        batches.append(ranks.make_batch(rows, draw(st.integers(0, 10**6)), missing, absent))
    return batches


def check(workers: Pool, draw: st.DataObject, steps: int) -> None:
    config = draw.draw(configurations(), label="configuration")
    batches = draw.draw(data(config["global_batch"]), label="batches")
    world = draw.draw(st.integers(2, 4), label="ranks")
    expected = parity.reference(config, batches, steps, 3)
    for found in workers.run(world, ranks.train, config, batches, steps, 3):
        parity.assert_parity(found, expected)


@settings(max_examples=15, **SETTINGS)
@given(draw=st.data())
def test_drawn_cases(workers: Pool, draw: st.DataObject) -> None:
    check(workers, draw, 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.campaign) for part in range(1, 10))])
def test_many_drawn_cases(workers: Pool, part: int) -> None:
    """Parts of 40 cases, so that they can be run one by one."""
    drawn = 0

    @seed(part)
    @settings(max_examples=40, **SETTINGS)
    @given(draw=st.data())
    def cases(draw: st.DataObject) -> None:
        nonlocal drawn
        check(workers, draw, parity.STEPS)
        drawn += 1

    cases()
    print(f"part {part}: {drawn} cases")
    assert drawn >= 40
