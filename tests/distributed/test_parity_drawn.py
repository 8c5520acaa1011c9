"""World size and micro-batches change nothing, for configurations and data that nobody thought of."""

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

from conclugen import presets
from conclugen.config import RECIPES, WEIGHTINGS
from conclugen.tasks import Task, registry
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
def settings_of(draw: st.DrawFn, task: type[Task], modalities: tuple[str, ...]) -> Any:
    """A configuration of any task: each field as a recipe, or one of the task's variants, has it."""
    default = task.adapted(task.recipe(draw(st.sampled_from(RECIPES))), modalities)
    values: dict[str, Any] = {"weight": draw(st.sampled_from([1e-2, 0.5, 1.0, 3.0]))}
    for field in dataclasses.fields(default):
        varied = [variant[field.name] for variant in task.variants.values() if field.name in variant]
        small = task.tiny.get(field.name)
        if type(small) is int:  # around what makes sense for so few rows
            values[field.name] = draw(st.integers(small // 2, small + 1) | st.sampled_from([small, *varied]))
        elif varied:
            values[field.name] = draw(st.sampled_from([getattr(default, field.name), *varied]))
    if getattr(default, "modality", None) == "video_3d" and hasattr(default, "second_view") and draw(st.booleans()):
        values["second_view"] = "video_3d_again"
    try:
        return dataclasses.replace(default, **values)
    except ValueError:  # values that exclude each other
        return dataclasses.replace(default, weight=values["weight"], **task.tiny)


def _serves(configs: dict[str, Any], modalities: list[str]) -> bool:
    try:
        registry.inputs(configs, tuple(modalities))
    except ValueError:
        return False
    return True


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Any configuration that is accepted: tasks, modalities, and every option that has arithmetic behind it."""
    modalities = draw(st.lists(st.sampled_from(MODALITIES), min_size=1, max_size=4, unique=True))
    names = sorted(draw(st.sets(st.sampled_from(list(registry.registered())), min_size=1)))
    recipe = draw(st.sampled_from(["paper", "improved"]))
    options = {name: draw(settings_of(registry.get(name), tuple(reversed(modalities)))) for name in names}
    configs = {n: dataclasses.asdict(c) for n, c in options.items() if _serves({n: c}, modalities)}
    assume(configs and _serves({n: options[n] for n in configs}, modalities))
    names = list(configs)
    several = len(names) > 1
    tasks = {
        "weighting": draw(st.sampled_from(WEIGHTINGS)) if several else "static",
        "share_every": draw(st.integers(0, 3)),
        "gradients": draw(st.sampled_from(["sum", "pcgrad"])) if several else "sum",
        "divisor": draw(st.sampled_from(["active", "configured"])),
    }
    built = presets.build("conclugen", recipe, tasks={}).to_dict() | {"modalities": modalities}
    if tasks["weighting"] == "share":
        total = sum(each["weight"] for each in configs.values())
        configs = {name: {**each, "weight": each["weight"] / total} for name, each in configs.items()}
    absent = {name: None for name in registry.registered() if name not in names}
    built["tasks"] = {**built["tasks"], **tasks, **absent, **configs}
    own_views = all(registry.get(name).inputs(options[name], tuple(modalities)).views for name in names)
    built["model"] |= {
        **parity.SIZES,
        "feature_mask": draw(st.sampled_from([0.0, 0.4])) if not own_views else 0.0,
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


@settings(max_examples=6, **SETTINGS)
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
