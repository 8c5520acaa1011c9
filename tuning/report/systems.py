"""From the records of a ledger to systems: every row of a report, over its seeds, with the holes marked."""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from conclugen.evaluation.config import RAW_SYSTEMS
from conclugen.evaluation.protocol import natural_order
from conclugen.presets import ALL, PRESETS
from conclugen.tasks import registry
from tuning.ledger import WITH_RAW, Record
from tuning.systems import METHOD

WITH_RAW_SYSTEM = "pretrained + raw"
RAW_NAMES = {"raw": "raw features"}
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_AT = re.compile(r"^(?P<score>[^@]+)@(?P<fraction>[0-9.e-]+)$")


@dataclass(frozen=True)
class Value:
    """Of one metric: mean over the finished seeds, sample deviation over them (None of fewer than two, or of a system
    without seeds), and how many of the seeds that were asked for are missing."""

    mean: float
    deviation: float | None
    seeds: int
    missing: int

    @classmethod
    def of(cls, numbers: Sequence[float], missing: int = 0) -> "Value":
        deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
        return cls(float(np.mean(numbers)), deviation, len(numbers), missing)


@dataclass(frozen=True)
class System:
    """One row: what was trained and judged on a data set, in all its seeds. configuration: its name where it is a row
    of its own, with other settings than the rest of the ablation. finished, failed: its records. method: by which it is
    judged."""

    dataset: str
    system: str
    recipe: str
    tasks: tuple[str, ...]
    modalities: tuple[str, ...]
    complete: bool
    configuration: str = ""
    finished: tuple[Record, ...] = ()
    failed: tuple[Record, ...] = ()
    method: str = "probe"

    @property
    def is_raw(self) -> bool:
        """A row that a learned representation has to beat."""
        return self.system in RAW_SYSTEMS

    @property
    def name(self) -> str:
        """Without modalities, where they are all that the data set has."""
        if not self.recipe:
            how = "" if self.method in ("probe", self.system) else f", {self.method.replace('_', ' ')}"
            return f"{RAW_NAMES.get(self.system, self.system)}{how}" + self._of_modalities()
        name = "untrained heads" if self.system == "untrained" else self.configuration or " + ".join(self.tasks)
        name += " + raw" * (self.system == WITH_RAW_SYSTEM)
        return name if self.complete else f"{name} ({'+'.join(self.modalities)})"

    def _of_modalities(self) -> str:
        return f": {'+'.join(self.modalities)}" if self.system == "raw" else ""

    @property
    def label(self) -> str:
        """Name and recipe: different for every system of a data set."""
        return f"{self.name} [{self.recipe}]" if self.recipe else self.name

    @property
    def reason(self) -> str:
        """Why there is nothing, where there is nothing."""
        return self.failed[-1].reason if self.failed and not self.finished else ""

    def value(self, metric: str) -> Value | None:
        numbers = [r.metrics[metric] for r in self.finished if np.isfinite(r.metrics.get(metric, np.nan))]
        return Value.of(numbers, len(self.failed) + len(self.finished) - len(numbers)) if numbers else None

    @property
    def seeds(self) -> frozenset[int]:
        """Finished ones."""
        return frozenset(_seed(record) for record in self.finished)

    @property
    def asked(self) -> frozenset[int]:
        """Seeds, failed ones too."""
        return self.seeds | {_seed(record) for record in self.failed}

    def groups(self, metric: str, seeds: Collection[int] | None = None) -> dict[str, float]:
        """group -> mean over the seeds, or over some of them."""
        own = [record for record in self.finished if seeds is None or _seed(record) in seeds]
        each = [record.groups[metric] for record in own if metric in record.groups]
        listed = natural_order(list(each[0])) if each else []
        return {group: float(np.mean([one[group] for one in each])) for group in listed}

    def choices(self, fraction: float) -> dict[str, float]:
        """Of the best single modality how often it was which; empty of others, and where the ledger is of an earlier
        version."""
        counts: dict[str, float] = {}
        for record in self.finished:
            for modality, times in record.groups.get(f"choices@{fraction:g}", {}).items():
                counts[modality] = counts.get(modality, 0.0) + times
        return counts

    def recalls(self, fraction: float, seeds: Collection[int] | None = None) -> dict[str, tuple[float, ...]]:
        """group -> recall of each class, mean over the seeds (or some of them); 0 where the group has none of it, which
        `class_counts` tells. Empty where the ledger has no recalls by group."""
        own = [record for record in self.finished if seeds is None or _seed(record) in seeds]
        counts = class_counts(own[0]) if own else {}
        if not counts:
            return {}
        names = [f"recall/{name}@{fraction:g}" for name in own[0].groups["class_rows"]]
        if not all(name in record.groups for record in own for name in names):
            return {}
        return {
            group: tuple(float(np.mean([record.groups[name].get(group, 0.0) for record in own])) for name in names)
            for group in counts
        }

    def cost(self, name: str) -> Value | None:
        numbers = [record.cost[name] for record in self.finished if name in record.cost]
        return Value.of(numbers) if numbers else None


