"""What an ablation plans and what one cell does: equal cells once, holes with reasons, folds that never meet."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score

from benchmarks.reproduce import reproduce
from conclugen import presets
from conclugen.common.locks import folder_held
from conclugen.common.options import save
from conclugen.evaluation.config import LAYERS_WEIGHED, STRENGTHS, JudgingConfig
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.judge import fold_accuracy
from conclugen.evaluation.probe import fit_classes
from conclugen.evaluation.protocol import group_folds, natural_order
from conclugen.evaluation.solvers import LayerBlock
from conclugen.presets import PRESETS
from ray_jobs.extraction.plan import recipe_of
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from shards import Manifest, View
from tests.tuning.labelled_shards import TINY, write_labelled
from tuning.ablate import COMMAND, main
from tuning.ablation import ablate
from tuning.ablation import run as cells
from tuning.ablation.cell import Cell, raw_rows, represent, run
from tuning.ablation.cost import estimate
from tuning.ablation.plan import (
    AblateJob,
    SizesConfig,
    acquire_folder,
    plan,
    refuse_other_configurations,
    refuse_other_data,
    title,
)
from tuning.dataset import open_set
from tuning.ledger import Ledger, Record

SIZES = SizesConfig(**TINY)
JUDGING = JudgingConfig(fractions=(0.2, 1.0), draws=2, folds=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three modalities and cross-fitted folds; two modalities, a published split and missing rows."""
    root = tmp_path_factory.mktemp("shards")
    return {
        "three": str(write_labelled(root / "three")),
        "two": str(write_labelled(root / "two", ("video", "audio"), published=True, missing=9, seed=1)),
    }


@pytest.fixture(scope="module")
def sets(folders):
    return {name: open_set(name, folder, JUDGING) for name, folder in folders.items()}


def job(folders, **changes):
    settings = {"seeds": (1, 2), "recipes": ("improved",), "judging": JUDGING, "sizes": SIZES}
    return AblateJob(datasets=dict(folders), **{**settings, **changes})


# ---- data sets and folds


def test_every_speaker_is_tested_once_by_what_never_saw_it(sets):
    data = sets["three"]
    tested = np.concatenate([fold.test_rows for fold in data.protocol.folds])
    assert sorted(tested) == list(range(len(data.group)))
    for fold in data.protocol.folds:
        groups = data.protocol.groups
        assert not set(groups[fold.train_rows]) & set(groups[fold.test_rows])
        assert sorted(np.union1d(fold.train_rows, fold.test_rows)) == list(range(len(data.group)))
    # Speakers by number, every fourth of them in one fold.
    assert sorted(set(data.protocol.groups[data.protocol.folds[1].test_rows])) == ["2", "6"]


def test_a_published_split_is_the_one_fold(sets):
    (fold,) = sets["two"].protocol.folds
    assert set(sets["two"].protocol.groups[fold.test_rows]) == {"7", "8"}
    assert len(fold.test_rows) == 32 and len(fold.train_rows) == 96


def test_groups_that_designs_were_chosen_on_only_train(folders):
    data = open_set("three", folders["three"], replace(JUDGING, folds=3), train_only=["7", "8"])
    assert set(data.protocol.groups[data.protocol.test_rows]) == {"1", "2", "3", "4", "5", "6"}
    assert all({"7", "8"} <= set(data.protocol.groups[fold.train_rows]) for fold in data.protocol.folds)


def test_standardisation_sees_training_rows_that_have_the_modality_and_no_other(sets):
    data = sets["two"]
    (fold,) = data.protocol.folds
    got = data.standardised(("audio",), fold)["audio"]
    there = data.present["audio"]
    assert 0 < (~there).sum() == 9
    training = data.features["audio"][np.intersect1d(fold.train_rows, np.flatnonzero(there))].astype(np.float64)
    expected = (data.features["audio"] - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(got[there], expected[there], rtol=1e-4, atol=1e-5)
    assert (got[~there] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "mood"}, r"labels.x: unknown value 'mood'"),
        ({"train_only": ["99"]}, r"train_only.x: no row of group '99'; the set has 8 groups, '1' to '8'"),
        ({"judging": replace(JUDGING, folds=9)}, r"8 groups to test for 9 folds; lower judging.folds"),
    ],
)
def test_sets_that_cannot_serve_are_refused(folders, changes, message):
    with pytest.raises(ValueError, match=message):
        open_set("x", folders["three"], **{"judging": JUDGING, **changes})


