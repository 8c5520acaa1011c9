"""One fold of each set, computed again from the files by NumPy and scikit-learn alone, beside what the judge makes of
it: folds, draws of labels, standardisation, block scales, inner folds, strength, class weights and score."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from benchmarks.reproduce import differences
from benchmarks.reproduce.evaluation import evaluate
from benchmarks.reproduce.feature_files import find_protocol, read_meld, read_mosi, read_ravdess
from benchmarks.reproduce.reproduce import raw_systems
from conclugen.evaluation.features import normalise

SEED, GRID = 229, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def drawn(rows, y, fraction):
    """The first draw of a share of the rows, by class, at least three of each."""
    if fraction == 1:
        return rows
    generator = np.random.Generator(np.random.PCG64([SEED, 0, round(fraction * 1e9)]))
    parts = []
    for label in np.unique(y[rows]):
        own = rows[y[rows] == label]
        parts.append(generator.choice(own, min(len(own), max(3, round(fraction * len(own)))), replace=False))
    return np.sort(np.concatenate(parts))


def standardised(block, rows):
    """By the mean and deviation of these rows; a constant column is centred alone."""
    known = block.astype(np.float64)
    deviation = known[rows].std(axis=0)
    deviation[deviation <= 1e-9 * np.abs(known[rows]).max(axis=0)] = 1.0
    return (known - known[rows].mean(axis=0)) / deviation


def recomputed(blocks, y, groups, train, test, fraction, grid, balanced, by_speaker):
    """Predicted classes of the test rows: modalities divided by the root of their width, C by three inner folds."""
    parts, columns = [], sum(block.shape[1] for block in blocks)
    for block in blocks:
        whole = standardised(block, train)
        if by_speaker:
            for speaker in np.unique(groups):
                own = groups == speaker
                whole[own] = standardised(block[own], slice(None))
        parts.append(whole * np.sqrt(columns / (len(blocks) * block.shape[1])))
    X, rows = np.hstack(parts), drawn(train, y, fraction)
    inner = np.searchsorted(np.unique(groups[train]), groups[rows]) % 3
    score = balanced_accuracy_score if balanced else accuracy_score
    counts = np.bincount(y[rows])
    # With two classes scikit-learn fits one vector w, the judge's softmax two, w / 2 and -w / 2: half of the penalty.
    vectors = 2 if len(counts) == 2 else 1
    # The weights are of all labelled rows, in the inner folds too.
    weight = dict(enumerate(len(rows) / (len(counts) * counts))) if balanced else None

    def fitted(C, chosen):
        return LogisticRegression(C=vectors * C, class_weight=weight, tol=1e-7, max_iter=20_000).fit(
            X[chosen], y[chosen]
        )

    means = []
    for C in grid:
        models = [fitted(C, rows[inner != fold]) for fold in range(3)]
        left_out = [rows[inner == fold] for fold in range(3)]
        means.append(np.mean([score(y[r], m.predict(X[r])) for m, r in zip(models, left_out, strict=True)]))
    return fitted(grid[int(np.argmax(means))], rows).predict(X[test])


def arrays(path):
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def ravdess(folder):
    listed = json.loads(find_protocol(folder).read_text())
    a = arrays(folder / "ravdess_features.npz")
    blocks = [a["visual_au35"], np.hstack([a["audio_egemaps88"], a["audio_mfcc259"]])]
    tested = np.isin(a["actor"], listed["folds"][0]["test_actors"])
    data = read_ravdess(folder, draws=1, draw_seed=SEED)
    return data, blocks, a["emotion"], a["actor"], tested, tuple(listed["C_grid"]), False


def mosi(folder, table="mosi_audio_text"):
    a = arrays(folder / "mosi_features.npz")
    videos = np.asarray([name.rpartition("_")[0] for name in a["ids"].tolist()])
    columns = {"mosi_text": ["text_minilm384"], "mosi_audio_text": ["audio_opensmile73", "text_minilm384"]}
    columns["mosi_all"] = ["visual_cnn100", *columns["mosi_audio_text"]]
    blocks = [a[name] for name in columns[table]]
    return read_mosi(folder, 1, table, SEED), blocks, a["positive"], videos, a["split"] == "test", GRID, False


def meld(folder):
    a = arrays(folder / "meld_dev_features.npz")
    blocks = [a["visual_au105"], a["audio_mel300"], a["text_minilm384"]]
    dialogues = a["dialogue"].astype(str)
    tested = np.isin(dialogues, np.unique(dialogues)[::4])
    return read_meld(folder, 1, seed=SEED), blocks, a["emotion"], dialogues, tested, GRID, True


def mosi_text(folder):
    return mosi(folder, "mosi_text")


def mosi_all(folder):
    return mosi(folder, "mosi_all")


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")  # an inner fold may lack a rare class
@pytest.mark.parametrize(
    ("read", "mode", "fraction"),
    [
        (ravdess, "inductive", 0.03),
        (mosi, "inductive", 0.03),
        (meld, "inductive", 0.1),
        slow(ravdess, "speaker_normalised", 0.1),
        slow(mosi_text, "inductive", 0.1),
        slow(mosi_all, "inductive", 0.1),
        *(slow(read, "inductive", 1.0) for read in (ravdess, mosi, meld)),
    ],
)
def test_a_fold_of_balanced_raw_features_is_what_scikit_learn_makes_of_it(real_data, read, mode, fraction):
    """Of every table of the page. The same class for all rows but those on an edge that another solver's last digits
    decide."""
    data, blocks, y, groups, tested, grid, balanced = read(real_data)
    fold = data.protocol.folds[0]
    train, test = np.flatnonzero(~tested), np.flatnonzero(tested)
    np.testing.assert_array_equal(fold.test_rows, test)
    by_speaker = mode == "speaker_normalised"
    expected = recomputed(blocks, y, groups, train, test, fraction, grid, balanced, by_speaker)

    single = data.protocol.only(fold)
    features = normalise(data.features, mode, fold.train_rows, data.protocol.groups)
    name = "raw balanced" if len(data.shown) > 1 else "raw"
    row = next(system for system in raw_systems(data.shown) if system.name == name)
    shown = {m: features[m] for m in data.shown}
    found = evaluate(single, row.blocks(shown, {}), draws=1, standardized=True)
    predicted = found.predicted[fraction][0, test]
    assert (predicted == expected).mean() >= 0.99
    for measure, score in (("accuracy", accuracy_score), ("uar", balanced_accuracy_score)):
        printed = differences.mean(single, found, fraction, measure)
        assert printed == pytest.approx(score(y[test], predicted))
        assert printed == pytest.approx(score(y[test], expected), abs=0.01)
