"""The search space: what is drawn depends on what it means something for, and spaces that can't work are refused."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conclugen import PretrainConfig
from conclugen.common.options import save
from conclugen.config import WEIGHTINGS
from ray_jobs.pretrain import COMMAND as PRETRAIN
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from tuning.sweep.__main__ import COMMAND
from tuning.sweep.search import RandomSearch, grid
from tuning.sweep.space import SPACES, Range, Space, Weights, laptop, published, subsets

WIDTHS = {"video": 6, "audio": 5, "text": 4}


def draws(space: Space, count: int = 200) -> list[dict[str, Any]]:
    search = RandomSearch(space, seed=3)
    return [choices for n in range(count) if (choices := search.ask(n, 0)) is not None]


def test_the_published_preset_holds_the_published_ranges() -> None:
    space = published()
    assert space.clusters == (2, 4, 8, 32, 64, 128)
    assert space.queue_batches == (2, 4, 8, 16, 32, 64, 128)
    assert space.start_epoch == (0, 3, 6, 9, 12, 15)
    assert space.representation_dim == (1024, 2048, 4096)
    assert space.projection_dim == space.reconstruction_hidden_dim == (512, 768, 1024, 1536)
    assert {(r.low, r.high, r.log) for r in vars(space.weights).values()} == {(1e-4, 1.1, True)}
    assert (space.lr.low, space.lr.high) == (space.weight_decay.low, space.weight_decay.high) == (1e-5, 1e-3)


@pytest.mark.parametrize("name", SPACES)
def test_what_is_drawn_is_what_the_tasks_have_a_use_for(name: str) -> None:
    space = dataclasses.replace(SPACES[name](), modalities=("subsets",), recipe=("paper", "improved")).resolve(WIDTHS)
    seen = set()
    for choices in draws(space):
        tasks, modalities = choices["tasks"].split("+"), choices["modalities"].split("+")
        seen.add((choices["tasks"], len(modalities) > 1))
        weights = {key.split(".")[1] for key in choices if key.endswith(".weight")}
        assert weights == (set(tasks) if len(tasks) > 1 else set())
        assert ("model.reconstruction_hidden_dim" in choices) == ("reconstruction" in tasks)
        assert ("model.projection_dim" in choices) == bool({"contrastive", "clustering"} & set(tasks))
        for key in ("clusters", "queue_batches", "start_epoch", "mode"):
            assert (f"tasks.clustering.{key}" in choices) == ("clustering" in tasks)
        wanted = "contrastive" in tasks and choices["recipe"] == "improved"
        assert ("tasks.contrastive.temperature" in choices) == wanted
        assert len(modalities) > 1 or "contrastive" not in tasks
        config = space.config(choices)
        assert list(config.tasks.active) == tasks
        assert config.modalities == tuple(modalities)
        assert config.optimizer.lr == choices["optimizer.lr"]
        for task, active in config.tasks.active.items():
            if f"tasks.{task}.weight" in choices:
                assert active.weight == choices[f"tasks.{task}.weight"]
    assert len({tasks for tasks, several in seen if several}) == 7
    assert {tasks for tasks, several in seen if not several} == {
        "clustering",
        "reconstruction",
        "clustering+reconstruction",
    }


def test_weights_are_drawn_only_where_nothing_learns_them() -> None:
    space = dataclasses.replace(
        laptop(),
        tasks=("contrastive", "contrastive+reconstruction"),
        weighting=WEIGHTINGS,
        gradients=("sum", "pcgrad"),
    ).resolve(WIDTHS)
    seen = set()
    for choices in draws(space):
        config = space.config(choices)
        several = "+" in choices["tasks"]
        assert ("tasks.weighting" in choices) == ("tasks.gradients" in choices) == several
        weighed = several and choices["tasks.weighting"] in ("static", "share")
        assert any(name.endswith(".weight") for name in choices) == weighed
        assert config.tasks.weighting == choices.get("tasks.weighting", "static")
        assert config.tasks.gradients == choices.get("tasks.gradients", "sum")
        seen.add((config.tasks.weighting, config.tasks.gradients))
        if config.tasks.weighting == "share":
            assert sum(task.weight for task in config.tasks.active.values()) == pytest.approx(1, abs=1e-12)
    assert len(seen) == 10


def test_modalities_stand_in_the_order_of_the_presets_whatever_the_data_lists_first() -> None:
    widths = {"audio": 5, "gaze": 2, "text": 4, "video": 6}
    space = dataclasses.replace(laptop(), modalities=("all", "text+video", "gaze+audio")).resolve(widths)
    assert space.modalities == ("video+audio+text+gaze", "video+text", "audio+gaze")


def test_weights_are_log_uniform() -> None:
    """Kolmogorov's distance of 2000 draws from the uniform distribution over the exponents: 1.36 / sqrt(n) at 5 %."""
    space = dataclasses.replace(laptop(), tasks=("contrastive+reconstruction",)).resolve(WIDTHS)
    within = space.weights.contrastive
    drawn = sorted(c["tasks.contrastive.weight"] for c in draws(space, 2000))
    place = [math.log(w / within.low) / math.log(within.high / within.low) for w in drawn]
    assert max(abs(p - (i + 0.5) / 2000) for i, p in enumerate(place)) < 1.5 / math.sqrt(2000)


