"""An ablation and a sweep on a split whose speakers are in all parts: by dialogue, with negatives by speaker."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conclugen.evaluation.config import JudgingConfig, MeasureConfig
from ray_jobs.run_config import DataConfig
from shards import Manifest, group_id
from shards.planning.view import IndexValues
from tests.ray_jobs.test_roles import PER, official
from tuning.ablation.cell import Cell, run
from tuning.dataset import Roles, open_set
from tuning.sweep.objective import Judge, identity

JUDGING = JudgingConfig(fractions=(1.0,), draws=1, inner_folds=2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return official(tmp_path_factory.mktemp("roles") / "meld")


def test_an_ablation_by_dialogue_with_negatives_by_speaker(manifest: Manifest) -> None:
    folder = str(Path(manifest.folder))
    with pytest.raises(
        ValueError, match=r"^data set 'meld', views 'train' and 'test': 4 of 6 .*units.meld meta.dialogue$"
    ):
        open_set("meld", folder, JUDGING)
    with pytest.raises(ValueError, match=r"2 of 48 rows have no meta.dialogue.*--split-units.meld"):
        open_set("meld", folder, JUDGING, roles=Roles("meta.dialogue"))
    rows = open_set("meld", folder, JUDGING, roles=Roles("row", "group", "meta.dialogue"))
    assert rows.unit == "dialogue"
    speakers = [f"speaker{i % 5}" if i % 5 < 4 else f"{part} guest" for part in ("train", "test") for i in range(PER)]
    np.testing.assert_array_equal(rows.group, [group_id(name) for name in speakers])
    outcome = run(Cell("raw", ("audio", "text")), rows)
    assert outcome.groups["rows"] == {"test_dia0": 4, "test_dia1": 3, "row 29": 1} | {
        f"test_dia{n}": 4 for n in range(2, 6)
    }
    # The roles decide results, and so what is found again in a ledger.
    other = open_set("meld", folder, JUDGING, roles=Roles("row", "meta.dialogue", "meta.dialogue"))
    assert other.digest != rows.digest and other.judged_by == rows.judged_by
    assert open_set("meld", folder, JUDGING, roles=Roles("row", "group", "group")).judged_by != rows.judged_by


def test_a_sweep_judges_by_the_unit_of_the_split(manifest: Manifest) -> None:
    dialogues = IndexValues.read(manifest, "meta.dialogue")
    for name, numbers in (("rest", range(3, 6)), ("half", range(3))):
        dialogues.view(name, [f"train_dia{n}" for n in numbers], {"by": "meta.dialogue"}).save()
    plain = DataConfig(manifest.folder, "rest", "half", label="emotion")
    with pytest.raises(ValueError, match=r"'rest' shares 4 group\(s\) of 'group' with the test view.*data.split-unit"):
        Judge.open(plain, manifest, ("audio",), MeasureConfig())
    by_dialogue = replace(plain, split_unit="meta.dialogue")
    judge = Judge.open(by_dialogue, manifest, ("audio",), MeasureConfig())
    assert judge.labelled is not None
    assert set(judge.labelled.group[judge.labelled.group >= 0]) == {group_id(f"train_dia{n}") for n in range(3)}
    # What decides a measured number makes another sweep; at defaults, the sweeps of before continue.
    before = identity("probe_uar", plain, manifest, MeasureConfig())
    assert not {"split_unit", "speaker", "class_weights", "select_by"} & before.keys()
    weighed = identity("probe_uar", by_dialogue, manifest, MeasureConfig(class_weights="balanced", select_by="uar"))
    changed = {"split_unit": "meta.dialogue", "class_weights": "balanced", "select_by": "uar"}
    assert weighed == before | changed
