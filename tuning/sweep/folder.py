"""The folder of a sweep and what it remembers: which trials were proposed, and how those that have ended went.

<output>/<name>/
    run.json               identity of the sweep, written once
    sweep.yaml             resolved configuration of the last start
    journal.jsonl          what is tracked of the sweep itself
    ledger/*.jsonl         one record for each trial that has ended (tuning.ledger)
    optuna.log             Optuna's own journal storage, where TPE searches
    trials/0007/           choices.json, journal.jsonl of a trial
    tune/start-0001/       Ray Tune's working files of one start; only the checkpoints in it are read again
    best.yaml  table.md  plots/   the result
    schedule.json          of a population: how the weights of its best model changed
    model/                 the model of that schedule, once it was replayed
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conclugen import PretrainConfig
from conclugen.common import uris
from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from conclugen.evaluation.config import RAW_SYSTEMS
from conclugen.training import checkpoint
from conclugen.training.checkpoint import CheckpointError
from ray_jobs.run_folder import RunFolder
from tuning.ledger import WITH_RAW, Ledger, Record, record_key
from tuning.sweep.objective import Judge, without_confusion
from tuning.sweep.search import Outcome, Searcher
from tuning.sweep.space import Choices, Space, names
from tuning.sweep.trial import STATE, TrialShared

# In a small space of options the same configuration is soon drawn again; so many draws are tried for a new one.
_ATTEMPTS = 100
SCHEDULE = "schedule.json"


@dataclass(frozen=True)
class Proposal:
    """One trial: its number, what was chosen, and the newest checkpoint of an earlier start, if any."""

    number: int
    choices: Choices
    checkpoint: Path | None = None


class SweepFolder(RunFolder):
    """Paths of a sweep. As with a run, a name belongs to one identity."""

    def __init__(self, path: Path | str):
        super().__init__(path)
        self.settings = self.path / "sweep.yaml"
        self.trials = self.path / "trials"
        self.tune = self.path / "tune"
        self.best = self.path / "best.yaml"
        self.table = self.path / "table.md"

    def belongs(self, identity: Mapping[str, Any], changing: Collection[str] = ()) -> bool:
        """As for a run. Raises ValueError where the folder is another sweep's, naming what differs."""
        try:
            return super().belongs(identity, changing)
        except ValueError as error:
            raise ValueError(
                str(error).replace("run.name", "--name").replace("a run of", "a sweep or run of")
            ) from None

    def trial(self, number: int) -> Path:
        return self.trials / trial_name(number)

    def next_start(self) -> str:
        """Name of Ray Tune's folder for this start."""
        return f"start-{len(list(self.tune.glob('start-*'))) + 1:04d}"

    def proposals(self) -> Iterator[tuple[int, Choices]]:
        """(number, choices) of every trial that was proposed, in order."""
        for path in sorted(self.trials.glob("*/choices.json")):
            try:
                yield int(path.parent.name), read_mapping(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: no choices of a trial ({error}); restore it, or remove its folder") from None

    def newest_trial_checkpoint(self, number: int) -> Path | None:
        """The newest whole checkpoint that any start has written of a trial."""
        found = self.tune.glob(f"*/{trial_name(number)}/checkpoint_*/{STATE}")
        for path in sorted(found, key=lambda path: (path.parts[-4], path.parts[-2]), reverse=True):
            try:
                checkpoint.load(path)
            except CheckpointError as error:
                print(f"passed over: {uris.scrub(error)}", flush=True)
                continue
            return path.parent
        return None


class TrialStore:
    """Gives out trials and takes their results; what it was told survives a kill.

    Args:
        folder: of the sweep, claimed.
        space: resolved.
        searcher: where new configurations come from.
        trials: how many there are to be in all.
        objective: name of the measure.
        identity: of data and measurement (`objective.identity`): part of every record's key.
    """

    def __init__(
        self,
        folder: SweepFolder,
        space: Space,
        searcher: Searcher,
        trials: int,
        objective: str,
        identity: Mapping[str, Any],
    ) -> None:
        self.folder, self.space, self.trials, self.objective = folder, space, trials, objective
        self.ledger = Ledger.open(folder.path)
        self.choices: dict[int, Choices] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.select_by = str(identity.get("select_by", "accuracy"))
        self.classes: tuple[str, ...] = ()
        self.groups: dict[int, Mapping[str, Mapping[str, float]]] = {}
        self.baselines: dict[str, Record] = {}  # name of a row beside the trials -> its record
        self.exhausted = False
        self._searcher, self._identity = searcher, dict(identity)
        self._numbers: dict[str, int] = {}  # key of a configuration -> the trial that has it
        self._waiting: list[int] = []
        self._died: set[int] = set()
        self._recall()

    def _recall(self) -> None:
        ended = {record.tags["number"]: record for record in self.ledger.records() if record.kind == "trial"}
        for number, choices in self.folder.proposals():
            self._note(number, choices)
            self._searcher.resume(number, choices)
            record = ended.get(number)
            if record is None or (record.status == "failed" and not record.tags["diverged"]):
                self._waiting.append(number)
                continue
            curve = {
                int(epoch): value for epoch, value in zip(record.tags["epochs"], record.tags["curve"], strict=True)
            }
            self._end(number, Outcome(curve, record.tags["state"]), dict(record.metrics), record.groups)

    @property
    def raw_rows(self) -> dict[str, dict[str, float]]:
        """Name -> scores of the rows of raw features: those that a trial has to beat."""
        return {n: dict(r.metrics) for n, r in self.baselines.items() if r.tags.get("system", "raw") in RAW_SYSTEMS}

    def judge_beside(self, judge: Judge) -> None:
        """Have the constant and the raw rows judged that the ledger does not hold yet; they are in `baselines` then."""
        self.classes = judge.classes
        protocol = json.dumps({**self._identity, "objective": None, "baselines": list(judge.config.baselines)})
        key = record_key({"baseline": "all"}, dataset=self._identity["manifest"], seed=0, protocol=protocol)
        known = [r for r in self.ledger.records() if r.kind == "baseline" and str(r.tags["asked"]) == key]
        if not any(record.tags.get("last") for record in known):  # none, or a start was killed amid them
            rows = judge.rows_beside()
            kept = {record.key for record in known}
            for number, ((system, method), metrics) in enumerate(rows.items()):
                row = system if method == "probe" else f"{system}, {method.replace('_', ' ')}"
                if system == method:  # a constant
                    row = system
                last = number == len(rows) - 1
                if f"{key}-{number}" not in kept:
                    known.append(self._beside(f"{key}-{number}", row, system, method, metrics, asked=key, last=last))
        self.baselines = {str(record.tags["row"]): record for record in known}

    def judge_untrained(self, number: int, shared: TrialShared) -> None:
        """Have the heads of a trial judged as they were before its first step, where the ledger lacks them.

        The row is then the newest of its kind in the ledger. Trials with equal heads share one judgement: the record
        is written again in the name of the trial at hand.
        """
        config = self.config(number)
        # Tasks, optimiser and length do not matter before the first step.
        whole = config.to_dict()
        content = {"baseline": "untrained"} | {name: whole[name] for name in ("modalities", "model", "precision")}
        if self.space.corpora:  # by which inputs are standardised
            content |= {"corpora": whole["corpora"]} if "corpora" in whole else {}
            content["corpora_weights"] = self.space.corpora_weights(self.choices[number])
        protocol = json.dumps({**self._identity, "objective": None}, sort_keys=True)
        key = record_key(content, dataset=self._identity["manifest"], seed=config.seed, protocol=protocol)
        row = f"untrained heads, as trial {trial_name(number)}"
        known = [r for r in self.ledger.records() if r.kind == "baseline" and r.tags.get("system") == "untrained"]
        newest = max(known, key=lambda record: record.time, default=None)
        record = next((r for r in known if r.key == key), None)
        if record is not None and (record is not newest or record.tags["row"] != row):
            record = replace(record, tags={**record.tags, "row": row})
            self.ledger.append(record)
        elif record is None:
            plan = shared.plan(config)
            if self.space.corpora:
                plan = shared.plan(config, self.space.data(shared.data, self.choices[number]))
            metrics = shared.judge.probe(shared.pretrainer(config, plan), ended=True)
            own = {name: value for name, value in metrics.items() if not name.startswith(WITH_RAW)}
            record = self._beside(key, row, "untrained", "probe", own, asked=key)
        self.baselines[row] = record

    def _beside(
        self, key: str, row: str, system: str, method: str, measures: Mapping[str, float], **tags: Any
    ) -> Record:
        """A row beside the trials, into the ledger."""
        named = {"sweep": self.folder.name, "row": row, "system": system, "method": method, "score": self.select_by}
        metrics, groups = without_confusion(measures, self.classes)
        record = Record(key, "baseline", "finished", tags={**named, **tags}, metrics=metrics, groups=groups)
        self.ledger.append(record)
        return record

    @property
    def resumed(self) -> bool:
        return bool(self.choices)

    @property
    def left(self) -> int:
        """Trials that have not ended."""
        return max(0, self.trials - len(self.outcomes))

    @property
    def died(self) -> list[int]:
        """Numbers of the trials of this start that died, which the next start tries again."""
        return sorted(self._died)

    def propose(self) -> Proposal | None:
        """The next trial: first those that an earlier start left unfinished. None: there is none, or no other."""
        if self._waiting:
            number = self._waiting.pop(0)
            return Proposal(number, self.choices[number], self.folder.newest_trial_checkpoint(number))
        number = len(self.choices)
        if number >= self.trials:
            return None
        for attempt in range(_ATTEMPTS):
            choices = self._searcher.ask(number, attempt)
            if choices is None:
                break
            same = self._numbers.get(self.key(choices))
            if same is None:
                folder = self.folder.trial(number)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "choices.json", choices)
                self._note(number, choices)
                return Proposal(number, choices)
            self._searcher.known(number, self.outcomes.get(same))
        self.exhausted = True
        return None

    def finish(
        self, number: int, outcome: Outcome, metrics: Mapping[str, float], cost: Mapping[str, float], reason: str = ""
    ) -> None:
        """A trial has ended: into the ledger first, then to the searcher."""
        config = self.config(number)
        diverged = outcome.state == "failed" and not reason.startswith("died")
        tags = trial_tags(config, self.choices[number]) | {
            "number": number,
            "state": outcome.state,
            "diverged": diverged,
            "epochs": list(outcome.curve),
            "curve": list(outcome.curve.values()),
            "objective": self.objective,
            "sweep": self.folder.name,
        }
        if outcome.state == "failed" and not diverged:
            self._died.add(number)
        own, groups = without_confusion(metrics, self.classes)
        self.ledger.append(
            Record(
                key=self.key(self.choices[number]),
                kind="trial",
                status="failed" if outcome.state == "failed" else "finished",
                configuration=config.to_dict(),
                tags=tags,
                metrics=own,
                groups=groups,
                cost=dict(cost),
                reason=reason,
            )
        )
        self._end(number, outcome, own, groups)

    def config(self, number: int) -> PretrainConfig:
        return self.space.config(self.choices[number])

    def key(self, choices: Choices) -> str:
        """Digest of everything that decides a trial's result."""
        config = self.space.config(choices).to_dict()
        if self.space.corpora:
            config["corpora_weights"] = self.space.corpora_weights(choices)
        protocol = json.dumps({**self._identity, "objective": None}, sort_keys=True)
        return record_key(config, dataset=self._identity["manifest"], seed=self.space.seed, protocol=protocol)

    def ranking(self, mode: str) -> list[int]:
        """Numbers of the trials that ran to their end, best first; those that were stopped behind them."""
        sign = -1 if mode == "max" else 1
        ended = [(n, o) for n, o in self.outcomes.items() if o.state != "failed" and o.curve]
        return [
            n
            for n, o in sorted(
                ended, key=lambda e: (e[1].state != "finished", sign * e[1].curve[max(e[1].curve)], e[0])
            )
        ]

    def value(self, number: int) -> float:
        """The objective as it was measured last."""
        curve = self.outcomes[number].curve
        return curve[max(curve)]

    def _note(self, number: int, choices: Choices) -> None:
        self.choices[number] = dict(sorted(choices.items()))  # as it reads back: tables look the same after a restart
        self._numbers.setdefault(self.key(choices), number)

    def _end(
        self,
        number: int,
        outcome: Outcome,
        metrics: dict[str, float],
        groups: Mapping[str, Mapping[str, float]],
    ) -> None:
        self.outcomes[number] = outcome
        self.metrics[number] = metrics
        self.groups[number] = groups
        self._searcher.tell(number, outcome)


def trial_name(number: int) -> str:
    return f"{number:04d}"


def trial_tags(config: PretrainConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial is found by, in the ledger and in MLflow."""
    weights = {name: task.weight for name, task in config.tasks.active.items()}
    return (
        {
            "tasks": list(names(choices["tasks"])),
            "modalities": list(config.modalities),
            "weights": " ".join(f"{name}={weight:.4g}" for name, weight in weights.items()),
            "recipe": config.recipe,
            "preset": config.preset,
            "seed": config.seed,
        }
        | {f"weight.{name}": weight for name, weight in weights.items()}
        | {name: weight for name, weight in choices.items() if name.startswith("data.sources.")}
    )


def readable_name(sweep: str, number: int, config: PretrainConfig) -> str:
    """`mine-0007 TASK+TASK video+audio`."""
    return f"{sweep}-{trial_name(number)} {'+'.join(config.tasks.active)} {'+'.join(config.modalities)}"


def wall_clock() -> str:
    return time.strftime("%H:%M:%S")
