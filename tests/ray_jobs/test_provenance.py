"""What a paper cites: BibTeX of what was used, read back, and the stamp on results of rendered faces."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from conclugen.encoders import registry
from ray_jobs import provenance
from ray_jobs.provenance import DATA_SETS, ENCODERS, STAMP, bibliography, origins, stamp_of
from shards.adapters import ADAPTERS

ROOT = Path(__file__).resolve().parents[2]
_ENTRY = re.compile(r"@(article|inproceedings|misc)\{([a-z0-9-]+),\n((?:  .*\n|   +.*\n)+)\}")


def entries(text: str) -> dict[str, dict[str, str]]:
    """Key -> fields, of a file that is nothing but entries; braces must match."""
    assert not _ENTRY.sub("", text).strip(), _ENTRY.sub("", text)
    found = {}
    for kind, key, body in _ENTRY.findall(text):
        depth = 0
        for before, character in zip(" " + body, body, strict=False):
            depth += (character == "{") - (character == "}") if before != "\\" else 0
            assert depth >= 0
        assert depth == 0, key
        fields = dict(re.findall(r"(\w+) = \{(.*?)\},\n", body, re.DOTALL))
        needed = {"article": "journal", "inproceedings": "booktitle"}.get(kind, "title")
        assert {"title", needed} <= set(fields), key
        assert key not in found
        found[key] = fields
    return found


def test_every_set_and_encoder_of_the_project_has_a_published_work() -> None:
    sets = [name for name in ADAPTERS if name not in ("folder", "webdataset")]
    encoders = [name for name in registry.ENCODERS if ":" not in name and not name.startswith("random-")]
    found = entries(bibliography({ENCODERS: " ".join(encoders), DATA_SETS: " ".join(sets)}))
    # The text model is whatever the user names; the sentence encoder and the published audio encoder have two works.
    # Beside the method there is this software, which has no year before it is released.
    assert len(found) == 2 + len(sets) + len(encoders) + 2
    undated = ("text", "conclugen")
    assert all("author" in fields and "year" in fields for key, fields in found.items() if key not in undated)
    assert found["halawa2024conclugen"]["eprint"] == "2404.10904"


def test_what_is_not_published_here_is_named_with_where_it_is_had() -> None:
    tags = {
        ENCODERS: "hf-audio:facebook/wav2vec2-base@layers=all hf-text:/models/own_50% gone",
        DATA_SETS: "CMU-MOSEI $mine",
    }
    found = entries(bibliography(tags))
    assert (
        r"huggingface.co/facebook/wav2vec2-base}" in found["hf-audio-facebook-wav2vec2-base-layers-all"]["howpublished"]
    )
    assert found["hf-text-models-own-50"]["title"] == r"{/models/own\_50\%}" and "gone" in found
    assert found["zadeh2018mosei"]["year"] == "2018" and found["mine"]["title"] == r"{\$mine}"
    assert entries(bibliography({})).keys() == {"halawa2024conclugen", "conclugen"}


def test_origins_are_what_manifests_say() -> None:
    item = {"name": "prosody", "column": "a", "modality": "audio", "width": 3}
    info = {"features": {"encoders": [item], "crop": "none", "low_confidence": False}, "set": "My clips"}
    assert origins([info, info, {"set": None}]) == {ENCODERS: "prosody", DATA_SETS: "My-clips"}
    assert origins([{"features": {"encoders": "damaged"}}]) == {}
    text = item | {"name": "text", "source": "https://huggingface.co/j-hartmann/emotion-english-distilroberta-base"}
    tags = origins([{"features": {"encoders": [text], "crop": "none", "low_confidence": False}}])
    assert entries(bibliography(tags)).keys() == {"halawa2024conclugen", "conclugen", "hartmann2022emotionenglish"}
    local = {"features": {"encoders": [text | {"source": "my-model"}], "crop": "none", "low_confidence": False}}
    assert origins([local]) == {ENCODERS: "text"}
    assert origins([{"set": "demo", "rendered": True}]) == {DATA_SETS: "demo", "rendered": "yes"}


@pytest.mark.parametrize(
    ("infos", "stamp"), [([{}], ""), ([{"rendered": True}], STAMP), ([{}, {"rendered": True}], STAMP)]
)
def test_results_of_rendered_faces_say_so(infos: list[dict[str, bool]], stamp: str) -> None:
    assert stamp_of(*infos) == stamp


def test_the_software_is_cited_as_its_own_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    found = entries(bibliography({}))["conclugen"]
    assert found["title"] == f"{{{about['title']}}}" and found["author"] == f"{{{about['authors'][0]['name']}}}"
    assert found["note"] == f"Software, version {about['version']}" and "year" not in found
    [paper] = about["references"]
    method = entries(bibliography({}))["halawa2024conclugen"]
    assert method["title"] == paper["title"] and method["year"] == str(paper["year"])
    people = [f"{person['family-names']}, {person['given-names']}" for person in paper["authors"]]
    assert " ".join(method["author"].split()) == " and ".join(people)

    about |= {"authors": [{"given-names": "Ada", "family-names": "B & C"}], "date-released": "2027-01-02"}
    about |= {"version": "9", "doi": "10.1/x"}
    (tmp_path / "CITATION.cff").write_text(yaml.safe_dump(about))
    monkeypatch.setattr(provenance, "CLONE", tmp_path / "pyproject.toml")
    found = entries(bibliography({}))["conclugen"]
    assert (found["author"], found["year"], found["doi"]) == (r"B \& C, Ada", "2027", "10.1/x")
    assert found["note"] == "Software, version 9"


@pytest.mark.parametrize("text", [None, "authors: 3", "{", "title: x"])
def test_where_it_is_not_said_the_rest_is_cited(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "CITATION.cff").write_text(text)
    monkeypatch.setattr(provenance, "CLONE", tmp_path / "pyproject.toml")
    monkeypatch.setattr(
        provenance.importlib.metadata, "distribution", lambda _: SimpleNamespace(read_text=lambda _: None)
    )
    assert entries(bibliography({})).keys() == {"halawa2024conclugen"}


def test_an_installation_has_it_in_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `license-files` of pyproject.toml puts it there; `tests/test_wheel.py` sees that it does."""
    asked = []

    def read_text(name: str) -> str:
        asked.append(name)
        return (ROOT / "CITATION.cff").read_text()

    monkeypatch.setattr(provenance, "CLONE", tmp_path / "pyproject.toml")
    monkeypatch.setattr(provenance.importlib.metadata, "distribution", lambda _: SimpleNamespace(read_text=read_text))
    assert "conclugen" in entries(bibliography({})) and asked == ["licenses/CITATION.cff"]
