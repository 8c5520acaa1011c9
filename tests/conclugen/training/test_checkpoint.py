"""Checkpoints: whole or not there, verified, refused by name, executing nothing."""

import contextlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conclugen import Pretrainer, storage
from conclugen.common import atomic
from conclugen.training import checkpoint
from conclugen.training import state_checks as saved_state
from conclugen.training.checkpoint import CheckpointError
from tests.conclugen.runs import fresh, rows, small_config

CURSOR = {"epoch": 1, "step": 2}


@pytest.fixture
def trained() -> Pretrainer:
    pretrainer = fresh(small_config("conclugen"))
    for step in range(5):
        pretrainer.step(rows(step))
    return pretrainer


@pytest.fixture
def saved(trained: Pretrainer, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "step5", trained, CURSOR, {"best": 0.5})
    return tmp_path / "step5"


def edit(folder: Path, **changes: object) -> None:
    """As somebody would write the document anew, seal and all."""
    path = folder / checkpoint.DOCUMENT
    path.write_text(storage.document_text({**json.loads(path.read_text()), **changes}))


def test_round_trip_goes_on_bitwise(trained: Pretrainer, saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert loaded.cursor == CURSOR and loaded.extra == {"best": 0.5}
    resumed = fresh(small_config("conclugen"))
    loaded.restore(resumed)
    for step in range(5, 8):
        mine, other = resumed.step(rows(step)), trained.step(rows(step))
        assert {n: float(x) for n, x in mine.items()} == {n: float(x) for n, x in other.items()}
    for name, value in trained.state()[0].items():
        assert torch.equal(resumed.state()[0][name], value), name


def test_a_process_by_itself_is_every_rank(trained: Pretrainer, saved: Path) -> None:
    resumed = fresh(small_config("conclugen"))
    checkpoint.restore_everywhere(checkpoint.load(saved), resumed)
    assert resumed.step_number == trained.step_number
    assert all(torch.equal(resumed.state()[0][name], value) for name, value in trained.state()[0].items())


def test_folder_holds_safetensors_and_json_alone(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["checkpoint.json", "state.safetensors"]
    assert [p.name for p in saved.parent.iterdir()] == ["step5"]


def test_saving_again_replaces(trained: Pretrainer, saved: Path) -> None:
    trained.step(rows(5))
    checkpoint.save(saved, trained, {"epoch": 2, "step": 0})
    assert checkpoint.load(saved).meta["step_number"] == 6
    assert [p.name for p in saved.parent.iterdir()] == ["step5"]


def test_a_save_that_dies_leaves_the_last_one(
    trained: Pretrainer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(atomic, "sync_file", full_disk)
    trained.step(rows(5))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, trained, CURSOR)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved.parent / "step6", trained, CURSOR)
    assert checkpoint.load(saved).meta["step_number"] == 5
    assert [p.name for p in saved.parent.iterdir()] == ["step5"]


@pytest.mark.parametrize("error", [OSError("Stale file handle"), KeyboardInterrupt()])
def test_a_save_that_fails_once_the_last_one_is_aside_puts_it_back(
    trained: Pretrainer, saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    rename = Path.rename

    def fails_on_the_new_one(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            assert not saved.exists()
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_on_the_new_one)
    trained.step(rows(5))
    with pytest.raises(type(error)):
        checkpoint.save(saved, trained, CURSOR)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["step5"]


@pytest.mark.parametrize("keep", ["state.safetensors", "checkpoint.json"])
def test_half_a_folder_is_no_checkpoint(saved: Path, keep: str) -> None:
    for path in saved.iterdir():
        if path.name != keep:
            path.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        checkpoint.load(saved)


def test_a_flipped_bit_is_found(saved: Path) -> None:
    path = saved / checkpoint.TENSORS
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors.*digest.*damaged"):
        checkpoint.load(saved)


def test_a_flipped_bit_of_the_document_is_found_or_changes_nothing(saved: Path) -> None:
    """Most leave valid JSON of another step, another setting or another name."""
    path = saved / checkpoint.DOCUMENT
    content, loaded = path.read_bytes(), checkpoint.load(saved)
    draw = random.Random(0)
    flips = [(place, draw.randrange(7)) for place in draw.sample(range(len(content)), 250)]
    step = content.index(b'"step_number": 5') + len('"step_number": ')
    valid = 0
    for place, bit in [(step, 0), *flips]:
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            valid += json.loads(changed) != json.loads(content)
        try:
            found = checkpoint.load(saved)
        except CheckpointError as error:
            assert "checkpoint.json" in str(error)
        else:
            assert (found.meta, found.cursor, found.extra) == (loaded.meta, loaded.cursor, loaded.extra)
    assert valid > 50


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("meta",), []),
        (("cursor",), None),
        (("extra",), "x"),
        (("meta", "step_number"), -1),
        (("meta", "step_number"), "5"),
        (("meta", "step_number"), 5.5),
        (("meta", "step_number"), None),
        (("meta", "config"), None),
        (("meta", "config", "tasks"), 1),
        (("meta", "widths"), 5),
        (("meta", "weights"), {}),
        (("meta", "weights"), None),
        (("meta", "weights", "changes"), [1]),
        (("meta", "weights", "current", "contrastive"), "inf"),
        (("meta", "weights", "current", "contrastive"), -1),
        (("meta", "weights", "configured"), []),
        (("meta", "tasks"), 3),
        (("meta", "tasks", "clustering"), None),
        (("meta", "tasks", "clustering", "queued"), 10**30),
        (("meta", "tasks", "clustering", "started"), "yes"),
    ],
)
def test_a_document_that_says_what_can_t_be_is_refused_before_anything_changes(
    saved: Path, place: tuple[str, ...], value: object
) -> None:
    path = saved / checkpoint.DOCUMENT
    document = json.loads(path.read_text())
    inner = document
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(storage.document_text(document))
    pretrainer = fresh(small_config("conclugen"))
    before = {n: x.clone() for n, x in pretrainer.state()[0].items()}
    named = "weights" if "weights" in place else place[-1]
    with pytest.raises(ValueError, match=f"(?i){named}"):
        checkpoint.load(saved).restore(pretrainer)
    assert all(torch.equal(x, before[n]) for n, x in pretrainer.state()[0].items())
    assert pretrainer.step_number == 0