@dataclass(frozen=True)
class Row:
    """A line of a table: for each data set the system, or why there is none (both missing: it was not asked for)."""

    name: str
    recipe: str
    systems: Mapping[str, System] = field(default_factory=dict)
    holes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All that a report shows. datasets: names, in the order met. trials, baselines: of sweeps."""

    systems: tuple[System, ...]
    unserved: tuple[Record, ...]
    trials: tuple[Record, ...]
    baselines: tuple[Record, ...] = ()

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Results":
        found: dict[System, list[Record]] = {}
        unserved, trials, baselines = [], [], []
        for record in itertools.chain.from_iterable(map(_apart, records)):
            if record.kind == "trial":
                trials.append(record)
            elif record.kind == "baseline":
                baselines.append(record)
            elif record.tags.get("unserved"):
                unserved.append(record)
            else:
                tags = record.tags
                learned = (tuple(tags["tasks"]), tuple(tags["modalities"]), bool(tags["complete"]))
                named = str(tags.get("configuration", ""))
                method = str(tags.get("method", "probe"))
                system = System(tags["dataset"], tags["system"], tags["recipe"], *learned, named, method=method)
                found.setdefault(system, []).append(record)
        systems = [_with_records(system, own) for system, own in found.items()]
        return cls(tuple(systems), tuple(unserved), tuple(trials), tuple(baselines))

    @property
    def datasets(self) -> tuple[str, ...]:
        listed = [system.dataset for system in self.systems] + [str(r.tags["dataset"]) for r in self.unserved]
        return tuple(dict.fromkeys(listed))

    @property
    def recipes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(system.recipe for system in self.systems if system.recipe))

    @property
    def seeds(self) -> tuple[int, ...]:
        every = (record for system in self.systems for record in system.finished if system.recipe)
        return tuple(sorted({_seed(record) for record in every}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks whose combinations were run, in order: at least the published method's."""
        found = {
            task
            for system in self.systems
            if system.system == "pretrained" and system.complete and not system.configuration
            if not _is_preset(system)
            for task in system.tasks
        }
        for record in self.unserved:
            if any(str(row).startswith("combinations/") for row in record.tags["rows"]):
                found |= set(record.tags["tasks"])
        return in_order({*found, *METHOD})

    @property
    def counted(self) -> str:
        """`three tasks`: all of them."""
        return f"{count_word(len(self.tasks))} tasks"

    def scores(self, dataset: str) -> dict[str, list[float]]:
        """score -> fractions of labels at which a data set has it, ascending."""
        found: dict[str, set[float]] = {}
        for system in self.of_set(dataset):
            for record in system.finished:
                for match in filter(None, map(_AT.match, record.metrics)):
                    # `recall@5/audio-video` is of retrieval, `recall/happy@0.03` of a class.
                    if "/" not in match["score"]:
                        found.setdefault(match["score"], set()).add(float(match["fraction"]))
        return {score: sorted(fractions) for score, fractions in found.items()}

    def of_set(self, dataset: str) -> list[System]:
        return [system for system in self.systems if system.dataset == dataset]

    def settled(self, dataset: str) -> list[System]:
        """Those of a data set that differ by tasks, modalities and recipe alone."""
        return [system for system in self.of_set(dataset) if not system.configuration]

    def find(self, dataset: str, recipe: str, tasks: Sequence[str], modalities: Sequence[str] | None) -> System | None:
        """The pretrained system of these tasks at the ablation's settings; modalities None: of all that the data set
        has."""
        for system in self.settled(dataset):
            wanted = system.complete if modalities is None else system.modalities == tuple(modalities)
            if (system.system, system.recipe, system.tasks) == ("pretrained", recipe, tuple(tasks)) and wanted:
                return system
        return None

    def score(self, dataset: str) -> str:
        """By which the systems of a data set are compared: what its probes were chosen by."""
        return next(
            (str(r.tags["score"]) for s in self.of_set(dataset) for r in s.finished if "score" in r.tags), "accuracy"
        )

    def fractions(self, dataset: str) -> list[float]:
        """Shares of labels at which a data set's systems are compared, ascending."""
        return self.scores(dataset).get(self.score(dataset), [])

    def strongest_raw(self, dataset: str, metric: str) -> System | None:
        """The raw row that the others are compared with: the best on the test rows themselves, in its favour."""
        return best((system for system in self.of_set(dataset) if system.is_raw), metric)

    def absent(self, dataset: str) -> tuple[str, ...]:
        """Classes without a test row."""
        counted = [r.groups["class_rows"] for s in self.of_set(dataset) for r in s.finished if "class_rows" in r.groups]
        return tuple(name for name, rows in counted[0].items() if not rows) if counted else ()

    def tested(self, dataset: str) -> dict[str, float]:
        """Unit -> its test rows."""
        found = (r.groups["rows"] for s in self.of_set(dataset) for r in s.finished if "rows" in r.groups)
        return dict(next(found, {}))

    @property
    def normalised(self) -> str:
        """A sentence where features were normalised by their own speakers; else empty."""
        found = {r.tags.get("normalisation", "") for s in self.systems for r in s.finished} - {""}
        return (
            " Features are normalised by each unit's own unlabelled rows (transductive, and much easier)."
            if found
            else ""
        )

    def unit(self, dataset: str) -> str:
        """What a unit of intervals is called."""
        units = [r.tags["unit"] for s in self.of_set(dataset) for r in s.finished if "unit" in r.tags]
        return str(units[0]) if units else "speaker"

    # ------------------------------------------------------------------ tables

    def combinations(self) -> list[Row]:
        """Baselines, then every combination of tasks that was run, for each recipe."""
        rows = self._baselines()
        every = self.tasks
        met = {s.tasks for s in self.systems if s.system == "pretrained" and s.complete and not s.configuration}
        met |= {tuple(r.tags["tasks"]) for r in self.unserved if r.tags["system"] == "pretrained"}
        combinations = [tasks for tasks in met if set(tasks) <= set(every)]
        combinations.sort(key=lambda tasks: (len(tasks), [every.index(task) for task in tasks]))
        for recipe in self.recipes:
            for tasks in combinations:
                rows += self._row(" + ".join(tasks), recipe, tasks, None, f"combinations/{'+'.join(tasks)}")
        return rows

    def with_raw(self) -> list[Row]:
        """Representations beside the raw features, of every combination of tasks that was run, below the raw rows."""
        rows: dict[tuple[str, str], dict[str, System]] = {}
        for system in self.systems:
            if system.system == WITH_RAW_SYSTEM and system.complete and not system.configuration:
                rows.setdefault((system.name, system.recipe), {})[system.dataset] = system
        listed = [Row(name, recipe, systems) for (name, recipe), systems in rows.items()]
        return [row for row in self._baselines() if not row.recipe] + listed if listed else []

    def presets(self) -> list[Row]:
        """The published presets that were run, or found unserved, for each recipe."""
        rows = []
        for recipe in self.recipes:
            for name, (modalities, tasks) in PRESETS.items():
                rows += self._row(name, recipe, tasks, None if modalities == ALL else modalities, f"presets/{name}")
        asked = any(row.name not in ("conclugen",) and row.holes for row in rows) or any(
            name.startswith("presets/") for system in self.systems for r in system.finished for name in r.tags["rows"]
        )
        return rows if asked else []

    def subsets(self) -> list[Row]:
        """Modality subsets that were run: all tasks, or those that a subset allows."""
        rows: list[Row] = []
        listed = dict.fromkeys(
            system.modalities
            for system in sorted(self.systems, key=lambda s: (len(s.modalities), s.modalities))
            if system.system == "pretrained" and not system.configuration
            if system.tasks == able(self.tasks, system.modalities)
        )
        for recipe in self.recipes:
            for subset in listed:
                tasks = able(self.tasks, subset)
                rows += self._row(f"{'+'.join(subset)}: {' + '.join(tasks)}", recipe, tasks, subset, "")
        return rows if len(listed) > len({s.modalities for s in self.systems if s.complete}) else []

    def configurations(self) -> list[Row]:
        """Named configurations, each alone and beside the raw features, below all tasks at the ablation's settings in
        the same recipe."""
        rows: list[Row] = []
        for recipe in self.recipes:
            named: dict[str, dict[str, System]] = {}
            for system in self.systems:
                if system.configuration and system.recipe == recipe:
                    named.setdefault(system.name, {})[system.dataset] = system
            holes: dict[str, dict[str, str]] = {}
            for record in self.unserved:
                if record.tags.get("configuration") and record.tags["recipe"] == recipe:
                    place = holes.setdefault(record.tags["configuration"], {})
                    place[str(record.tags["dataset"])] = record.reason
            if named or holes:
                every = self.tasks
                rows += self._row(" + ".join(every), recipe, every, None, f"combinations/{'+'.join(every)}")
            for name in sorted({*named, *holes}):
                rows.append(Row(name, recipe, named.get(name, {}), holes.get(name, {})))
        return rows

    def _baselines(self) -> list[Row]:
        rows: dict[tuple[str, str], dict[str, System]] = {}
        for system in sorted(self.systems, key=lambda s: (bool(s.recipe), not s.complete)):
            if not system.recipe:
                plain = (system.system, system.method) == ("raw", "probe")
                name = "raw features: all modalities" if plain and system.complete else system.name
                rows.setdefault((name, ""), {})[system.dataset] = system
            elif system.system == "untrained" and system.complete:
                rows.setdefault((system.name, system.recipe), {})[system.dataset] = system
        return [Row(name, recipe, systems) for (name, recipe), systems in rows.items()]

    def _row(
        self, name: str, recipe: str, tasks: Sequence[str], modalities: Sequence[str] | None, planned: str
    ) -> list[Row]:
        systems = {d: s for d in self.datasets if (s := self.find(d, recipe, tasks, modalities)) is not None}
        holes = {
            str(record.tags["dataset"]): record.reason
            for record in self.unserved
            if planned in record.tags["rows"] and record.tags["recipe"] == recipe
        }
        return [Row(name, recipe, systems, holes)] if systems or holes else []