def test_natural_order():
    assert natural_order(["10", "9", "1"]) == ["1", "9", "10"]
    assert natural_order(["b10", "b9", "a"]) == ["a", "b10", "b9"]


def test_layers_of_an_encoder_are_weighed_in_a_row_of_their_own(folders, sets, monkeypatch):
    made = {"name": "x@layers=all", "column": "audio", "modality": "audio", "width": 5, "stored_layers": 5}
    told = {"features": {"encoders": [made], "crop": "follow", "low_confidence": False}}
    monkeypatch.setattr("ray_jobs.extraction.plan.recipe_of", lambda info: recipe_of(told))
    data = open_set("two", folders["two"], JUDGING)
    assert data.layers == {"audio": [LayerBlock("audio", 0, 5, 1)]} and sets["two"].layers == {}
    row = (LAYERS_WEIGHED, "probe")
    assert row in raw_rows(data, ["raw"])
    assert row not in raw_rows(data, ["raw_balanced"]) and row not in raw_rows(sets["two"], ["all"])
    planned = plan(job({"two": folders["two"]}, sections=("baselines",)), [data])
    (cell,) = (one.cell for one in planned.cells if one.cell.system == LAYERS_WEIGHED)
    found = run(cell, data).arrays["predicted/1.0"][0]
    (fold,) = data.protocol.folds
    features = data.standardised(data.complete, fold)
    start = sum(features[m].shape[1] for m in data.complete[: data.complete.index("audio")])
    X, rows = np.concatenate([features[m] for m in data.complete], axis=1), fold.train_rows
    probe = fit_classes(
        X[rows],
        data.protocol.target.values[rows],
        data.protocol.groups[rows],
        2,
        layers=[LayerBlock("audio", start, 5, 1)],
        scaling=Scaling.none(X.shape[1]),
    )
    np.testing.assert_array_equal(found[fold.test_rows], probe.predict(X[fold.test_rows]))


# ---- the plan


def test_all_seven_combinations_and_all_presets_with_equal_cells_once(folders, sets):
    planned = plan(job(folders), list(sets.values()))
    for name, data in sets.items():
        own = [p for p in planned.cells if p.dataset == name and p.cell.system == "pretrained"]
        complete = {p.cell.tasks for p in own if p.cell.modalities == data.complete}
        tasks = ("contrastive", "clustering", "reconstruction")
        assert complete == {c for n in (1, 2, 3) for c in itertools.combinations(tasks, n)}
        keys = [p.key for p in planned.cells if p.dataset == name]
        assert len(keys) == len(set(keys))
        # Counted by hand: 7 combinations; of three modalities also 2 pairs under the contrastive task alone (presets),
        # 3 pairs and 3 single ones (subsets); of two modalities 2 single ones.
        assert len(own) == 2 * {"three": 7 + 2 + 3 + 3, "two": 7 + 2}[name]
        served = {n.removeprefix("presets/") for p in own for n in p.names if n.startswith("presets/")}
        assert served == set(PRESETS) - {"three": {"simclr"}, "two": {"simclr", "contrast_only_video_text"}}[name]
    by_name = {(p.dataset, p.cell.seed, name): p.key for p in planned.cells for name in p.names}
    three = by_name["three", 1, "combinations/contrastive+clustering+reconstruction"]
    assert by_name["three", 1, "presets/conclugen"] == three
    assert by_name["three", 1, "modalities/video+audio+text"] == three
    assert by_name["three", 1, "presets/generative_only"] == by_name["three", 1, "combinations/reconstruction"]
    assert by_name["two", 1, "presets/contrast_only_video_audio"] == by_name["two", 1, "combinations/contrastive"]
    raw = [p.cell.modalities for p in planned.cells if p.cell.system == "raw" and p.dataset == "three"]
    assert sorted(raw) == sorted([("video",), ("audio",), ("text",), ("video", "audio", "text")])
    others = [(p.cell.system, p.cell.method) for p in planned.cells if not p.cell.config and p.cell.system != "raw"]
    assert sorted(others) == sorted(  # once a set, whatever the seeds
        2 * [("majority", "majority"), ("raw balanced", "probe"), ("best single modality", "probe")]
    )
    assert planned.rows == len([n for p in planned.cells for n in p.names]) + len(planned.holes)


def saved(path, **changes):
    """A file as a sweep leaves it; the configuration that it holds."""
    config = SIZES.apply(presets.build("contrast_cluster", modalities=("audio", "video"), seed=77, **changes))
    save(PretrainJob(config, DataConfig(folder="/elsewhere"), RunConfig(name="best")), path)
    return config


