"""The page of results: set-up, protocol, and for each table scores, paired differences and what they allow to say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce import differences as beside
from benchmarks.reproduce.differences import Beside, signed
from benchmarks.reproduce.evaluation import Evaluation
from benchmarks.reproduce.feature_files import DataSet
from conclugen import presets
from conclugen.common.atomic import write_text
from conclugen.evaluation.metrics import sentiment
from conclugen.evaluation.statistics import Interval
from ray_jobs import plots

_SHA = re.compile(r"\b[0-9a-f]{40}\b")
_NAMES = {"accuracy": "accuracy", "uar": "UAR", "f1_macro": "macro-F1"}
_MODES = {
    "inductive": "inductive",
    "speaker_normalised": "speaker-normalised",
}
# (system, accuracy in per cent, where from): Luna-Jimenez et al. 2022, of RAVDESS speech.
PUBLISHED = (
    ("speech (fine-tuned xlsr-Wav2Vec 2.0) and action units, late fusion of posteriors", 86.7, "as published"),
    ("speech alone (fine-tuned xlsr-Wav2Vec 2.0)", 81.9, "from the published posteriors"),
    ("action units alone, one vector a clip (MLP)", 60.4, "from the published posteriors"),
)
_SOURCE = (
    "Luna-Jiménez et al. 2022, *Applied Sciences* 12(1):327, [doi 10.3390/app12010327]"
    "(https://doi.org/10.3390/app12010327), and the posteriors of every fold that its authors publish "
    "([code](https://github.com/cristinalunaj/MMEmotionRecognition))"
)


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        data: The set.
        mode: Its normalisation.
        systems: Row -> its predictions, the constant (most frequent labelled class) first.
        recipes: Row that pretraining has a part in -> its recipe; the first of a recipe are its untrained heads.
        rows: Every row there is to judge; those that are not in `systems` were not.
        seconds: Recipe -> CPU time of one pretraining.
    """

    data: DataSet
    mode: str
    systems: Mapping[str, Evaluation]
    recipes: Mapping[str, str]
    rows: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def name(self) -> str:
        normalised = f", {_MODES[self.mode]}" if len(self.data.modes) > 1 else ""
        return f"{self.data.title}{normalised}"

    @property
    def short(self) -> str:
        normalised = f" {_MODES[self.mode]}" if len(self.data.modes) > 1 else ""
        return f"{self.data.short}{normalised}"

    @property
    def learned(self) -> list[str]:
        return [name for name in self.systems if name in self.recipes]

    @property
    def missing(self) -> list[str]:
        return [name for name in self.rows if name not in self.systems]

    @cached_property
    def strongest(self) -> dict[float, str]:
        """Share of labels -> the row without pretraining that scores best on the test rows."""
        raw = {name: found for name, found in self.systems.items() if name not in self.recipes}
        protocol = self.data.protocol
        return {f: beside.strongest(protocol, raw, f, self.data.measure) for f in protocol.fractions}

    @cached_property
    def differences(self) -> dict[tuple[str, str, float], Beside | None]:
        """Every row with pretraining, or its untrained heads, minus the strongest row without; and each recipe minus
        its untrained heads. One family. None: of seeds of which the two share none."""
        fractions = self.data.protocol.fractions
        pairs = [(name, self.strongest[f], f) for name in self.learned for f in fractions]
        for recipe in dict.fromkeys(self.recipes.values()):
            before = next(name for name, of in self.recipes.items() if of == recipe)
            if recipe in self.systems and before in self.systems:
                pairs += [(recipe, before, f) for f in fractions]
        found = beside.differences(self.data.protocol, self.systems, pairs, self.data.measure)
        return dict(zip(pairs, found, strict=True))

    def best_learned(self, fraction: float, after: Sequence[str] = ()) -> Beside | None:
        """The pretrained row with the highest mean (of these)."""
        untrained = {next(n for n, of in self.recipes.items() if of == recipe) for recipe in self.recipes.values()}
        rows = [name for name in self.learned if name not in untrained and (not after or name in after)]
        found = [self.differences[name, self.strongest[fraction], fraction] for name in rows]
        return max((one for one in found if one), key=lambda one: one.interval.estimate, default=None)

    @property
    def shown(self) -> dict[str, dict[float, Interval]]:
        """Row -> share of labels -> its difference to the strongest row without pretraining."""
        rows: dict[str, dict[float, Interval]] = {}
        for (name, other, fraction), one in self.differences.items():
            if one is not None and other == self.strongest[fraction]:
                rows.setdefault(name, {})[fraction] = one.interval
        return rows


