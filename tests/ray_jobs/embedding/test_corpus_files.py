"""A corpus's files without Ray: the columns of rows that lack modalities, and what is counted of the files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.embedding.corpus import RowEmbedder, _Parts

CLASSES = ("calm", "happy")


def represent(features: dict[str, np.ndarray], fusion: str) -> tuple[np.ndarray, np.ndarray]:
    """A number for each modality, 0 where it is missing, and three more; probabilities that name the row."""
    assert fusion == "concat"
    sums = [np.nansum(x, axis=1) for x in features.values()]
    rows = len(sums[0])
    return np.stack([*sums, *np.ones((3, rows))], axis=1).astype(np.float32), np.arange(2.0 * rows).reshape(rows, 2)


def test_rows_without_any_modality_have_no_embedding_and_the_others_their_own() -> None:
    probe: Any = SimpleNamespace(classes=CLASSES)
    rows = RowEmbedder("run", None, "concat", SimpleNamespace(represent=represent, probe=probe))  # type: ignore[arg-type]
    missing = np.nan
    video = np.array([[1, 2], [missing, missing], [missing, missing], [3, 4]])
    audio = np.array([[5, 0, 0], [6, 1, 0], [missing] * 3, [missing] * 3])
    found = {name: column.to_pylist() for name, column in rows.columns({"video": video, "audio": audio}).items()}
    assert found == {
        "embedding": [[3, 5, 1, 1, 1], [0, 7, 1, 1, 1], None, [7, 0, 1, 1, 1]],
        "p.calm": [0, 2, None, 6],
        "p.happy": [1, 3, None, 7],
        "present.video": [True, False, False, True],
        "present.audio": [True, True, False, False],
    }


def test_rows_are_counted_with_those_that_have_no_embedding(tmp_path: Path) -> None:
    for name, reasons in {"a": [None, "damaged", None], "c": ["no face"]}.items():
        pq.write_table(pa.table({"reason": pa.array(reasons, pa.string())}), tmp_path / f"{name}.parquet")
    parts = _Parts(tmp_path, ["a", "b", "c"], [3, 0, 1])
    assert parts.counted() == (4, 2), "of a shard without rows no file is asked for"
    parts.counts[2] = 2
    with pytest.raises(RuntimeError, match=r"5 clips came in, but .* holds 4 rows"):
        parts.counted()
