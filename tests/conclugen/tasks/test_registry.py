"""The registry: what is registered, what is refused, and that nothing else names the tasks."""

import dataclasses
import re
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from conclugen import presets
from conclugen.common.plugins import Registry
from conclugen.config import RECIPES, PretrainConfig, TaskOptions
from conclugen.fields import SCHEDULABLE
from conclugen.tasks import Range, Searched, Task, registry
from conclugen.tasks.contrastive import Contrastive

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class PlainConfig:
    """A task without settings.

    Attributes:
        weight: Factor of the loss.
    """

    weight: float = field(default=1.0, metadata=SCHEDULABLE)


class Plain(Task):
    """What a package needs at least."""

    name, title = "plain", "nothing"
    Config = PlainConfig


class Another(Plain):
    """Of the same name."""


class NotAll(Task):
    """Has no title."""

    name = "not_all"
    Config = PlainConfig


@dataclass(frozen=True)
class UntoldConfig(PlainConfig):
    """More than one setting.

    Attributes:
        weight: Factor of the loss.
    """

    margin: float = field(default=1.0, metadata=SCHEDULABLE)


class Untold(Plain):
    """A field without a description."""

    name = "untold"
    Config = UntoldConfig


class Taken(Plain):
    """Another task's field of the search space."""

    name = "taken"
    searched = (Searched("clusters", "tasks.taken.clusters", (1,), (1,), "K"),)


class Joins(Plain):
    """Wants to be part of a published variant."""

    name = "joins"
    presets = {"conclugen": ("video", "audio", "text")}  # noqa: RUF012


class Imitates(Plain):
    """A built-in task's name."""

    name = "contrastive"


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.GROUP)


def collected(*points: EntryPoint) -> Registry:
    return registry.collect(registry.registered().values(), points)


def test_built_in_tasks_come_first_in_the_published_order_and_others_by_name() -> None:
    named = list(registry.registered())
    assert named[:3] == list(presets.PRESETS["conclugen"][1])
    assert set(presets.PRESETS["simclr"][1]) <= set(named)
    own = f"{__name__}:Plain"
    found = collected(point("plain", own))
    assert list(found.entries) == [*named, "plain"] and found.entries["plain"] is Plain and not found.problems


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (
            [("plain", f"{__name__}:Plain"), ("plain", f"{__name__}:Another")],
            ["task 'plain' is registered twice", "uninstall one"],
        ),
        ([("contrastive", f"{__name__}:Imitates")], ["'contrastive'", "conclugen has a task of this name", "rename"]),
        ([("gone", "no_such_package.gone:Gone")], ["'gone'", "ModuleNotFoundError", "no_such_package", "uninstall"]),
        ([("gone", f"{__name__}:Gone")], ["'gone'", "AttributeError", "Gone"]),
        ([("plain2", f"{__name__}:Plain")], ["Plain.name", "'plain'", "'plain2'"]),
        ([("not_all", f"{__name__}:NotAll")], ["NotAll.title", "expected a text"]),
        ([("untold", f"{__name__}:Untold")], ["Untold.Config", "['margin']", "entry `name: text` for each field"]),
        ([("taken", f"{__name__}:Taken")], ["Taken.searched", "['clusters']", "'clustering'"]),
        ([("joins", f"{__name__}:Joins")], ["Joins.presets", "'conclugen'", "another name"]),
        ([("odd", f"{__name__}:point")], ["expected a class derived from conclugen.tasks.Task"]),
    ],
)
def test_what_can_t_be_registered_is_left_out_whole_in_one_line(points, words: list[str]) -> None:
    before = registry.registered()
    found = collected(*(point(*each) for each in points), point("fine", f"{__name__}:Plain"))
    (line, other) = sorted(found.problems.values(), key=lambda text: "'fine'" in text)
    assert "'fine'" in other and found.entries == before
    assert "\n" not in line
    for word in words:
        assert word in line


