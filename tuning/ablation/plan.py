"""What an ablation runs: rows (task combinations, presets, modality subsets, named configurations, baselines) by data
sets and seeds.

Rows that resolve to the same configuration share one cell. A row that a data set cannot serve is a hole with its
reason, known before anything runs.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from conclugen import PretrainConfig, presets
from conclugen.common import uris
from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from conclugen.config import DEFAULT_PRESET
from conclugen.evaluation.config import JudgingConfig
from conclugen.presets import ALL, PRESETS
from conclugen.tasks import registry
from ray_jobs.pretrain import COMMAND as PRETRAIN
from tuning.ablation.cell import Cell, content_key, raw_rows
from tuning.ablation.job import CONFIGURED, AblateJob, SizesConfig
from tuning.dataset import LabelledSet
from tuning.ledger import Record, record_key
from tuning.systems import METHOD, System, names_file

_SETTINGS_FILE = "ablation.json"


@dataclass(frozen=True)
class PlannedCell:
    """A cell on one data set, with what it is found by. names: rows of the table that it fills."""

    key: str
    dataset: str
    cell: Cell
    names: tuple[str, ...]
    tags: Mapping[str, Any]

    @property
    def title(self) -> str:
        """For people: progress line, name of its run."""
        return title(self.tags)


@dataclass(frozen=True)
class Hole:
    """A row that a data set cannot serve, and why; `record` is what the ledger keeps of it."""

    dataset: str
    record: Record


@dataclass(frozen=True)
class Plan:
    """cells: each to be run once. rows: number of (row, seed) pairs that they fill. holes: what cannot be run."""

    cells: tuple[PlannedCell, ...]
    rows: int
    holes: tuple[Hole, ...]


def plan(job: AblateJob, sets: Sequence[LabelledSet]) -> Plan:
    """Every row of every set and seed, equal ones once.

    Raises ValueError where a set is smaller than a batch, or a named configuration can't be read.
    """
    named = {name: _read(name, text) for name, text in job.configurations.items()}
    cells: dict[str, PlannedCell] = {}
    holes: dict[str, Hole] = {}
    rows = 0
    for data in sets:
        if data.smallest_training_part < job.sizes.global_batch:
            raise ValueError(
                f"data set {data.name!r}: the smallest training part has {data.smallest_training_part} rows, a global "
                f"batch {job.sizes.global_batch}; lower --sizes.global_batch"
            )
        for row in itertools.chain.from_iterable(_rows(section, job, data, named) for section in job.sections):
            for seed in job.seeds if row.recipe else (0,):
                rows += 1
                try:
                    cell = row.cell(data, seed, job.sizes)
                except ValueError as error:
                    hole = _hole(row, data, seed, uris.scrub(error))
                    holes[hole.record.key] = hole
                    continue
                key = cell.key(data)
                known = cells.get(key)
                names = (row.name,) if known is None else (*known.names, row.name)
                cells[key] = PlannedCell(key, data.name, cell, names, _tags(row, cell, data, names))
    # A seed of every cell before the next seed: a table is whole, if coarse, as early as it can be.
    ordered = sorted(cells.values(), key=lambda planned: planned.cell.seed > 0 and job.seeds.index(planned.cell.seed))
    return Plan(tuple(ordered), rows, tuple(holes.values()))


def acquire_folder(job: AblateJob) -> None:
    """Make the folder this ablation's. Raises ValueError where it holds one of other settings."""
    refuse_other_settings(job)
    path = job.folder / _SETTINGS_FILE
    if not path.is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, job.settings())


def refuse_other_settings(job: AblateJob) -> None:
    """Raise ValueError where the folder holds an ablation of other settings."""
    path = job.folder / _SETTINGS_FILE
    if not path.is_file():
        return
    there = read_mapping(path)
    if not all(isinstance(group, dict) for group in there.values()):
        raise ValueError(f"{path}: has no settings of an ablation; restore it, or give another --run")
    mine, usual = (json.loads(json.dumps(settings)) for settings in (job.settings(), asdict(JudgingConfig())))
    differing = [
        f"{group}.{name}: {there.get(group, {}).get(name)!r} there, {value!r} now"
        for group, values in mine.items()
        for name, value in values.items()
        # Of a task that was not installed then no cell there has a size; what judging did not have, was at its default.
        if there.get(group, {}).get(name, value if group == "sizes" else usual[name]) != value
    ]
    if differing:
        raise ValueError(
            f"{job.folder} holds an ablation of other settings ({'; '.join(differing)}), which cannot stand in "
            "one table; give another --name, or these settings"
        )


def refuse_other_configurations(planned: Plan, records: Sequence[Record]) -> None:
    """Raise ValueError where the folder has cells of another configuration under a name that is planned, whatever their
    seeds: one row of the table would average the two."""
    own: dict[tuple[str, str, str], str] = {}
    for cell in planned.cells:
        if cell.tags["configuration"]:
            own[cell.tags["configuration"], cell.dataset, cell.tags["recipe"]] = _digest(cell.cell.content())
    for record in _results(records):
        place = (record.tags.get("configuration", ""), record.tags["dataset"], record.tags["recipe"])
        if place in own and own[place] != _digest(_content(record)):
            raise ValueError(
                f"configurations.{place[0]}: the folder holds cells of another configuration of this name on "
                f"{place[1]!r}; give it, or the ablation, another name"
            )