def test_a_named_configuration_is_a_row_of_its_own_beside_the_three_tasks(folders, sets, tmp_path):
    config = saved(tmp_path / "best.yaml", optimizer={"lr": 3.3e-3})
    only = job(folders, sections=("configurations",), configurations={"found": str(tmp_path / "best.yaml")})
    planned = plan(only, list(sets.values()))
    assert len(planned.cells) == 2 * 2 * 2 and not planned.holes  # the three tasks and the file's, sets, seeds
    for data in sets.values():
        own = [p for p in planned.cells if p.names == ("configurations/found",) and p.dataset == data.name]
        assert [p.cell.config for p in own] == [
            replace(config, seed=1),
            replace(config, seed=2),
        ]
        assert {p.tags["configuration"] for p in own} == {"found"} and own[0].cell.modalities == ("audio", "video")
        assert title(own[0].tags) == f"{data.name}  found  contrastive+clustering  audio+video  improved  seed 1"
        assert own[0].tags["complete"] == (data.name == "two")
        assert own[0].tags["seen"] == [data.name], "a cell learns from its own set alone"
    three = [p for p in planned.cells if p.names == ("combinations/contrastive+clustering+reconstruction",)]
    assert len(three) == 4 and {p.tags["configuration"] for p in three} == {""}
    # With the sections that have them, the three tasks are still one cell.
    both = plan(replace(only, sections=("combinations", "configurations")), [sets["two"]])
    assert len({p.key for p in both.cells}) == len(both.cells) == 2 * (7 + 1)


def test_a_configuration_that_a_set_cannot_serve_is_a_hole(folders, sets, tmp_path):
    config = SIZES.apply(presets.build("conclugen"))
    save(PretrainJob(config, DataConfig(folder="/f"), RunConfig(name="b")), tmp_path / "text.yaml")
    wide = replace(config, modalities=("video", "audio"), global_batch=97)
    save(PretrainJob(wide, DataConfig(folder="/f"), RunConfig(name="b")), tmp_path / "wide.yaml")
    named = {"text": str(tmp_path / "text.yaml"), "wide": str(tmp_path / "wide.yaml")}
    holes = plan(job(folders, sections=("configurations",), configurations=named), [sets["two"]]).holes
    reasons = {hole.record.tags["configuration"]: hole.record.reason for hole in holes}
    assert "needs modality 'text'" in reasons["text"]
    assert "its global batch 97 is more than the 96 rows" in reasons["wide"]


def test_tasks_with_weights_are_rows_of_every_recipe_at_the_ablations_sizes(folders, sets, tmp_path):
    named = {"loud": "contrastive+reconstruction:10", "equal": "share=contrastive:0.5+reconstruction:0.5"}
    both = {"configurations": named, "recipes": ("improved", "paper"), "sections": ("configurations",)}
    planned = plan(job(folders, **both), [sets["two"]])
    found = {}
    for p in planned.cells:
        found.setdefault((p.tags["configuration"], p.tags["recipe"]), p.cell.config)
    assert set(found) == {(name, recipe) for name in ("loud", "equal", "") for recipe in ("improved", "paper")}
    for recipe in ("improved", "paper"):
        loud, equal = found["loud", recipe], found["equal", recipe]
        assert {n: t.weight for n, t in loud.tasks.active.items()} == {"contrastive": 1.0, "reconstruction": 10.0}
        assert equal.tasks.weighting == "share" and loud.tasks.weighting == "static"
        assert loud.recipe == recipe and loud.epochs == SIZES.epochs and loud.modalities == ("video", "audio")
    refuse_other_configurations(planned, kept(planned, tmp_path))
    for text, words in (
        ("contrastiv:2", r"configurations.loud: unknown value 'contrastiv' \(did you mean 'contrastive'"),
        ("contrastive:much", r"configurations.loud: 'contrastive:much': the weight must be a number"),
    ):
        with pytest.raises(ValueError, match=words):
            plan(job(folders, configurations={"loud": text}), list(sets.values()))
    more = {"loud": "share=contrastive:1+reconstruction:1"}
    holes = plan(job(folders, sections=("configurations",), configurations=more), [sets["two"]]).holes
    assert all("must sum to 1, got 2" in hole.record.reason for hole in holes) and holes