def test_a_checkpoint_of_the_last_version_goes_on(saved: Path) -> None:
    """Its tasks are all listed, and a task's state lies beside the rest."""
    document = json.loads((saved / checkpoint.DOCUMENT).read_text())
    state, tasks = document["meta"].pop("tasks"), document["meta"]["config"]["tasks"]
    assert state.keys() == {"clustering"} and {"contrastive", "simclr"} <= tasks.keys() and tasks["simclr"] is None
    edit(saved, meta=document["meta"] | state)
    pretrainer = fresh(small_config("conclugen"))
    checkpoint.load(saved).restore(pretrainer)
    assert pretrainer.model.task("clustering").saved() == state["clustering"] == {"queued": 2, "started": True}


def test_a_checkpoint_names_the_package_that_its_task_needs(saved: Path) -> None:
    meta = json.loads((saved / checkpoint.DOCUMENT).read_text())["meta"]
    meta["config"]["tasks"]["margin"] = {"weight": 1.0}
    edit(saved, meta=meta)
    with pytest.raises(ValueError, match=r"tasks\.margin: no installed package provides task 'margin'.*install"):
        checkpoint.load(saved).restore(fresh(small_config("conclugen")))


@pytest.mark.parametrize("name", ["config", "widths", "steps_per_epoch", "tasks"])
def test_a_state_that_lacks_something_is_refused(saved: Path, name: str) -> None:
    meta = json.loads((saved / checkpoint.DOCUMENT).read_text())["meta"]
    edit(saved, meta={key: value for key, value in meta.items() if key != name})
    lacking = {"tasks": "clustering"}.get(name, name)
    with pytest.raises(ValueError, match=f"'{lacking}' is missing"):
        checkpoint.load(saved).restore(fresh(small_config("conclugen")))