def test_any_draw_survives_the_way_through_yaml_to_the_pretraining_job(tmp_path: Path) -> None:
    modalities = ("video+audio", "audio+text", "all")
    space = dataclasses.replace(laptop(), modalities=modalities, recipe=("paper", "improved")).resolve(WIDTHS)
    for number, choices in enumerate(draws(space, 40)):
        config = space.config(choices)
        job = PretrainJob(config, DataConfig(folder=str(tmp_path)), RunConfig(name="best"))
        path = tmp_path / f"{number}.yaml"
        save(job, path)
        assert PRETRAIN.parse(["--config", str(path)]).pretrain == config


def test_the_grid_is_the_product_of_what_is_open() -> None:
    space = dataclasses.replace(
        laptop(),
        tasks=("reconstruction", "clustering+reconstruction"),
        weights=Weights(clustering=Range(0.1, 1.0, points=2), reconstruction=Range(1.0, 1.0)),
        representation_dim=(64, 128),
        projection_dim=(32,),
        reconstruction_hidden_dim=(64,),
        clusters=(8, 16, 32),
        queue_batches=(0,),
        start_epoch=(0,),
        lr=Range(1e-3, 1e-1, points=3),
        weight_decay=Range(1e-4, 1e-4),
    ).resolve(WIDTHS)
    points = list(grid(space))
    alone = itertools.product((64, 128), (1e-3, 1e-2, 1e-1))
    both = itertools.product((0.1, 1.0), (64, 128), (8, 16, 32), (1e-3, 1e-2, 1e-1))
    expected = {("reconstruction", r, lr) for r, lr in alone} | {
        ("clustering+reconstruction", w, r, k, lr) for w, r, k, lr in both
    }
    found = set()
    for point in points:
        parts = [point["tasks"]]
        if "clustering" in point["tasks"]:
            parts += [point["tasks.clustering.weight"], point["model.representation_dim"]]
            parts += [point["tasks.clustering.clusters"], round(point["optimizer.lr"], 10)]
        else:
            parts += [point["model.representation_dim"], round(point["optimizer.lr"], 10)]
        found.add(tuple(parts))
    assert found == expected and len(points) == len(expected) == 42
    with pytest.raises(ValueError, match=r"more than 10,000 points.*narrow the space"):
        list(grid(laptop().resolve(WIDTHS)))


def test_range_grids_keep_their_ends() -> None:
    assert Range(1.0, 100.0, points=3).grid == pytest.approx((1, 10, 100))
    assert Range(0.0, 1.0, log=False, points=5).grid == pytest.approx(np.linspace(0, 1, 5))
    assert Range(0.3, 0.3).grid == (0.3,)
    assert Range(1.0, 100.0, points=1).grid == pytest.approx((10,))


