"""What is asked over HTTP: every field is checked, and told by name, before the model sees it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ray_jobs.serving.requests import RefusedError, answer, features_of

WIDTHS = {"video": 3, "audio": 2}


def body(features: Any, **more: Any) -> bytes:
    return json.dumps({"features": features, **more}).encode()


def test_rows_come_as_they_were_sent_and_what_is_missing_is_nan() -> None:
    sent = {"video": [[1, 2.5, -3e38], None], "audio": [None, [0, 1]]}
    found = features_of(body(sent), WIDTHS, 10)
    assert all(x.dtype == np.float32 for x in found.values())
    np.testing.assert_array_equal(found["video"], np.array([[1, 2.5, -3e38], [np.nan] * 3], np.float32))
    np.testing.assert_array_equal(found["audio"], np.array([[np.nan] * 2, [0, 1]], np.float32))
    for absent in ({"video": [[1, 2, 3]]}, {"video": [[1, 2, 3]], "audio": None}):
        found = features_of(body(absent), WIDTHS, 10)
        assert list(found) == ["video", "audio"] and np.isnan(found["audio"]).all() and found["audio"].shape == (1, 2)


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"", 400, "body: expected JSON ("),
        (b"\xff\xfe", 400, "body: expected JSON (text that is not UTF-8)"),
        (b'{"features": {"video": [[NaN, 1, 2]]}}', 400, "NaN is not JSON"),
        (b"[" * 5000 + b"]" * 5000, 400, "nested"),
        (b"[1, 2]", 400, "body: expected {"),
        (b"{}", 400, "body: expected {"),
        (body([[1]]), 400, "features: expected a mapping from modalities to rows, got [[1]]"),
        (
            body({"video": [[1, 2, 3]]}, feature=1),
            400,
            "body: unknown field 'feature', allowed: features; did you mean 'features'?",
        ),
        (body({"vidoe": [[1, 2, 3]]}), 400, "features: unknown modality 'vidoe'"),
        (body({}), 400, "equally many rows of each modality, 1 or more, got none"),
        (body({"video": None, "audio": None}), 400, "got none"),
        (body({"video": []}), 400, "got video 0"),
        (body({"video": [[1, 2, 3]], "audio": [[1, 2], [3, 4]]}), 400, "got video 1, audio 2"),
        (body({"video": {"0": [1, 2, 3]}}), 400, "features.video: expected a list of rows"),
        (body({"video": [[1, 2]]}), 400, "features.video[0]: expected 3 numbers or null, got 2 numbers"),
        (body({"video": [[1, 2, 3], 4]}), 400, "features.video[1]: expected 3 numbers or null, got 4"),
        (body({"video": [[1, "2", 3]]}), 400, "features.video[0][1]: expected a number in the range of float32"),
        (body({"video": [[1, 2, True]]}), 400, "features.video[0][2]: expected a number"),
        (body({"video": [[1, None, 3]]}), 400, "features.video[0][1]: expected a number"),
        (body({"video": [[1, 2, 1e39]]}), 400, "features.video[0][2]: expected a number"),
        (b'{"features": {"video": [[1, 2, 1e999]]}}', 400, "features.video[0][2]: expected a number"),
        (body({"video": [[1, 2, 10**400]]}), 400, "features.video[0][2]: expected a number"),
        (body({"video": [[1, 2, 3]] * 11}), 413, "features: must be at most 10 rows, got 11; send several requests"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(sent: bytes, status: int, said: str) -> None:
    with pytest.raises(RefusedError) as refused:
        features_of(sent, WIDTHS, 10)
    assert refused.value.status == status and said in str(refused.value), str(refused.value)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_an_answer_has_an_entry_for_each_row_and_null_where_nothing_is_there() -> None:
    present = {"video": np.array([True, False]), "audio": np.array([True, False])}
    nearer = {"video": np.array([0.25, np.nan])}
    found = answer(np.array([[1, 2], [0, 0]], np.float32), np.array([[0.5, 0.5], [0.1, 0.9]]), present, nearer, "ab")
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "vectors": [[1.0, 2.0], None],
        "probabilities": [{"a": 0.5, "b": 0.5}, None],
        "present": {"video": [True, False], "audio": [True, False]},
        "nearer": {"video": [0.25, None]},
    }
    assert set(answer(np.ones((2, 1), np.float32), None, present, {}, ())) == {"vectors", "present"}