def refuse_other_data(sets: Sequence[LabelledSet], records: Sequence[Record]) -> None:
    """Raise ValueError where the folder has cells of a data set's name that learned from other rows, or were judged on
    other ones (`train_only`): one row of the table would average the two."""
    given = {data.name: data for data in sets}
    for record in _results(records):
        data = given.get(record.tags["dataset"])
        if data is not None and record.key != content_key(_content(record), data, int(record.tags["seed"])):
            raise ValueError(
                f"data set {data.name!r}: the folder holds cells of this name with another folder, label or "
                "train_only, which cannot stand in one table; give the data set, or the ablation, another name"
            )


def _results(records: Sequence[Record]) -> Iterator[Record]:
    """Those of cells that were run; rows that no data set could serve are left out."""
    return (record for record in records if record.kind == "cell" and not record.tags.get("unserved"))


def _content(record: Record) -> dict[str, Any]:
    """`Cell.content` of a record."""
    return {name: value for name, value in record.configuration.items() if name not in ("preset", "seed")}


def _digest(content: Mapping[str, Any]) -> str:
    return record_key(content, dataset="", seed=0, protocol="")


def title(tags: Mapping[str, Any]) -> str:
    """`mosi  TASK+TASK  video+audio+text  improved  seed 127`, or of a baseline."""
    what = "+".join(tags["tasks"]) if tags["tasks"] else f"{tags['system']} {'features' * (tags['system'] == 'raw')}"
    method = "" if tags.get("method") == tags["system"] else tags.get("method", "").replace("_", " ")
    parts = [tags["dataset"], tags.get("configuration", ""), what.strip(), method]
    parts.append("+".join(tags["modalities"]))
    if tags["recipe"]:
        parts += [tags["recipe"], f"seed {tags['seed']}"]
    return "  ".join(part for part in parts if part)


@dataclass(frozen=True)
class _Row:
    """preset: of which the row takes the tasks, or None and the `tasks` are as the recipe has them.
    configuration: taken as it is, seed apart, or what makes another system of the default preset. recipe: empty for raw
    rows, which have no seed either. method: of the judge."""

    name: str
    system: str
    recipe: str
    modalities: tuple[str, ...]
    preset: str | None = None
    tasks: tuple[str, ...] = ()
    configuration: PretrainConfig | System | None = None
    method: str = "probe"

    def cell(self, data: LabelledSet, seed: int, sizes: SizesConfig) -> Cell:
        """Raises ValueError where the data set lacks a modality, or the tasks cannot run on these."""
        if not self.recipe:
            return Cell(self.system, self.modalities, method=self.method)
        if isinstance(self.configuration, PretrainConfig):
            return _as_it_is(self.configuration, data, seed)
        if self.configuration is not None:
            weighed = self.configuration.overrides
            config = presets.build(DEFAULT_PRESET, self.recipe, modalities=self.modalities, tasks=weighed)
        elif self.preset is not None:
            config = presets.build(self.preset, self.recipe, modalities=self.modalities)
        else:
            config = _combination(self.tasks, self.recipe, self.modalities)
        config.check_serves(data.widths)
        config = sizes.apply(replace(config, seed=seed))
        return Cell(self.system, config.modalities, config)


def _rows(
    section: str, job: AblateJob, data: LabelledSet, named: Mapping[str, PretrainConfig | System]
) -> Iterator[_Row]:
    every = job.ordered_tasks
    for recipe in job.recipes:
        if section == "combinations":
            for count in range(1, len(every) + 1):
                for tasks in itertools.combinations(every, count):
                    yield _Row(f"combinations/{'+'.join(tasks)}", "pretrained", recipe, data.complete, tasks=tasks)
        elif section == "presets":
            for name, (modalities, _) in PRESETS.items():
                # A preset of all modalities means all that the data has; one that names some means just these.
                chosen = data.complete if modalities == ALL else modalities
                yield _Row(f"presets/{name}", "pretrained", recipe, chosen, preset=name)
        elif section == "modalities":
            for subset in _subsets(data.complete):
                tasks = _able(every, subset)
                yield _Row(f"modalities/{'+'.join(subset)}", "pretrained", recipe, subset, tasks=tasks)
        elif section == "baselines" and {"untrained", "all"} & set(job.baselines):
            tasks = _able(every, data.complete)
            yield _Row("baselines/untrained", "untrained", recipe, data.complete, tasks=tasks)
        elif section == "configurations" and named:  # what they are compared with
            yield _Row(f"combinations/{'+'.join(every)}", "pretrained", recipe, data.complete, tasks=every)
            for name, weighed in named.items():
                if isinstance(weighed, System):
                    own: dict[str, Any] = {"tasks": weighed.tasks, "configuration": weighed}
                    yield _Row(f"{CONFIGURED}{name}", "pretrained", recipe, data.complete, **own)
    if section == "configurations":
        for name, config in named.items():
            if isinstance(config, PretrainConfig):
                own = {"tasks": tuple(config.tasks.active), "configuration": config}
                yield _Row(f"{CONFIGURED}{name}", "pretrained", config.recipe, config.modalities, **own)
    if section == "baselines":
        for subset in _subsets(data.complete) if {"raw", "all"} & set(job.baselines) else ():
            if len(subset) in (1, len(data.complete)):
                yield _Row(f"baselines/raw {'+'.join(subset)}", "raw", "", subset)
        for system, method in raw_rows(data, job.baselines):
            yield _Row(f"baselines/{system} {method}", system, "", data.complete, method=method)


