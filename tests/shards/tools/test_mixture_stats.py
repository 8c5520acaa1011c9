"""`python -m shards stats A B`: shares, modalities, speakers and keys in common, counted one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.commands import STATS
from shards.format.schema import Column, Sample, Schema
from shards.format.writer import ShardWriter
from tests.shards.reading import test_mixed_reader as corpora


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("stats")
    return {name: corpora.write(folder, name).folder for name in corpora.COLUMNS}


def test_a_mixture_is_described_before_any_work(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    weights = "own=1,tv=2,vox=1"
    assert STATS.main([*folders.values(), "--weight", weights, "--global-batch", "40", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: corpus["rows"] for name, corpus in found["corpora"].items()} == corpora.ROWS
    assert [corpus["share"] for corpus in found["corpora"].values()] == [0.25, 0.5, 0.25]
    for name, corpus in found["corpora"].items():
        for modality, own in corpus["modalities"].items():
            values = [corpora.value(name, modality, row) for row in range(corpora.ROWS[name])]
            assert own["present"] == sum(value is not None for value in values)
            assert own["width"] == corpora.COLUMNS[name][modality].width
        assert corpus["speakers"] == (0 if name == "tv" else 3)
    # Keys are k0, k1, ... in each corpus: as many in common as the smaller one has.
    assert found["equal_keys"] == {"own tv": 23, "own vox": 23, "tv vox": 40}
    assert found["equal_speaker_names"] == {"own tv": 0, "own vox": 3, "tv vox": 0}
    assert found["widths_differ"] == found["equal_data"] == [] and all(
        corpus["fits"] for corpus in found["corpora"].values()
    )

    assert STATS.main([*folders.values(), "--weight", "own=8,tv=1,vox=1", "--global-batch", "40"]) == 0
    told = capsys.readouterr().out
    assert "corpus 'own' has fewer rows than its share of a batch" in told
    assert "own and vox have 3 speaker name(s) in common" in told and "80.0%" in told


def test_columns_speakers_and_copies_of_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `data.sources` names them: one corpus calls its columns and its speakers otherwise, another is a copy."""
    folders = {}
    for name, columns, speakers in (("tv", ("video", "group"), 2), ("web", ("pictures", "meta.person"), 3)):
        schema = Schema((Column(columns[0], 2), Column("other", 5)), grouped=True, meta=("person",))
        with ShardWriter(tmp_path / name, schema) as writer:
            for row in range(8):
                features = {columns[0]: None if row == 3 else np.full(2, row, np.float32), "other": np.zeros(5)}
                said = f"{name} {row % speakers}" if row else "both"
                writer.append(Sample(f"{name}{row}", features, group=said, meta={"person": f"x{said}"}))
        folders[name] = str(tmp_path / name)
    shutil.copytree(folders["tv"], tmp_path / "copy")
    options = ["--speaker", "web=meta.person", "--modalities", "{web: {video: [pictures]}}", "--json", "-"]
    assert STATS.main([*folders.values(), f"again={tmp_path / 'copy'}", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    web = found["corpora"]["web"]
    assert web["modalities"] == {"video": {"columns": ["pictures"], "width": 2, "present": 7}}
    assert web["speakers"] == 4 and found["corpora"]["tv"]["speakers"] == 3
    assert found["equal_speaker_names"] == {"tv web": 0, "tv again": 3, "web again": 0}, "web's begin with an x"
    assert found["equal_data"] == ["tv again"] and found["equal_keys"]["tv web"] == 0
    assert STATS.main([*folders.values(), "--speaker", "web=meta.persona"]) == 2
    assert "corpus 'web': column 'meta.persona' is unknown" in capsys.readouterr().err


def test_one_folder_is_described_as_ever(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert STATS.main([folders["vox"]]) == 0
    assert "61 rows in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a={vox}", "a={tv}"], ["corpus 'a' is named twice"]),
        (["a={vox}", "b={vox}/"], ["found", "twice"]),
        (["a b={vox}", "{tv}"], ["corpus 'a b'", "1 to 40 letters"]),
        (["{vox}", "--weight", "vox=1"], ["weight", "found one"]),
        (["{vox}", "{tv}", "--view", "train"], ["corpus 'vox'", "train"]),
        (["{vox}", "{tv}", "--global-batch", "0"], ["global-batch", "at least 1, got 0"]),
        (["{vox}", "{tv}", "--weight", "vox=1"], ["corpus 'tv'", "found None, expected a number above 0"]),
        (["{vox}", "{tv}", "--weight", "voks=1,tv=1"], ["'voks' is not one of these corpora", "did you mean 'vox'"]),
    ],
)
def test_wrong_input(
    folders: dict[str, str], arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert STATS.main([argument.format(**folders) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert Path(folders["vox"]).is_dir()
