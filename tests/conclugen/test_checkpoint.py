"""Checkpoints: whole or not there, verified, refused by name, executing nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conclugen import Pretrainer, checkpoint, storage
from conclugen.checkpoint import CheckpointError
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
    path = folder / checkpoint.DOCUMENT
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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

    monkeypatch.setattr(storage, "_sync", full_disk)
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


def test_a_truncated_file_is_refused(saved: Path) -> None:
    path = saved / checkpoint.TENSORS
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        checkpoint.load(saved)


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("schema", "other")])
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


def test_a_cursor_that_is_not_json_is_refused_and_leaves_nothing(trained: Pretrainer, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "a", trained, {"epoch": object()})
    assert list(tmp_path.iterdir()) == []