def _read(name: str, text: str) -> PretrainConfig | System:
    """The pretraining that a file describes, or the tasks that the text is. Raises ValueError naming the field of the
    ablation, and the file."""
    if not names_file(text):
        return System.parse(text, f"configurations.{name}")
    try:
        config: PretrainConfig = PRETRAIN.parse(["--config", text]).pretrain
        return config
    except ValueError as error:
        raise ValueError(f"configurations.{name}: {error}") from error


def _as_it_is(config: PretrainConfig, data: LabelledSet, seed: int) -> Cell:
    """Raises ValueError where the data lacks a modality, or is smaller than a batch."""
    config.check_serves(data.widths)
    if data.smallest_training_part < config.global_batch:
        raise ValueError(
            f"its global batch {config.global_batch} is more than the {data.smallest_training_part} rows of the "
            "smallest training part"
        )
    return Cell("pretrained", config.modalities, replace(config, seed=seed))


def _subsets(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for count in range(1, len(modalities) + 1):
        yield from itertools.combinations(modalities, count)


def _able(tasks: tuple[str, ...], modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Those that can learn these modalities: one has none to be compared with, say. All, where none can: then why is
    told where the row is built."""
    return tuple(task for task in tasks if registry.serve([task], modalities)) or tasks


def _combination(tasks: Sequence[str], recipe: str, modalities: tuple[str, ...]) -> PretrainConfig:
    """Tasks as the recipe has them. A single one has weight 1: alone it has nothing to be weighed with."""
    settings: dict[str, Any] = {"weight": 1.0} if len(tasks) == 1 else {}
    chosen = {**dict.fromkeys(METHOD), **dict.fromkeys(tasks, settings)}
    return presets.build(DEFAULT_PRESET, recipe, modalities=modalities, tasks=chosen)


def _tags(row: _Row, cell: Cell, data: LabelledSet, names: Sequence[str]) -> dict[str, Any]:
    tasks = {} if cell.config is None or not cell.tasks else cell.config.tasks.active
    return {
        "dataset": data.name,
        "seen": [data.name] if cell.system == "pretrained" else [],  # the corpora that it has learned from
        "label": data.label,
        "system": cell.system,
        "recipe": row.recipe,
        "tasks": list(cell.tasks),
        "weights": " ".join(f"{name}={config.weight:.4g}" for name, config in tasks.items()),
        "modalities": list(cell.modalities),
        "complete": set(cell.modalities) == set(data.complete),
        "seed": cell.seed,
        **({} if cell.method == "probe" else {"method": cell.method}),
        "unit": data.unit,
        # By which systems are compared.
        **({} if data.protocol.main_score == "accuracy" else {"score": data.protocol.main_score}),
        **({} if data.judging.normalisation == "inductive" else {"normalisation": data.judging.normalisation}),
        "rows": list(names),
        "presets": [name.removeprefix("presets/") for name in names if name.startswith("presets/")],
        "configuration": _configured(names),
    } | {f"weight.{name}": config.weight for name, config in tasks.items()}


def _configured(names: Sequence[str]) -> str:
    """Name of the configuration that a cell is there for; empty where it is a row of another section as well."""
    own = [name.removeprefix(CONFIGURED) for name in names if name.startswith(CONFIGURED)]
    return own[0] if len(own) == len(names) else ""


def _hole(row: _Row, data: LabelledSet, seed: int, reason: str) -> Hole:
    tasks = list(PRESETS[row.preset][1]) if row.preset is not None else list(row.tasks)
    tags = {
        "dataset": data.name,
        "label": data.label,
        "system": row.system,
        "recipe": row.recipe,
        "tasks": tasks,
        "modalities": list(row.modalities),
        "complete": set(row.modalities) == set(data.complete),
        "seed": seed,
        "rows": [row.name],
        "presets": [row.preset] if row.preset is not None else [],
        "configuration": _configured([row.name]),
        "unserved": True,
    }
    key = record_key({"row": row.name, "recipe": row.recipe}, dataset=data.digest, seed=seed, protocol=data.judged_by)
    return Hole(data.name, Record(key, "cell", "failed", tags=tags, reason=reason))
