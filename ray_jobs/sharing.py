"""A finished run as a folder in a model hub's layout: what `ray_jobs.export` does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import conclugen
from conclugen import portable
from conclugen.common import uris
from conclugen.common.atomic import atomic_folder, remove_remnants, write_text
from conclugen.common.locks import folder_held
from conclugen.common.paths import absolute
from conclugen.common.reading import UnreadableError, inside, open_regular, read_json, read_mapping
from conclugen.common.tables import markdown, markdown_head, markdown_item, markdown_row
from conclugen.export import CARD, DOCUMENT, TENSORS
from ray_jobs.extraction.plan import recipe_of
from ray_jobs.options.export import ExportJob
from ray_jobs.provenance import stamp_of
from ray_jobs.run_folder import RunFolder

README = "README.md"
_LARGEST_CARD = 1 << 20


def share(job: ExportJob) -> Path:
    """Write the folder, whole or not at all; returns it. ValueError for a run that is not finished, or a folder that
    holds something else, or that another process exports to."""
    output = absolute(job.output, "output")
    run = RunFolder.finished(output, job.run)
    folder = absolute(job.folder or run.path / "export", "folder")
    # Beside the folder, which is replaced as a whole.
    with folder_held(folder.parent, "an export is being written here", "another --folder", file=f".{folder.name}.lock"):
        _write(job, run, folder)
    conclugen.load(folder)
    return folder


def _write(job: ExportJob, run: RunFolder, folder: Path) -> None:
    if folder.exists():
        ours = folder.is_dir() and {DOCUMENT, README} <= {path.name for path in folder.iterdir()}
        if not (job.overwrite and ours):
            remedy = "give --overwrite to replace it" if ours else "it is not an export: choose another --folder"
            raise ValueError(f"folder: {folder} is there; {remedy}")
    # The run may be somebody else's: what its links lead to is not shared with it.
    for path in (run.model / DOCUMENT, run.model / TENSORS, run.model / CARD, run.config):
        inside(run.path, path)
    embedder = conclugen.load(run.model)  # whole and undamaged
    remove_remnants(folder)
    with atomic_folder(folder) as whole:
        for name in (DOCUMENT, TENSORS):
            shutil.copyfile(run.model / name, whole / name)
        write_text(whole / README, card(job, run))
        if job.programs:
            portable.write(embedder, whole)


def card(job: ExportJob, run: RunFolder) -> str:
    """The hub's card: metadata that it reads, then a text from the run itself."""
    try:
        return _card(job, run)
    except UnreadableError:  # which begins with the file
        raise
    except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError) as cause:
        raise ValueError(f"{run.path}: holds something else than a run writes ({cause!r:.200})") from cause


def _card(job: ExportJob, run: RunFolder) -> str:
    document = read_mapping(run.model / DOCUMENT)
    info = document["info"]
    listed = [inside(run.path, path) for path in sorted(run.evaluation.glob("[!.]*/scores.json"))]
    scores = [read_json(path, nan=True) for path in listed]
    with open_regular(run.model / CARD, _LARGEST_CARD) as file:
        made = file.read().decode()
    encoders = _encoders(info)
    head: dict[str, Any] = {
        "library_name": "conclugen",
        "pipeline_tag": "feature-extraction",
        "tags": ["self-supervised", "multi-modal", *document["widths"], str(document["config"]["preset"])],
        "model-index": [{"name": job.run, "results": [one for each in scores for one in _results(each)]}],
    }
    if job.licence is not None:
        head["license"] = job.licence
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        *filter(None, [stamp_of(info)]),
        made.strip(),
        "## Licence\n\n"
        + (
            f"The weights: {markdown(job.licence)}."
            if job.licence
            else "None is stated: ask whoever shares this model."
        )
        + " The frozen encoders below have licences of their own, and the training data has its terms.",
        "## Encoders whose features it takes\n\n" + "\n".join(encoders or ["Not known: it was trained on features."]),
        "## Training data\n\n" + "\n".join(_data(run, info)),
        "## Measured\n\n" + ("\n\n".join(map(_measured, scores)) or "It was not evaluated on labels."),
    ]
    return uris.scrub("\n\n".join(parts)) + "\n"


def _encoders(info: Mapping[str, Any]) -> list[str]:
    recipe = recipe_of(info)
    made = [] if recipe is None else recipe.encoders
    return [
        markdown_item(
            f"{item['name']} ({item['column']}, {item['width']}): licence {item.get('licence', 'not stated')}"
        )
        for item in made
    ]


def _data(run: RunFolder, info: Mapping[str, Any]) -> list[str]:
    config = run.load_config()
    data, training = config.get("data", {}), config.get("run", {})
    facts = {
        "data set": Path(str(data.get("folder", "not known"))).name,
        "digest of its shards": info.get("data", {}).get("data.manifest", "not known"),
        "view": data.get("view", "not known"),
        "optimiser steps, epochs": f"{info['steps']}, {info['epochs']:g}",
        "code": training.get("commit") or "not known",
    }
    return [markdown_item(f"{name}: {value}") for name, value in facts.items()]


def _results(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pretrained heads with the most labels, as the hub's metadata has results."""
    main = scores["main_score"]
    own = [cell for cell in scores["cells"] if cell["system"] == "pretrained" and cell["scores"].get(main) is not None]
    job = scores["job"]
    return [
        {
            "task": {"type": "feature-extraction", "name": f"linear probe of {job['label']}"},
            "dataset": {"name": Path(job["data"]["folder"]).name, "type": Path(job["data"]["folder"]).name},
            "metrics": [{"type": main, "value": cell["scores"][main], "name": f"{cell['fraction']:.0%} of labels"}],
        }
        for cell in own
    ]


def _measured(scores: Mapping[str, Any]) -> str:
    """Every system at every share of the labels, and the verdict."""
    main, cells = scores["main_score"], scores["cells"]
    shares = sorted({cell["fraction"] for cell in cells})
    lines = [markdown(f"{scores['job']['label']}: {scores.get('verdict', '')}"), ""]
    lines += markdown_head([main, *(f"{share:.0%} of labels" for share in shares)])
    found = {(cell["system"], cell["method"], cell["fraction"]): cell for cell in cells}
    for system, method in dict.fromkeys((cell["system"], cell["method"]) for cell in cells):
        values = []
        for share in shares:
            cell = found.get((system, method, share), {"scores": {}, "intervals": {}})
            value, ends = cell["scores"].get(main), cell["intervals"].get(main)
            text = "—" if value is None else f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
            values.append(text)
        lines.append(markdown_row([system if system == method else f"{system}, {method}", *values]))
    return "\n".join(lines)
