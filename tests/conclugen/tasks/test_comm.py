"""CoMM: number by number, what its corruptions are made of, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from conclugen import Batch, random
from conclugen.tasks.comm import CommConfig
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config
from tests.distributed.parity import assert_rank_parity


def config(**settings: Any) -> Any:
    return small_config("contrast_only", precision="float64", tasks={"contrastive": None, "comm": settings})


def corrupted(batch: Batch, modality: str, number: int, step: int, kind: str, x: torch.Tensor) -> torch.Tensor:
    """A share of 0.3 of the standardised features changed, row by row."""
    name = f"comm {modality} {number}"
    hidden = random.uniform(127, name, step, batch.row, x.shape[1], torch.float32) < 0.3
    draw_B = random.uniform(127, f"partner in {name}", step, batch.row, 1)[:, 0].tolist()
    there, group = batch.present[modality].tolist(), batch.group.tolist()
    found = x.clone()
    for i in range(batch.rows):
        mates = [j for j in range(batch.rows) if there[j] and (kind == "all" or group[j] == group[i])]
        other = torch.zeros_like(x[i])
        if kind != "zeros" and there[i] and len(mates) > 1:
            place = mates.index(i)
            other = x[mates[(place + 1 + int(draw_B[i] * (len(mates) - 1))) % len(mates)]]
        found[i] = torch.where(hidden[i], other, x[i])
    return found


def nt_xent(a: np.ndarray, b: np.ndarray, there: list[int], group: list[int], within: bool) -> float:
    """Over both sets; each row against all others in either set, or those of its group where there are 4 or more."""
    total = 0.0
    for first, second in ((a, b), (b, a)):
        for i in there:
            mates = [j for j in there if j != i and group[j] == group[i]]
            others = mates if within and len(mates) >= 4 else [j for j in there if j != i]
            positive = first[i] @ second[i] / 0.1
            scores = [positive, *(first[i] @ x[j] / 0.1 for j in others for x in (first, second))]
            total += np.log(np.exp(scores).sum()) - positive
    return total / (2 * len(there))


@pytest.mark.parametrize("kind", ["same_group", "all", "zeros"])
@pytest.mark.parametrize("negatives", ["all", "same_group"])
def test_the_loss_number_by_number(kind: str, negatives: str) -> None:
    pretrainer = fresh(config(corruption=kind, negatives=negatives))
    batch = pretrainer._rows(rows(3))
    model, step = pretrainer.model.train(), 5
    task = model.task("comm")
    loss = float(model(batch, step, 0)["comm"].detach())
    modalities = list(WIDTHS)
    x = {m: model.standardized(m, batch.features[m]) for m in modalities}
    sets, present = [], []
    with torch.no_grad():
        for number in (1, 2):
            r = {m: model.heads[m](corrupted(batch, m, number, step, kind, x[m])) for m in modalities}
            for shown in (modalities, *([m] for m in modalities)):
                parts = [r[m] * (batch.present[m] if m in shown else False * batch.present[m])[:, None] for m in r]
                sets.append(task.get_submodule("fuse")(functional.relu(task.get_submodule("mix")(torch.cat(parts, 1)))))
                present.append(torch.stack([batch.present[m] for m in shown]).any(0))
        task.get_submodule("projection.norm").train()
        z = task.get_submodule("projection")(torch.stack(sets), torch.stack(present))
    unit = functional.normalize(z, dim=2).numpy()
    there = [torch.nonzero(mask)[:, 0].tolist() for mask in present]
    group = batch.group.tolist()

    def between(first: int, second: int, smaller: int) -> float:
        return nt_xent(unit[first], unit[second], there[smaller], group, negatives == "same_group")

    expected = between(0, 4, 0) + sum((between(m, 4, m) + between(4 + m, 0, m)) / 2 for m in (1, 2, 3))
    assert loss == pytest.approx(expected / 4, rel=1e-9)


def test_a_row_as_a_whole_lacks_what_is_missing() -> None:
    pretrainer = fresh(config())
    batch = rows(4, missing=0.5)
    whole, each = pretrainer.embed_jointly(batch)["comm"], pretrainer.embed(batch)
    task = pretrainer.model.task("comm")
    with torch.no_grad():
        side = torch.cat([each[m] for m in WIDTHS], dim=1)  # zero where missing
        expected = task.get_submodule("fuse")(functional.relu(task.get_submodule("mix")(side)))
    nowhere = ~np.stack([batch.present[m] for m in WIDTHS]).any(0)
    expected[torch.from_numpy(nowhere)] = 0
    torch.testing.assert_close(whole, expected)
    assert fresh(small_config("contrast_only")).embed_jointly(batch) == {}


def test_data_without_speakers_is_refused_in_one_line() -> None:
    batch = rows(3)
    batch.group = None
    with pytest.raises(ValueError, match=r"task 'comm' needs the speaker of each row.*data\.speaker.*tasks\.comm=null"):
        fresh(config()).step(batch)
    for kind in ("all", "zeros"):
        assert float(fresh(config(corruption=kind)).step(batch)["loss/comm"]) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": 1.0}, r"tasks\.comm\.mask: found 1\.0"),
        ({"corruption": "noise"}, r"tasks\.comm\.corruption.*same_group"),
        ({"temperature": 0.0}, r"tasks\.comm\.temperature"),
        ({"negatives": "none"}, r"tasks\.comm\.negatives"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CommConfig(**settings)


@pytest.mark.slow
def test_ranks() -> None:
    assert_rank_parity("comm")
