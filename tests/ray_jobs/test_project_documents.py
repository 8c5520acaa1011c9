"""Licence, citation and model card agree with the project they speak of."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_citation_and_licence_agree_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "what the format asks for"
    assert citation["version"] == project["version"] and citation["license"] == project["license"] == "Apache-2.0"
    [paper] = citation["references"]
    assert paper["identifiers"][0]["value"].endswith("arXiv.2404.10904")
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_model_card_states_what_is_prohibited():
    card = " ".join((ROOT / "MODEL_CARD.md").read_text().split())
    assert "Article 5(1)(f)" in card and "workplace and education institutions is prohibited" in card
    assert "CC BY-NC-SA 4.0" in card and "CC BY 4.0" in card
