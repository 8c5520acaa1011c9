"""CoMM: number by number, what its corruptions are made of, and that it tells what only a combination does."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from conclugen import Batch, Pretrainer, presets, random, standardize
from conclugen.tasks.comm import CommConfig
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config
from tests.distributed.parity import assert_rank_parity
from tuning.controlled.factors import FactorsConfig, draw


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


def accuracy(tasks: dict[str, Any], seed: int, whole: bool, epochs: int) -> float:
    """Of a linear probe for the synergy, on rows never trained on."""
    made = FactorsConfig(
        widths={"video": 12, "audio": 12}, speakers=12, clips=100, shared=0, unique=0, clusters=0, speaker=0, noise=0.3
    )
    drawn = draw(made, seed)
    features = {m: torch.from_numpy(drawn.features[m]) for m in made.widths}
    built = presets.build(
        "contrast_only",
        modalities=tuple(made.widths),
        tasks={"contrastive": None, **tasks},
        global_batch=200,
        epochs=max(1, epochs),
        model={"representation_dim": 48, "projection_dim": 24},
    )
    rows_ = len(drawn.speaker)
    group = torch.from_numpy(drawn.speaker)
    present = {m: torch.ones(rows_, dtype=torch.bool) for m in features}
    batch = Batch(features, present, torch.arange(rows_), group=group)
    pretrainer = Pretrainer(built, made.widths, 4, standardize.fit({m: x.numpy() for m, x in features.items()}))
    trained = np.flatnonzero(drawn.speaker >= made.test_speakers)
    for step in range(4 * epochs):
        chosen = np.random.default_rng([seed, step // 4]).permutation(trained)[200 * (step % 4) :][:200]
        pretrainer.step(batch.part(torch.from_numpy(chosen)))  # type: ignore[arg-type]
    found = pretrainer.embed_jointly(batch) if whole else pretrainer.embed(batch)
    x = torch.cat(list(found.values()), dim=1).numpy()
    tested = drawn.speaker < made.test_speakers
    y = drawn.labels["synergy"]
    probe = LogisticRegression(max_iter=2000).fit(x[~tested], y[~tested])
    return float(probe.score(x[tested], y[tested]))


@pytest.mark.slow
def test_it_tells_what_only_the_combination_of_modalities_does() -> None:
    """Synergy on speakers never met: against contrast of modalities, which can't, and against its own untrained fusion,
    whose random maps give some of it away."""
    seeds = range(4)
    comm = {"comm": {"corruption": "all"}}
    learned = np.array([accuracy(comm, seed, True, 60) for seed in seeds])
    contrast = np.array([accuracy({"contrastive": {}}, seed, False, 60) for seed in seeds])
    untrained = np.array([accuracy(comm, seed, True, 0) for seed in seeds])
    for other in (contrast, untrained):
        low, _ = stats.ttest_rel(learned, other).confidence_interval(0.95)
        assert low > 0, (learned, contrast, untrained)


@pytest.mark.slow
def test_ranks() -> None:
    assert_rank_parity("comm")