def in_order(tasks: Iterable[str]) -> tuple[str, ...]:
    """As configurations have them; tasks that are not installed here follow by name."""
    known = list(registry.registered())
    return tuple(sorted(tasks, key=lambda task: (known.index(task) if task in known else len(known), task)))


def able(tasks: tuple[str, ...], modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Those that can learn these modalities; one that is not installed here is taken to."""
    known = registry.registered()
    return tuple(task for task in tasks if task not in known or registry.serve([task], modalities))


def count_word(count: int) -> str:
    """`three`; a number in digits from ten on."""
    return _COUNTS[count] if count < len(_COUNTS) else str(count)


def _is_preset(system: System) -> bool:
    """Whether it was run as a preset alone, and so is none of the combinations."""
    rows = [str(row) for record in (*system.finished, *system.failed) for row in record.tags["rows"]]
    return bool(rows) and all(row.startswith("presets/") for row in rows)


def best(systems: Iterable[System], metric: str) -> System | None:
    """The system with the highest mean; of equal ones the first; None where no system has the metric."""
    known = [(value.mean, system) for system in systems if (value := system.value(metric)) is not None]
    return max(known, key=lambda entry: entry[0])[1] if known else None


def _apart(record: Record) -> list[Record]:
    """A cell of a representation that was judged beside the raw features as well is a record of each."""
    if record.kind != "cell" or not any(name.startswith(WITH_RAW) for name in record.metrics):
        return [record]
    own = {name: value for name, value in record.metrics.items() if not name.startswith(WITH_RAW)}
    groups = {name: value for name, value in record.groups.items() if not name.startswith(WITH_RAW)}
    beside = {name.removeprefix(WITH_RAW): v for name, v in record.metrics.items() if name.startswith(WITH_RAW)}
    counts = {n: value for n, value in groups.items() if n in ("rows", "class_rows") or n.startswith("rows/")}
    theirs = {name.removeprefix(WITH_RAW): v for name, v in record.groups.items() if name.startswith(WITH_RAW)}
    tags = {**record.tags, "system": WITH_RAW_SYSTEM}
    return [
        replace(record, metrics=own, groups=groups),
        replace(record, metrics=beside, groups=counts | theirs, tags=tags, cost={}, arrays=None),
    ]


def _with_records(system: System, records: Iterable[Record]) -> System:
    """One record for each seed: the newest finished one (a cell run again by a later version has another key), else the
    newest failed one."""
    decisive: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: (r.status == "finished", r.time)):
        decisive[_seed(record)] = record
    ordered = [decisive[seed] for seed in sorted(decisive)]
    return replace(
        system,
        finished=tuple(record for record in ordered if record.status == "finished"),
        failed=tuple(record for record in ordered if record.status == "failed"),
    )


def class_counts(record: Record) -> dict[str, tuple[float, ...]]:
    """group -> its test rows of each class; empty where the ledger has none."""
    names = [f"rows/{name}" for name in record.groups.get("class_rows", ())]
    if not names or not all(name in record.groups for name in names):
        return {}
    return {g: tuple(record.groups[name].get(g, 0.0) for name in names) for g in record.groups.get("rows", ())}


def _seed(record: Record) -> int:
    return int(record.tags["seed"])