def test_a_truncated_file_is_refused(saved: Path) -> None:
    path = saved / checkpoint.TENSORS
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        checkpoint.load(saved)


@pytest.mark.parametrize(("field", "value"), [("version", 3), ("schema", "other")])
def test_unknown_versions_are_refused(saved: Path, field: str, value: object) -> None:
    edit(saved, **{field: value})
    with pytest.raises(CheckpointError, match=f"{field} is {value!r}"):
        checkpoint.load(saved)


def test_broken_json_is_refused(saved: Path) -> None:
    (saved / checkpoint.DOCUMENT).write_text('{"schema": ')
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model/projection.norm.running_mean"), "missing tensor 'model/projection.norm.running_mean'"),
        (lambda t: t.update(other=torch.zeros(1)), "unknown tensor 'other'"),
        (
            lambda t: t.update({"model/tasks.clustering.queue": torch.zeros(5, 3)}),
            r"'model/tasks.clustering.queue' is torch.float32 \(5, 3\), expected torch.float32 \(24, 3\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_anything_changes(saved: Path, change, words: str) -> None:
    tensors = load_file(saved / checkpoint.TENSORS)
    change(tensors)
    save_file(tensors, saved / checkpoint.TENSORS)
    edit(saved, digest=storage.tensors_digest(tensors))
    pretrainer = fresh(small_config("conclugen"))
    before = {n: x.clone() for n, x in pretrainer.state()[0].items()}
    with pytest.raises(ValueError, match=words):
        checkpoint.load(saved).restore(pretrainer)
    assert all(torch.equal(x, before[n]) for n, x in pretrainer.state()[0].items())


def test_another_run_is_refused_with_the_fields_that_differ(saved: Path) -> None:
    other = fresh(small_config("conclugen", seed=5, tasks={"clustering": {"mode": "individual"}}))
    with pytest.raises(ValueError, match=r"seed: saved 127, now 5") as error:
        checkpoint.load(saved).restore(other)
    assert "tasks.clustering.mode: saved 'joint', now 'individual'" in str(error.value)
    with pytest.raises(ValueError, match="steps_per_epoch: saved 3, now 4"):
        checkpoint.load(saved).restore(fresh(small_config("conclugen"), steps_per_epoch=4))


def test_a_longer_run_with_other_weights_goes_on(saved: Path) -> None:
    longer = fresh(
        small_config("conclugen", epochs=500, tasks={"contrastive": {"weight": 0.5}}, optimizer={"lr": 5e-4})
    )
    checkpoint.load(saved).restore(longer)
    assert longer.step_number == 5


def test_a_snapshot_is_of_its_moment(trained: Pretrainer) -> None:
    """It is written by another thread, while training continues."""
    cursor, extra = {"epoch": 1, "window": {"step": 2}}, {"best": [0.5]}
    state = checkpoint.snapshot(trained, cursor, extra)
    cursor["window"]["step"] = 3  # type: ignore[index]
    extra["best"].append(0.7)
    assert state.document["cursor"] == {"epoch": 1, "window": {"step": 2}} and state.document["extra"] == {
        "best": [0.5]
    }


def test_a_cursor_that_is_not_json_is_refused_and_leaves_nothing(trained: Pretrainer, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "a", trained, {"epoch": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_document_is_json_that_any_reader_takes(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.document_text({"best": value})


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
def test_a_saved_count_is_a_whole_number_from_0(value: object) -> None:
    with pytest.raises(ValueError, match=r"^saved state: epoch is .*, expected an integer from 0$"):
        saved_state.check_count("epoch", value)
    saved_state.check_count("epoch", 0)