def test_subsets_by_their_own_definition() -> None:
    letters = ("a", "b", "c", "d")
    by_bits = {"+".join(x for i, x in enumerate(letters) if bits >> i & 1) for bits in range(1, 16)}
    assert set(subsets(letters)) == by_bits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, r"space.tasks.*at least one option: a space without one has no trial"),
        ({"tasks": ("contrastiv",)}, r"'contrastiv' \(did you mean 'contrastive'\?\)"),
        ({"tasks": ("contrastive+contrastive",)}, r"each name once"),
        ({"clusters": (8, 8)}, r"space.clusters.*options that differ"),
        ({"epochs": 2}, r"space.start_epoch: 2 is not before the end.*at least 3 epochs"),
        ({"recipe": ("papr",)}, r"did you mean 'paper'"),
        ({"weighting": ("learnt",)}, r"space.weighting: unknown value 'learnt'"),
        ({"fixed": {"epochs": 3}}, r"'epochs' has a field of its own: give --space.epochs"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(laptop(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ("video+adio",)}, r"'adio' \(did you mean 'audio'\?\)"),
        ({"modalities": ("video", "text"), "tasks": ("contrastive",)}, r"no trial is possible.*the contrastive task"),
        ({"representation_dim": (64, 0)}, r"representation_dim: found 0"),
        ({"clusters": (1, 8)}, r"tasks.clustering.clusters: found 1, expected 2 or more"),
        ({"temperature": Range(0.001, 0.5)}, r"tasks.contrastive.temperature: found 0.001"),
        ({"fixed": {"optimizer.warmup": 3}}, r"unknown field 'optimizer.warmup'"),
        ({"fixed": {"optimizer.lr": 1e-3}}, r"'optimizer.lr' is searched as well"),
        ({"fixed": {"tasks.simclr.mask": 0.3}}, r"simclr"),
        (
            {"tasks": ("reconstruction",), "fixed": {"tasks.contrastive.margin": 0.1}},
            r"no configuration of this space has a field 'tasks.contrastive.margin'",
        ),
    ],
)
def test_what_the_pretrainer_refuses_is_refused_before_a_trial(changes: dict[str, Any], message: str) -> None:
    space = dataclasses.replace(laptop(), **changes)
    with pytest.raises(ValueError, match=message):
        space.resolve(WIDTHS)
    assert isinstance(laptop().resolve(WIDTHS), Space)


def test_ranges_that_make_no_sense_are_refused() -> None:
    for arguments, message in (
        ({"low": 1.0, "high": 0.5}, "low <= high"),
        ({"low": 0.0, "high": 1.0}, "above 0, or log: false"),
        ({"low": 1.0, "high": float("inf")}, "finite"),
        ({"low": 1.0, "high": 2.0, "points": 0}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            Range(**arguments)  # type: ignore[arg-type]


def test_fixed_fields_reach_every_trial_that_has_them() -> None:
    fixed: dict[str, Any] = {"optimizer.warmup_epochs": 1.5, "tasks.clustering.max_iterations": 7}
    space = dataclasses.replace(laptop(), fixed=fixed).resolve(WIDTHS)
    for choices in draws(space, 30):
        config: PretrainConfig = space.config(choices)
        assert config.optimizer.warmup_epochs == 1.5
        assert config.tasks.clustering is None or config.tasks.clustering.max_iterations == 7
        assert list(config.tasks.active) == choices["tasks"].split("+"), "it adds no task"


def test_a_named_space_narrowed_by_file_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "narrow.yaml"
    file.write_text("space:\n  clusters: [4]\n  lr: {low: 1.0e-4, high: 5.0e-4}\n  epochs: 30\n")
    given = ["--space", "published", "--config", str(file), "--data", "x", "--run", "n"]
    job = COMMAND.parse(
        [
            *given,
            "--space.epochs",
            "40",
            "--space.tasks",
            '["contrastive+clustering"]',
            "--space.fixed",
            '{"optimizer.warmup_epochs": 2}',
        ]
    )
    expected = dataclasses.replace(
        published(),
        clusters=(4,),
        lr=Range(1e-4, 5e-4),
        epochs=40,
        tasks=("contrastive+clustering",),
        fixed={"optimizer.warmup_epochs": 2},
    )
    assert job.space == expected
    again = tmp_path / "sweep.yaml"
    save(job, again)
    assert COMMAND.parse(["--config", str(again)]) == job
    with pytest.raises(ValueError, match=r"--space: unknown value 'labtop' \(did you mean 'laptop'\?\)"):
        COMMAND.parse(["--space", "labtop", "--data", "x", "--run", "n"])
    with pytest.raises(ValueError, match=r"did you mean --space\.clusters"):
        COMMAND.parse([*given, "--space.cluster", "[4]"])