def write(
    path: Path,
    sections: Sequence[Section],
    settings: Any,
    draws: int,
    draw_seed: int | None,
    revisions: Mapping[str, int],
) -> None:
    """Write the page, and a picture of each table's differences below `figures` beside it. settings: of pretraining;
    revisions: of the code that made the cells, and how many of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for section in sections:
        label = f"{_NAMES[section.data.measure]} minus strongest"
        if section.shown:
            told = {
                (name, fraction)
                for name, row in section.shown.items()
                for fraction in row
                if _verdict(section, name, fraction) in ("better", "worse")
            }
            figure = path.parent / _figure(section)
            plots.paired_differences(section.shown, figure, xlabel=label, title=section.name, told=told)
    write_text(path, page(sections, settings, draws, draw_seed, revisions))


def _figure(section: Section) -> Path:
    return Path("figures") / f"{section.data.protocol.name}_{section.mode}.png"


def page(
    sections: Sequence[Section], settings: Any, draws: int, draw_seed: int | None, revisions: Mapping[str, int]
) -> str:
    """The whole page in Markdown."""
    empty = [section.name for section in sections if len(section.systems) == 1]  # of the constant alone
    sections = [section for section in sections if len(section.systems) > 1]
    seeds = ", ".join(map(str, settings.seeds))
    flags = f"--seeds {','.join(map(str, settings.seeds))}" + ("" if draw_seed is None else f" --draw-seed {draw_seed}")
    parts = [
        "# Results",
        f"Written by `python -m benchmarks.reproduce` on {datetime.now(UTC).date()}; no number of a table (but "
        "the published), and no verdict, is typed by hand.",
        "## When to use this, and when not",
        "\n\n".join(told for told in (taken(sections), _unrun(sections)) if told),
        _when(sections),
        "Accuracy (of MELD: UAR), mean over seeds and draws. *Strongest*: of the rows without pretraining that "
        "were run, the one that scores best on the test rows of that table at that share of labels. *Take*: the "
        "pretrained row with the highest mean among those shown to be better than the strongest; else the strongest, "
        "which is quicker.",
        "## Set-up",
        f"Preset `conclugen`, pretrained for each fold on its training rows alone, without labels, in one process on a "
        f"CPU; a recipe may use which rows are of one speaker (or video). R {settings.representation_dim}, "
        f"P {settings.projection_dim}, H {settings.reconstruction_hidden_dim}, K {settings.clusters}, global batch "
        f"{settings.global_batch}; `improved` {settings.epochs} epochs; {_paper(sections, settings)}nothing of it was "
        f"searched here. Pretraining seeds {seeds}, which no "
        "choice was made on; each row says how many of them it has. What was "
        "chosen for `improved` was chosen on RAVDESS actors 21 to 24.",
        "Rows without pretraining: the most frequent class of the labelled rows; raw features side by side (`raw`), "
        "each modality with the same share of the variance (`raw balanced`), the best single modality and block "
        "weights, both chosen on held-out training groups; on balanced features late fusion, shrinkage LDA, a "
        "Gaussian support vector machine, boosted trees, self-training on the unlabelled training rows; and the "
        "heads and their fusion trained on the labels alone (`raw, supervised`, whose seeds are of its first "
        "weights). Rows with: the untrained heads; the heads after pretraining, side by side; the same with chosen "
        "block weights; and `+ raw`, half of the variance to the heads and half to balanced raw features. Rows that "
        "were not run are named below each table. What was tried on the way: [experiments.md](lab/experiments.md).",
        "## Protocol",
        "- Groups (speakers, videos, dialogues) are never on both sides of a fold. Features are standardised on the "
        "training rows (*inductive*), or each speaker's by that speaker's own unlabelled clips (*speaker-normalised*: "
        "transductive and much easier; never compared with the other).\n"
        f"- {draws} draws of 3 % and 10 % of the training labels"
        + ("" if draw_seed is None else f" (seed {draw_seed})")
        + ", by class, at least three rows of each; 100 % is one draw.\n"
        "- One judge: logistic regression, its strength chosen by three inner folds over training groups; other "
        "methods choose in the same way.\n"
        "- Cells: the score over all test rows, mean over draws and seeds. Intervals of 95 % draw test groups, draws "
        "of labels and pretraining seeds again, crossed; a row of one seed says nothing about others, and two or three "
        "say little.\n"
        "- Differences are paired. p flips the signs of test groups (exact up to 40 groups) and is corrected by Holm "
        "within a table; *better* or *worse* asks for p of 0.05 and an interval without 0. Where so few groups could "
        "never reach that, it says *cannot be told*.\n"
        "- The strongest row is chosen on the test rows themselves, so a comparison with it errs against pretraining.",
    ]
    noted: set[str] = set()
    for section in sections:
        parts += _table(section, section.data.title not in noted)
        noted.add(section.data.title)
    if empty:
        parts.append(f"Not run at all: {'; '.join(empty)}.")
    parts += [
        "## Recipes, time, commands",
        _recipes(sections, settings),
        "Time: CPU seconds on one core, of one fold and seed; judging is of all shares and draws of that row. "
        f"MODALITIES: {_modalities(sections)}. SEED: {seeds}. SHARDS: a set packed with views of one fold; LABEL: its "
        "column.",
        "The commands make such heads and such rows, not these numbers. `ray_jobs.evaluate` is another protocol: one "
        "split, its own draws of labels, features standardised on the labelled rows alone (here: on all training rows "
        "of the fold). It weighs classes and chooses by UAR, as here for MELD, with `--comparison.probe-weights "
        "balanced --comparison.select-by uar`. The whole page, with what was not run (cells are kept, a "
        "killed run continues):",
        f"    python -m benchmarks.reproduce --data FOLDER --output outputs/reproduce {flags}",
        _made_by(revisions),
        "## Limits",
        "- Frozen, hand-made or small features; one corpus at a time, pretrained on other speakers (videos, dialogues) "
        "of the corpus that is judged; acted speech, vlogs and television. Nothing here speaks of deep encoders or of "
        "transfer to other corpora.\n"
        f"{_resolution(sections)}"
        "- `improved` was designed on four RAVDESS actors that are not tested here, but of the same corpus.\n"
        "- Until 2026-11-29 this page compared with plain raw features alone, in which the widest modality counts "
        "most, and took most of what balancing gives for learning; which of its claims hold: "
        "[claims.md](lab/claims.md).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made_by(revisions: Mapping[str, int]) -> str:
    """Which states of the code the page was computed by."""
    told = [f"{count} by {_SHA.sub(lambda sha: f'`{sha[0][:12]}`', name)}" for name, count in revisions.items()]
    return (
        f"Computed (representations of a fold and seed, and their judgements): {', '.join(told)}. A later version "
        "takes what an earlier one has kept if all options are the same (the rule: `benchmarks/reproduce/kept.py`)."
    )


def _paper(sections: Sequence[Section], settings: Any) -> str:
    """How the recipe `paper` was run, where it was."""
    if not any(section.recipes[name] == "paper" for section in sections for name in section.learned):
        return ""
    return (
        f"`paper` {settings.paper_epochs} epochs at a peak rate of {settings.paper_lr:g}, the top of its published "
        "search range (its own is made for far more clips); "
    )


def taken(sections: Sequence[Section]) -> str:
    """In one line: what to take, where."""
    where: dict[str, list[str]] = {}
    for section in sections:
        of: dict[str, list[str]] = {}
        for fraction in section.data.protocol.fractions:
            of.setdefault(_take(section, fraction), []).append(f"{fraction:.0%}")
        for system, shares in of.items():
            every = len(shares) == len(section.data.protocol.fractions)
            where.setdefault(system, []).append(
                f"{section.short} at {'every share' if every else ' and '.join(shares)}"
            )
    told = "; ".join(f"`{system}` on {', '.join(places)}" for system, places in where.items())
    return f"**Take** {told}." if told else ""


def _take(section: Section, fraction: float) -> str:
    better = [name for name in section.learned if _verdict(section, name, fraction) == "better"]
    best = section.best_learned(fraction, better) if better else None
    return best.system if best is not None else section.strongest[fraction]


def _verdict(section: Section, name: str, fraction: float) -> str:
    one = section.differences[name, section.strongest[fraction], fraction]
    return "no common seed" if one is None else one.comparison.verdict(units=section.data.units)


def _unrun(sections: Sequence[Section]) -> str:
    """How much of what could be the strongest row was not run."""
    most = max((sum(name not in section.recipes for name in section.missing) for section in sections), default=0)
    if not most:
        return ""
    rows = "1 row" if most == 1 else f"{most} rows"
    return f"That is of the rows that were run: a table lacks up to {rows} without pretraining, named below it."


def _resolution(sections: Sequence[Section]) -> str:
    """How many groups are tested, and how far the intervals of differences to the strongest row reach."""
    halves = [
        50 * (interval.high - interval.low)
        for section in sections
        for row in section.shown.values()
        for interval in row.values()
    ]
    if not halves:
        return ""
    tested = {s.data.units: len(np.unique(s.data.protocol.interval_units[s.data.protocol.test_rows])) for s in sections}
    return (
        f"- {', '.join(f'{count} {units}' for units, count in tested.items())}: the interval of a difference to the "
        f"strongest row is {min(halves):.1f} to {max(halves):.1f} points (median {np.median(halves):.1f}) to either "
        "side; what is smaller than its own cannot be told.\n"
    )


def _when(sections: Sequence[Section]) -> str:
    lines = _head(["set", "labels", "strongest", "best pretrained row, minus it", "verdict", "take"])
    for section in sections:
        for fraction in section.data.protocol.fractions:
            name = section.strongest[fraction]
            mean = beside.mean(section.data.protocol, section.systems[name], fraction, section.data.measure)
            best = section.best_learned(fraction)
            told = ["—", "—"] if best is None else [
                f"`{best.system}` {signed(best.interval)}{_paired(best)}",
                best.comparison.verdict(units=section.data.units),
            ]  # fmt: skip
            cells = [section.short, f"{fraction:.0%}", f"`{name}` {mean:.3f}", *told, f"`{_take(section, fraction)}`"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(section: Section, noted: bool) -> list[str]:
    data, protocol = section.data, section.data.protocol
    measures = sorted(_NAMES, key=lambda name: (name != data.measure, list(_NAMES).index(name)))
    order = " / ".join(_NAMES[name] for name in measures)
    lines = _head([f"{order}", *(f"{fraction:.0%} of labels" for fraction in protocol.fractions)])
    for name, evaluation in section.systems.items():
        cells = []
        for fraction in protocol.fractions:
            first = beside.score(protocol, evaluation, fraction, data.measure)
            shown = f"{first.estimate:.3f}"
            if section.strongest[fraction] == name:
                shown = f"**{shown}**"
            rest = [f"{beside.mean(protocol, evaluation, fraction, other):.3f}" for other in measures[1:]]
            cells.append(" / ".join([f"{shown} [{first.low:.3f}, {first.high:.3f}]", *rest]))
        seeded = name in section.recipes or name.endswith("supervised")
        seeds = f" ({evaluation.seeds} seed{'s' * (evaluation.seeds > 1)})" if seeded else ""
        lines.append(f"| {name}{seeds} | {' | '.join(cells)} |")
    parts = [
        f"## {section.name}",
        data.note if noted else "",
        "\n".join(lines),
        "Bold: the strongest row without pretraining.",
    ]
    if section.missing:
        parts.append(f"Not run: {', '.join(f'`{name}`' for name in section.missing)}.")
    if section.learned:
        parts.append(_beside(section))
    if section.shown:
        parts.append(f"![paired differences]({_figure(section).as_posix()})")
    if data.protocol.name == "ravdess" and section.mode == "inductive":
        parts.append(_published())
    if data.values is not None:
        parts += _sentiment(section, data.values)
    return parts


def _beside(section: Section) -> str:
    fractions = section.data.protocol.fractions
    heads = [f"{f:.0%}: minus `{section.strongest[f]}`" for f in fractions]
    lines = _head([f"paired difference in {_NAMES[section.data.measure]}", *heads])
    rows: dict[str, list[str]] = {}
    for (name, other, fraction), one in section.differences.items():
        label = name if other == section.strongest[fraction] else f"{name} minus {other}"
        if one is None:
            rows.setdefault(label, []).append("— (no common seed)")
            continue
        said = one.comparison.verdict(units=section.data.units)
        p = "< 0.001" if one.comparison.adjusted < 0.001 else f"{one.comparison.adjusted:.3f}"
        rows.setdefault(label, []).append(f"{signed(one.interval)}{_paired(one)}, p {p}: {said}")
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()]
    return "\n".join(lines)


def _paired(one: Beside) -> str:
    """Of how many seeds a difference is, where both rows have not the same ones."""
    return f" ({len(one.seeds)} common seed{'s' * (len(one.seeds) > 1)})" if one.seeds else ""


def _published() -> str:
    lines = _head(["outside rows, RAVDESS speech, all labels", "accuracy", ""])
    lines += [f"| {name} | {value / 100:.3f} | {source} |" for name, value, source in PUBLISHED]
    told = (
        f"{_SOURCE}: all 1,440 clips, eight emotions, five folds over all 24 actors (four or five are tested at a "
        "time), features not normalised by the tested actor; the speech network was fine-tuned on the training clips. "
        "Other folds, other (far larger) encoders, five more training actors: they are beside the column of 100 % "
        "of labels, inductive, not in its order. No interval can be given."
    )
    return "\n".join(lines) + f"\n\n{told}"


def _sentiment(section: Section, truth: NDArray[np.float64]) -> list[str]:
    """Scores of the continuous sentiment, predicted by ridge regression from all labels."""
    tested = section.data.protocol.test_rows
    lines = _head(
        ["sentiment", "MAE", "Pearson", "CCC", "Acc-7", "Acc-2 (negative / not)", "Acc-2 (negative / positive)"]
    )
    for name, evaluation in section.systems.items():
        if evaluation.values is None:
            continue
        scores = [sentiment(truth[tested], draw) for draw in evaluation.values[:, tested]]
        shown = ("mae", "pearson", "concordance", "accuracy7", "accuracy2_nonnegative", "accuracy2_positive")
        columns = np.mean([[each[score] for score in shown] for each in scores], axis=0)
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in columns)} |")
    return [
        "Continuous sentiment (-3 to 3) by ridge regression from all training labels, mean over the seeds: absolute "
        "error, Pearson correlation, concordance (Lin 1989), accuracy of the seven rounded classes, and of two, "
        "negative against the rest and, zeros left out, against positive.",
        "\n".join(lines),
    ]


def pretrain_command(settings: Any, recipe: str, modalities: Sequence[str]) -> str:
    """The command that pretrains a recipe at these settings, from what they change of the preset."""
    config = settings.config(recipe, tuple(modalities))
    changed = dict(_leaves(config.to_dict()))
    default = dict(_leaves(presets.build(config.preset, recipe, modalities=config.modalities).to_dict()))
    short = {"global_batch": "batch", "epochs": "epochs", "optimizer.lr": "lr"}
    options = [
        f"--{short.get(name, f'pretrain.{name}').replace('_', '-')} {value}"
        for name, value in changed.items()
        if name != "seed" and value != default[name]
    ]
    fixed = f"--preset {config.preset} --recipe {recipe} --modalities MODALITIES --seed SEED"
    return f"python -m ray_jobs.pretrain {fixed} {' '.join(options)} --data SHARDS --run NAME"


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _modalities(sections: Sequence[Section]) -> str:
    """Those of each set, as an option takes them."""
    sets: dict[str, list[str]] = {}
    for section in sections:
        sets.setdefault(",".join(section.data.features), []).append(section.data.short)
    return "; ".join(f"`{modalities}` of {', '.join(dict.fromkeys(names))}" for modalities, names in sets.items())


def _recipes(sections: Sequence[Section], settings: Any) -> str:
    lines = _head(["recipe", "result (3 / 10 / 100 % of labels)", "time", "command"])
    judge = "python -m ray_jobs.evaluate --run NAME --label LABEL --data SHARDS"
    made = {
        recipe: f"`{pretrain_command(settings, recipe, tuple(section.data.features))}`, `{judge}`: row `pretrained`"
        for section in sections
        for recipe in dict.fromkeys(section.recipes.values())
    }
    commands: dict[str, str] = {}
    for recipe, command in made.items():
        commands |= {recipe: command, f"{recipe} + raw": f"that of `{recipe}`: row `pretrained + raw`"}
    commands |= {
        "raw balanced": f"`{judge}`: row `raw balanced`",
        "raw, supervised": f"`{judge} --comparison.baselines supervised`: row `raw, supervised`",
    }
    for system, command in commands.items():
        results, times, judged = [], [], []
        for section in sections:
            found = section.systems.get(system)
            if found is None:
                continue
            protocol, measure = section.data.protocol, section.data.measure
            scores = [f"{beside.mean(protocol, found, f, measure):.3f}" for f in protocol.fractions]
            results.append(f"{section.short}: {' / '.join(scores)}")
            judged.append(found.seconds / (found.seeds * len(protocol.folds)))
            if system in section.recipes:
                times.append(section.seconds.get(section.recipes[system], float("nan")))
        known = [second for second in times if np.isfinite(second)]
        if results:
            took = f"{f'pretraining {_span(known)}' if known else 'no pretraining'}, judging {_span(judged)}"
            lines.append(f"| `{system}` | {'<br>'.join(results)} | {took} | {command} |")
    return "\n".join(lines)


def _span(seconds: Sequence[float]) -> str:
    low, high = f"{min(seconds):.0f}", f"{max(seconds):.0f}"
    return f"{low} s" if low == high else f"{low} to {high} s"


def _head(names: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