def test_speakers_by_their_own_rows(folders, sets):
    own = open_set("two", folders["two"], replace(JUDGING, normalisation="speaker_normalised"))
    assert own.judged_by != sets["two"].judged_by
    (fold,) = own.protocol.folds
    for name, x in own.standardised(("video", "audio"), fold).items():
        for group in np.unique(own.protocol.groups):
            rows = (own.protocol.groups == group) & own.present[name]
            values = own.features[name][rows].astype(np.float64)
            np.testing.assert_allclose(x[rows], (values - values.mean(0)) / values.std(0), atol=1e-4)
        assert not x[~own.present[name]].any()
    with pytest.raises(ValueError, match=r"judging.normalisation: unknown value 'speaker'"):
        replace(JUDGING, normalisation="speaker")


def kept(planned, folder):
    """Records of a plan's cells as they are read from a ledger; their results do not matter."""
    with Ledger.open(folder) as ledger:
        for p in planned.cells:
            own = {"preset": "conclugen", "seed": p.cell.seed} | p.cell.content()
            ledger.append(Record(p.key, "cell", "finished", own, dict(p.tags)))
    return Ledger.open(folder).records()


def test_one_name_is_one_configuration_of_a_folder(folders, sets, tmp_path):
    def planned(lr, seeds=(1, 2)):
        saved(tmp_path / "best.yaml", optimizer={"lr": lr})
        named = {"found": str(tmp_path / "best.yaml")}
        return plan(job(folders, sections=("configurations",), configurations=named, seeds=seeds), [sets["two"]])

    records = kept(planned(1e-3), tmp_path)
    refuse_other_configurations(planned(1e-3), records)
    refuse_other_configurations(planned(1e-3, seeds=(2, 3, 4)), records)  # seeds may be added
    for seeds in ((1, 2), (2, 3), (3, 4)):  # another configuration may not, with other seeds as little
        with pytest.raises(ValueError, match=r"configurations.found: the folder holds cells of another.*on 'two'"):
            refuse_other_configurations(planned(2e-3, seeds), records)


def test_one_name_is_one_data_set_of_a_folder(folders, sets, tmp_path):
    only = job({"two": folders["two"]}, sections=("combinations", "baselines"))
    records = kept(plan(only, [sets["two"]]), tmp_path)
    refuse_other_data(list(sets.values()), records)
    other_data = open_set("two", folders["three"], JUDGING)
    judged_otherwise = open_set("two", folders["two"], JUDGING, train_only=["7"])
    for data in (other_data, judged_otherwise):
        with pytest.raises(
            ValueError, match=r"data set 'two': .* another folder, label or train_only, .* another name"
        ):
            refuse_other_data([sets["three"], data], records)


def test_what_cannot_be_served_is_a_hole_with_its_reason(folders, sets):
    holes = {
        (h.dataset, h.record.tags["rows"][0]): h.record.reason for h in plan(job(folders), list(sets.values())).holes
    }
    assert set(holes) == {
        ("three", "presets/simclr"),
        ("two", "presets/simclr"),
        ("two", "presets/contrast_only_video_text"),
    }
    assert "needs modality 'video_3d'" in holes["three", "presets/simclr"]
    assert "needs modality 'text'" in holes["two", "presets/contrast_only_video_text"]


def test_what_decides_a_result_decides_the_key(sets):
    data = sets["three"]
    config = SIZES.apply(presets.build("conclugen", seed=1))
    cell = Cell("pretrained", config.modalities, config)
    same = Cell("pretrained", config.modalities, replace(config, preset="contrast_only"))
    assert same.key(data) == cell.key(data)
    others = [
        Cell("pretrained", config.modalities, replace(config, seed=2)).key(data),
        Cell("pretrained", config.modalities, replace(config, epochs=3)).key(data),
        Cell("pretrained", config.modalities, replace(config, clip_norm=None)).key(data),
        Cell("untrained", config.modalities, config).key(data),
        cell.key(sets["two"]),
        cell.key(replace(data, judged_by="otherwise")),
    ]
    assert len({cell.key(data), *others}) == 7


def test_untrained_heads_are_the_same_whatever_they_would_be_trained_for(sets):
    data = sets["three"]
    cells = [
        Cell("untrained", data.complete, SIZES.apply(presets.build(name, seed=3)))
        for name in ("conclugen", "contrast_only", "generative_only")
    ]
    assert len({cell.key(data) for cell in cells}) == 1
    fold = data.protocol.folds[0]
    tables = [represent(cell, data, fold)[0][""].matrix for cell in cells]
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0], tables[2])
    other = Cell("untrained", data.complete, SIZES.apply(presets.build("conclugen", seed=4)))
    assert not np.array_equal(tables[0], represent(other, data, fold)[0][""].matrix)


