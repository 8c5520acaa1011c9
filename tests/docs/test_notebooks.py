"""The notebooks of docs/notebooks run from the first cell to the last, in a kernel, and find what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import conclugen

FOLDER = Path(__file__).resolve().parents[2] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
IMPORTED = r"(?:from|import) conclugen\.(\w+)"


def test_they_are_kept_without_what_they_printed() -> None:
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
        for cell in cells:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None, path.name
                source = "".join(cell["source"])
                compile(source, path.name, "exec")
                used, imported = ({*re.findall(p, source)} for p in (r"\bconclugen\.(\w+)", IMPORTED))
                assert used - imported <= {*dir(conclugen)}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    if path.stem == "first_look":
        first, last = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", said)[0])
        trained, before, chance = map(
            float, re.findall(r"trained ([\d.]+), untrained ([\d.]+), chance ([\d.]+)", said)[0]
        )
        assert last < first and trained > 3 * chance and trained > before
        assert any("image/png" in output.get("data", {}) for output in outputs)
    else:
        vectors, raw = map(float, re.findall(r"vectors ([\d.]+), raw features ([\d.]+)", said)[0])
        assert min(vectors, raw) > 0.4  # of three classes
        difference, low, high = map(float, re.findall(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]", said)[0])
        assert low <= difference <= high and difference == pytest.approx(vectors - raw, abs=2e-3)
