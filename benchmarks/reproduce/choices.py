"""What the choices of the `improved` recipe are worth: each undone alone, on the actors kept for choosing.

    python -m benchmarks.reproduce.choices --data FOLDER --output outputs/choices --results docs/choices.md

RAVDESS actors 1 to 20 train, actors 21 to 24 are judged (30 label draws at small shares); the actors that
`benchmarks.reproduce` tests are never judged here. Cells are kept, so that a killed run continues where it stopped.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.reproduce.differences import signed
from benchmarks.reproduce.evaluation import markdown, paired, table
from benchmarks.reproduce.feature_files import read_ravdess
from benchmarks.reproduce.reproduce import Cells, Settings, heads
from conclugen import PretrainConfig
from conclugen.common.atomic import write_text
from conclugen.evaluation.config import MODES

_ALL = "improved"
# Each changes one choice: (tasks left out, overrides).
VARIANTS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    _ALL: ((), {}),
    "negatives of all speakers": ((), {"tasks": {"contrastive": {"negatives": "all"}}}),
    "temperature 0.1": ((), {"tasks": {"contrastive": {"temperature": 0.1}}}),
    "uniform initialisation": ((), {"model": {"initialisation": "uniform"}}),
    "no masked inputs": ((), {"model": {"feature_mask": 0.0}}),
    "ReLU after the representation": ((), {"model": {"representation_activation": "relu"}}),
    "learning rate 5e-4": ((), {"optimizer": {"lr": 5e-4}}),
    "without clustering": (("clustering",), {}),
    "without reconstruction": (("reconstruction",), {}),
    "contrast alone": (("clustering", "reconstruction"), {}),
    "reconstruction alone": (("contrastive", "clustering"), {}),
}


def configurations(settings: Settings, modalities: Sequence[str]) -> dict[str, PretrainConfig]:
    """Name of a variant -> the improved recipe with that one change, at the sizes of `settings`."""
    whole = settings.config("improved", modalities)
    found = {}
    for name, (left_out, overrides) in VARIANTS.items():
        none: dict[str, Any] = dict.fromkeys(left_out)
        tasks = replace(whole.tasks, **none)
        found[name] = replace(whole, tasks=tasks).changed(overrides)
    return found


def choices(
    data: Path,
    output: Path,
    results: Path,
    protocol_file: Path | None = None,
    draws: int = 30,
    settings: Settings | None = None,
) -> None:
    """Judge every variant in both modes; write the tables to `results`.

    Raises ValueError for a missing file, array or value.
    """
    settings = settings or Settings()
    data_set = read_ravdess(data, protocol_file, design_draws=draws)
    configs = configurations(settings, tuple(data_set.features))
    cells = Cells(output / "cells", draws, settings.seeds)
    rows = [row for name in configs for row in heads(name)]
    parts = [
        "# Choices of the improved recipe",
        f"Written by `python -m benchmarks.reproduce.choices --data folder` on {datetime.now(UTC).date()}. RAVDESS, "
        f"actors 1 to 20 train, 21 to 24 are judged; {draws} draws of labels at shares below 100 %, pretraining seeds "
        f"{', '.join(map(str, settings.seeds))}. Each row changes one choice of the recipe in the first. The untrained "
        "rows are the same heads before the first step. Four speakers are few: an interval says what other speakers "
        "might give, and 100 % of labels is a single draw.",
    ]
    for mode in MODES:
        for seed in settings.seeds:
            cells.make(data_set, mode, rows, configs, seed)
        systems = cells.systems(data_set, mode, rows, configs)
        fractions = list(systems[_ALL].predicted)
        heading = ["paired difference in accuracy", *(f"{fraction:.0%} of labels" for fraction in fractions)]
        lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
        for name in configs:
            if name != _ALL:
                found = [paired(data_set.protocol, systems[name], systems[_ALL], f) for f in fractions]
                lines.append(f"| {name} minus {_ALL} | {' | '.join(signed(value) for value in found)} |")
        parts += [
            f"## {mode.replace('_', '-').capitalize()}",
            markdown(table(data_set.protocol, systems)),
            "\n".join(lines),
        ]
        results.parent.mkdir(parents=True, exist_ok=True)
        write_text(results, "\n\n".join(parts) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce.choices", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the feature files")
    parser.add_argument("--output", type=Path, default=Path("outputs/choices"), help="kept cells")
    parser.add_argument("--results", type=Path, help="the page of tables; default: choices.md of --output")
    parser.add_argument("--protocol", type=Path, help="the protocol file of RAVDESS; default: that of --data")
    parser.add_argument("--draws", type=int, default=30, help="draws of labels at each share below all")
    parser.add_argument("--seeds", default="127,128,129", help="comma-separated seeds of pretraining; every one is run")
    given = parser.parse_args(arguments)
    try:
        settings = Settings(seeds=tuple(int(seed) for seed in given.seeds.split(",")))
        page = given.results or given.output / "choices.md"
        choices(given.data, given.output, page, given.protocol, given.draws, settings)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