def test_refusals_say_what_to_change(folders, sets, tmp_path):
    with pytest.raises(ValueError, match=r"needs two different seeds at least: --seeds \[127,128,129\]"):
        job(folders, seeds=(1,))
    with pytest.raises(ValueError, match=r"needs two different seeds"):
        job(folders, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"datasets: none; name one at least: --data.NAME FOLDER"):
        job({})
    with pytest.raises(ValueError, match=r"sections: unknown value 'presetz' \(did you mean 'presets'\?\)"):
        job(folders, sections=("presetz",))
    with pytest.raises(ValueError, match=r"train_only: unknown value 'thre' \(did you mean 'three'\?\)"):
        job(folders, train_only={"thre": "1"})
    with pytest.raises(ValueError, match=r"configurations: given, but sections leave them out"):
        job(folders, sections=("baselines",), configurations={"found": "best.yaml"})
    with pytest.raises(ValueError, match=r"none is given: --configurations.NAME FILE"):
        job(folders, sections=("configurations",))
    with pytest.raises(ValueError, match=r"configurations.found: .*nowhere.yaml"):
        plan(job(folders, configurations={"found": str(tmp_path / "nowhere.yaml")}), list(sets.values()))
    with pytest.raises(ValueError, match=r"96 rows, a global batch 128; lower --sizes.global_batch"):
        plan(job(folders, sizes=replace(SIZES, global_batch=128)), list(sets.values()))
    first = job(folders, output=str(tmp_path), name="mine")
    acquire_folder(first)
    acquire_folder(replace(first, seeds=(1, 2, 3), recipes=("paper",)))
    with pytest.raises(ValueError, match=r"other settings \(sizes.epochs: 2 there, 5 now\).*another --name"):
        acquire_folder(replace(first, sizes=replace(SIZES, epochs=5)))