def test_the_name_of_a_task_that_is_left_out_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = collected(point("gone", "no_such_package.gone:Gone"))
    monkeypatch.setattr(registry, "_registry", lambda: broken)
    for refused in (
        lambda: presets.build("conclugen", tasks={"gone": {}}),
        lambda: PretrainConfig.from_dict({"tasks": {"gone": {"weight": 1.0}}}),
    ):
        with pytest.raises(ValueError, match=r"'gone'.*ModuleNotFoundError.*fix, update or uninstall"):
            refused()


def test_a_saved_configuration_names_the_task_that_is_not_installed() -> None:
    whole = presets.build("conclugen").to_dict()
    assert PretrainConfig.from_dict({**whole, "tasks": {**whole["tasks"], "margin": None}}) == presets.build(
        "conclugen"
    )
    with pytest.raises(ValueError, match=r"tasks\.margin: no installed package provides task 'margin'.*install"):
        PretrainConfig.from_dict({**whole, "tasks": {**whole["tasks"], "margin": {"weight": 1.0}}})


def test_what_is_installed_beside_changes_no_configuration() -> None:
    """Keys of runs and ablations are made of it: absent tasks of the first version are null there, others left out."""
    first = {"contrastive", "clustering", "reconstruction", "simclr"}
    options = {field.name for field in dataclasses.fields(TaskOptions)}
    assert options == {*registry.RESERVED}
    for name in presets.PRESETS:
        assert presets.build(name).to_dict()["tasks"].keys() == first | options
        assert {n for n in presets.build(name).identity() if n.startswith("tasks.") and n.count(".") == 1} <= {
            f"tasks.{task}" for task in first | options
        }


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("task", registry.registered())
def test_any_task_is_added_to_any_preset_that_has_its_modalities(task: str, preset: str) -> None:
    modalities = presets.PRESETS[preset][0]
    if not registry.serve([*presets.PRESETS[preset][1], task], modalities):
        with pytest.raises(ValueError, match="modalities"):
            presets.build(preset, tasks={task: {}})
        return
    for recipe in RECIPES:
        config = presets.build(preset, recipe, tasks={task: {"weight": 0.25}})
        expected = registry.get(task).adapted(registry.get(task).recipe(recipe), modalities)
        assert getattr(config.tasks, task) == dataclasses.replace(expected, weight=0.25)
        assert PretrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("task", registry.registered().values())
def test_what_a_task_says_of_itself_is_true(task: type[Task]) -> None:
    """Search spaces, small settings and variants name fields that it has, with values that it takes."""
    base = task.Config()
    for settings in (task.tiny, *task.variants.values()):
        dataclasses.replace(base, **settings)
    every: dict[str, Any] = {"video": 4, "audio": 4}
    for searched in task.searched:
        group, *path = searched.path.split(".")
        for options in (searched.published, searched.laptop):
            for value in (options.low, options.high) if isinstance(options, Range) else options:
                nested: dict[str, Any] = {path[-1]: value}
                nested = {path[0]: nested} if group == "tasks" else nested
                extra = {} if group == "tasks" else {"tasks": {task.name: {}}}
                presets.build("conclugen", "improved", modalities=tuple(every), epochs=100, **{group: nested}, **extra)
    for low in task.weights:
        assert low.low > 0


def test_a_task_is_a_module_of_its_own_class() -> None:
    task = Contrastive(Contrastive.Config())
    assert isinstance(task, Contrastive) and isinstance(task, Task)
    assert type(task).__name__ == "Contrastive" and not list(task.parameters())
    task.begin_epoch()
    assert task.active(0) and task.metrics() == {} and task.saved() is None


def test_nothing_else_in_the_product_names_a_task() -> None:
    names = re.compile(rf"\b({'|'.join(map(re.escape, registry.registered()))})\b")
    networks = {"hugging_face.py", "hf_frames.py"}  # SigLIP is also a network, which its library calls so
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in ("conclugen", "shards", "ray_jobs", "tuning")
        for path in sorted((ROOT / package).rglob("*.py"))
        if (ROOT / "conclugen" / "tasks") not in path.parents
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if set(names.findall(line)) - ({"siglip"} if path.name in networks else set())
    ]
    assert found == []
    assert names.search("if name == 'clustering':"), "this check sees one"