def test_a_missing_data_set_and_a_folder_in_use_are_refused(folders, tmp_path, capsys):
    given = ["--data.three", folders["three"], "--output", str(tmp_path), "--run", "mine"]
    given += ["--sizes.global_batch", "24", "--judging.folds", "2", "--seeds", "[1,2]"]
    assert main([*given, "--data.gone", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert "error: data set 'gone': " in told and "nowhere" in told
    assert not (tmp_path / "mine").exists()
    with folder_held(tmp_path / "mine", "it is being tested", "another folder"):
        assert main(given) == 2
    assert "mine: the ablation is being run by process" in capsys.readouterr().err
    assert not (tmp_path / "mine" / "ablation.json").exists()


def test_failed_cells_show_in_the_status(folders, tmp_path, capsys, monkeypatch):
    failed = [Record("a", "cell", "failed", reason="OSError: no memory")]
    monkeypatch.setattr(ablate, "ablate", lambda job: failed)
    assert main(["--data.three", folders["three"], "--output", str(tmp_path)]) == 3
    assert "1 cell(s) failed, each with its reason" in capsys.readouterr().out
    monkeypatch.setattr(ablate, "ablate", lambda job: [])
    assert main(["--data.three", folders["three"], "--output", str(tmp_path)]) == 0


def test_the_command_line_reads_every_field(folders):
    given = [
        "--data.three",
        folders["three"],
        "--seeds",
        "[5,6]",
        "--sizes.epochs",
        "3",
        "--train_only.three",
        "7,8",
    ]
    parsed = COMMAND.parse([*given, "--judging.fractions", "[0.5]", "--dry_run", "true"])
    assert parsed.datasets == {"three": folders["three"]} and parsed.seeds == (5, 6) and parsed.dry_run
    assert parsed.sizes.epochs == 3 and parsed.judging.fractions == (0.5,) and parsed.train_only == {"three": "7,8"}


@pytest.mark.parametrize(("joins", "cores"), [(False, 3), (True, 7)])
def test_as_many_cells_run_at_once_as_asked_else_as_cores_can(monkeypatch, joins, cores):
    """A local Ray has more CPUs than the machine has cores: those are not counted."""
    connected = []
    monkeypatch.setattr(cells.ray_cluster, "connect", connected.append)
    monkeypatch.setattr(cells.ray_cluster, "joins", lambda: joins)
    monkeypatch.setattr(cells.ray, "cluster_resources", lambda: {"CPU": 7.0})
    monkeypatch.setattr(cells.machine, "cores", lambda: 3)
    assert cells.connect(5) == 5 and cells.connect(None) == cores and connected == [5, 1]


def test_a_cell_s_line_says_what_came_of_it_and_what_is_left(folders, sets):
    planned = plan(job(folders), [sets["three"]]).cells[0]
    cost = {"seconds": 75.0}
    record = Record(
        "k", "cell", "finished", metrics={"accuracy@1": 0.5, "uar@1": 0.25, "accuracy@0.2": 0.375}, cost=cost
    )
    named = title(planned.tags)
    assert cells._line(3, 20, planned, record, 60.0) == (
        f"[ 3/20, left 60 s] {named}: accuracy@1 0.500  accuracy@0.2 0.375  (75 s)"
    )
    failed = Record("k", "cell", "failed", reason="ValueError: too few\n  at line 1")
    assert cells._line(20, 20, planned, failed, 0.0).endswith(f"] {named}: FAILED: ValueError: too few")


# ---- one cell


def test_a_cell_learns_what_the_other_implementation_learns(sets):
    """`benchmarks.reproduce` trains by its own loop; on complete rows both must give the same representations."""
    data = sets["three"]
    config = SIZES.apply(presets.build("conclugen", seed=5, modalities=data.complete))
    fold = data.protocol.folds[2]
    got, measures, samples = represent(Cell("pretrained", data.complete, config), data, fold)
    features = {m: x.astype(np.float64) for m, x in data.standardised(data.complete, fold).items()}
    *_, parts = reproduce.pretrained(config, features, data.group, fold)
    expected = np.concatenate([parts[m] for m in data.complete], axis=1)
    np.testing.assert_allclose(got[""].matrix, expected, rtol=1e-4, atol=1e-5)
    assert samples == 2 * (96 // 24) * 24
    assert {"recall@1/video-audio", "effective_rank/text", "uniformity/video"} <= set(measures)


def test_scores_groups_and_predictions_of_a_cell_agree(sets):
    data = sets["two"]
    config = SIZES.apply(presets.build("contrast_cluster", seed=1, modalities=data.complete))
    outcome = run(Cell("pretrained", data.complete, config), data)
    tested = data.protocol.test_rows
    for fraction in JUDGING.fractions:
        predicted = outcome.arrays[f"predicted/{fraction!r}"]
        assert predicted.shape == (2 if fraction < 1 else 1, len(data.group))
        assert (np.delete(predicted, tested, axis=1) == -1).all()
        hits = (predicted == outcome.arrays["target"])[:, tested].mean(axis=0)
        assert outcome.metrics[f"accuracy@{fraction:g}"] == pytest.approx(hits.mean())
        own = outcome.groups[f"accuracy@{fraction:g}"]
        for group in ("7", "8"):
            assert own[group] == pytest.approx(hits[data.protocol.groups[tested] == group].mean())
        recalls = [outcome.metrics[f"recall/{name}@{fraction:g}"] for name in ("calm", "happy")]
        assert outcome.metrics[f"uar@{fraction:g}"] == pytest.approx(np.mean(recalls))
    assert outcome.groups["rows"] == {"7": 16.0, "8": 16.0}
    assert {"recall@1/video-audio", "effective_rank/video", "uniformity/audio"} <= outcome.metrics.keys()
    assert outcome.cost["seconds"] > 0 and outcome.cost["peak_memory_bytes"] > 2**20
    assert run(Cell("pretrained", data.complete, config), data).metrics == outcome.metrics


def test_a_raw_row_is_what_an_evaluation_has_of_that_name(sets):
    """Each by scikit-learn: both blocks standardised on training rows, divided by the square root of their widths."""
    data = sets["two"]
    (fold,) = data.protocol.folds
    scaled = data.standardised(data.complete, fold)
    labelled = fold.labelled[1.0][0]
    y, groups = data.protocol.target.values, data.protocol.groups
    inner = group_folds(groups[labelled], 3, groups[fold.train_rows])

    def by_hand(x):
        """C by three inner folds over groups, then the accuracy of each row."""

        def fitted(c, rows):
            return LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x[rows], y[rows])

        held = {
            c: np.mean(
                [
                    fitted(c, labelled[inner != i]).score(x[labelled[inner == i]], y[labelled[inner == i]])
                    for i in range(3)
                ]
            )
            for c in STRENGTHS
        }
        best = min(held, key=lambda c: (-round(held[c], 12), c))
        return held[best], fitted(best, labelled).predict(x[fold.test_rows])

    blocks = [scaled[m].astype(np.float64) for m in data.complete]
    balanced = np.hstack([b * np.sqrt(sum(x.shape[1] for x in blocks) / (len(blocks) * b.shape[1])) for b in blocks])
    truth = y[fold.test_rows]
    outcome = run(Cell("raw balanced", data.complete), data)
    guess = by_hand(balanced)[1]
    assert outcome.metrics["accuracy@1"] == pytest.approx((guess == truth).mean())
    assert outcome.metrics["f1_macro@1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    names = ("calm", "happy")
    for name, row in zip(names, confusion_matrix(truth, guess), strict=True):
        expected = {other: float(n) for other, n in zip(names, row, strict=True) if n}
        assert outcome.groups[f"confusion/{name}@1"] == expected
    each = [by_hand(b) for b in blocks]
    at = max(range(len(each)), key=lambda number: each[number][0])
    found = run(Cell("best single modality", data.complete), data)
    assert found.metrics["accuracy@1"] == pytest.approx((each[at][1] == truth).mean())
    assert found.groups["choices@1"] == {data.complete[at]: 1.0} and "choices@1" not in outcome.groups
    constant = run(Cell("majority", data.complete, method="majority"), data)
    assert constant.metrics["uar@1"] == pytest.approx(0.5) and constant.groups["class_rows"] == {
        "calm": 16,
        "happy": 16,
    }
    alone = replace(data, complete=("video",))
    assert raw_rows(alone, ("raw", "raw_balanced", "rbf_machine")) == [("raw", "rbf_machine")]
    every = raw_rows(data, ("all",))
    assert {("raw, block weights chosen", "probe"), ("raw balanced", "late_fusion")} <= set(every)
    outcome = run(Cell("raw balanced", data.complete, method="shrinkage_lda"), data)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(balanced[labelled], y[labelled])
    assert outcome.metrics["accuracy@1"] == pytest.approx(lda.score(balanced[fold.test_rows], truth))


def test_a_representation_beside_raw_features_has_half_of_the_variance(sets):
    data = sets["two"]
    config = SIZES.apply(presets.build("contrast_cluster", seed=1, modalities=data.complete))
    (fold,) = data.protocol.folds
    systems, _, _ = represent(Cell("pretrained", data.complete, config), data, fold)
    assert set(systems) == {"", "with_raw/"}
    both = systems["with_raw/"]
    columns, factors = both.columns("halves")
    train = both.matrix[fold.train_rows][:, columns]
    spread = (train / train.std(axis=0) * factors).var(axis=0)  # as the probe standardises
    width = 2 * TINY["representation_dim"]
    np.testing.assert_allclose([spread[:width].sum(), spread[width:].sum()], len(columns) / 2)
    features = data.standardised(data.complete, fold)
    np.testing.assert_allclose(both.matrix[:, width:], np.hstack([features[m] for m in data.complete]))
    outcome = run(Cell("pretrained", data.complete, config), data)
    alone = run(Cell("pretrained", data.complete, config), replace(data, judging=replace(JUDGING, with_raw=False)))
    beside = {name for name in outcome.metrics if name.startswith("with_raw/")}
    assert {name.removeprefix("with_raw/") for name in beside} <= set(alone.metrics)
    assert {name: value for name, value in outcome.metrics.items() if name not in beside} == alone.metrics
    predicted = outcome.arrays["with_raw/predicted/1.0"][0, fold.test_rows]
    hits = predicted == data.protocol.target.values[fold.test_rows]
    assert outcome.metrics["with_raw/accuracy@1"] == pytest.approx(hits.mean())
    scaled = replace(data, judging=replace(JUDGING, block_scales="chosen"))
    chosen = represent(Cell("untrained", data.complete, config), scaled, fold)[0][""].choices
    assert {"plain", "video leading", "audio leading", "video alone", "audio alone"} <= set(chosen)


def test_a_folder_of_a_version_with_fewer_settings_goes_on(folders, tmp_path):
    mine = job(folders, output=str(tmp_path), name="first")
    acquire_folder(mine)
    path = mine.folder / "ablation.json"
    there = json.loads(path.read_text())
    for name in ("class_weights", "select_by", "block_scales"):
        del there["judging"][name]
    path.write_text(json.dumps(there))
    acquire_folder(mine)
    with pytest.raises(ValueError, match=r"judging\.class_weights: None there, 'balanced' now"):
        acquire_folder(replace(mine, judging=replace(JUDGING, class_weights="balanced")))


def test_cells_that_were_judged_without_raw_features_beside_are_run_again(folders, sets, tmp_path, capsys):
    mine = job({"two": folders["two"]}, sections=("combinations",), output=str(tmp_path), name="first", dry_run=True)
    cells = plan(mine, [sets["two"]]).cells
    ledger = Ledger.open(tmp_path / "first")
    for cell in cells:
        beside = {"with_raw/accuracy@1": 0.5} if "seed 1" in cell.title else {}
        ledger.append(
            Record(cell.key, "cell", "finished", cell.cell.content(), cell.tags, metrics={"accuracy@1": 0.5, **beside})
        )
    again = sum(cell.cell.system == "pretrained" and "seed 2" in cell.title for cell in cells)
    assert 0 < again < len(cells)
    for with_raw, count in ((False, 0), (True, again)):
        ablate.ablate(replace(mine, judging=replace(JUDGING, with_raw=with_raw)))
        assert f"\n{count} to run: " in capsys.readouterr().out


def test_a_raw_cell_is_the_probe_of_standardised_features(sets):
    data = sets["three"]
    outcome = run(Cell("raw", ("audio", "video")), data)
    shown = fold_accuracy(data.protocol, outcome.arrays["predicted/1.0"])
    assert outcome.metrics["accuracy@1"] == pytest.approx(shown.mean)
    assert outcome.metrics["accuracy@1"] > 0.75  # the class shows in both
    assert outcome.cost["samples"] == 0


def test_cost_is_told_from_cells_done_before_else_from_a_probe(folders, sets):
    planned = plan(job({"two": folders["two"]}), [sets["two"]])
    probed = estimate(planned.cells, sets, {})
    assert set(probed) == {p.key for p in planned.cells} and min(probed.values()) > 0
    trained = next(p for p in planned.cells if p.cell.system == "pretrained")
    raw = next(p for p in planned.cells if p.cell.system == "raw")
    assert probed[trained.key] > probed[raw.key]
    tags = {"dataset": "two", "system": "pretrained"}
    done = {
        str(i): Record(str(i), "cell", "finished", tags=tags, cost={"seconds": s}) for i, s in enumerate((10.0, 30.0))
    }
    known = estimate(planned.cells, sets, done)
    assert known[trained.key] == 20.0 and known[raw.key] < 20.0


def test_a_cell_chosen_by_recall_has_the_recall_of_each_unit(folders, tmp_path, capsys):
    data = open_set("two", folders["two"], replace(JUDGING, select_by="uar"))
    outcome = run(Cell("raw balanced", data.complete), data)
    tested, names = data.protocol.test_rows, data.protocol.target.classes
    y, units = data.protocol.target.values[tested], data.protocol.groups[tested]
    for fraction in JUDGING.fractions:
        right = (outcome.arrays[f"predicted/{fraction!r}"][:, tested] == y).mean(axis=0)
        for k, name in enumerate(names):
            found = outcome.groups[f"recall/{name}@{fraction:g}"]
            expected = {u: right[(units == u) & (y == k)].mean() for u in ("7", "8")}
            assert found == pytest.approx({u: share for u, share in expected.items() if share > 0})
            assert outcome.groups[f"rows/{name}"] == {u: float(((units == u) & (y == k)).sum()) for u in ("7", "8")}
    mine = job({"two": folders["two"]}, sections=("baselines",), output=str(tmp_path), name="by", dry_run=True)
    mine = replace(mine, judging=replace(JUDGING, select_by="uar"))
    cells = [c for c in plan(mine, [data]).cells if c.cell.config is None]
    assert {c.tags["score"] for c in cells} == {"uar"}
    ledger = Ledger.open(tmp_path / "by")  # as an earlier version left it, without recalls by unit, but for one
    for number, cell in enumerate(cells):
        groups = outcome.groups if number == 0 else {}
        ledger.append(Record(cell.key, "cell", "finished", cell.cell.content(), cell.tags, outcome.metrics, groups))
    ablate.ablate(mine)
    assert f"{len(cells) - 1} cells are run again: they were judged without recall by unit" in capsys.readouterr().out


def test_test_rows_in_the_training_view_are_refused_by_name(tmp_path):
    """They are not left out of training without a word."""
    manifest = Manifest.open(write_labelled(tmp_path / "both", ("video", "audio"), published=True))
    View.where(manifest, np.ones(manifest.rows, dtype=bool), "train").save()
    with pytest.raises(
        ValueError, match=r"views 'train' and 'test': 2 of 8 .*are in training and in test.*--split-units.x"
    ):
        open_set("x", manifest.folder, JUDGING)
