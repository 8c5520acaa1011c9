"""Would the tests notice? Small faults drawn from all product lines, each put into a copy of the tree by itself.

    python -m tests.campaigns.mutation --seed 7 --mutants 150 --output FOLDER
    python -m tests.campaigns.mutation --seed 7 --mutants 150 --output FOLDER --tests tests/shards --packages shards
    python -m tests.campaigns.mutation --seed 31 --mutants 160 --output FOLDER --nearest JUNIT.xml

The default tests run once in a copy that notes which of them come by which mutant (FOLDER/tests.jsonl). Then each
mutant meets those that do, the nearest and cheapest first, until one fails; a test that fails without the mutant as
well does not count (FOLDER/results.jsonl). Both resume where they stopped, and survivors meet tests that are new. The
packages stay as they were at the first start (FOLDER/packages); the tests are the working tree's, and the table tells
those files of them that stood at the first start (FOLDER/tests.json) from those that were written or changed since.

`--nearest` spares the run that notes: each mutant meets the files of tests whose imports are nearest to it, nearest and
cheapest first by the times of a run of the default tests. What it kills is killed; what it leaves, others may yet kill.

FOLDER/judged.json may say {"file:line kind": "why this changes nothing"} of survivors; the table counts them apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.campaigns.mutation import recording, running
from tests.campaigns.mutation.mutants import PACKAGES, Mutant, draw
from tests.campaigns.mutation.nearest import nearest, seconds_of
from tests.campaigns.mutation.recording import TestRun

REPOSITORY = Path(__file__).resolve().parents[3]
KILLED = ("killed", "timeout")
_LONGEST_S = 45.0  # a file of tests that takes longer is no near one
_QUICK_S = 1.0  # a test that takes longer is left out at first
_QUICK_TESTS_S = 4.0  # of the nearest quick tests first: most mutants meet no more


@dataclass
class Campaign:
    """One folder. covering: mutants (as numbers) to the tests that met them, with their CPU seconds; results: what
    became of each mutant; ran: the tests that each met; unfit: tests that fail alone without any mutant."""

    output: Path
    mutants: list[Mutant]
    limit_s: float
    digests: dict[str, str] = field(default_factory=dict)
    covering: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    recorded: set[tuple[str, str]] = field(default_factory=set)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    ran: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    fit: dict[str, bool] = field(default_factory=dict)
    # Where imports tell: distances of files of tests; seconds of whole ones; tests that are left out at first.
    distances: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    long: set[str] = field(default_factory=set)

    def digest(self, file: str) -> str:
        if file not in self.digests:
            path = REPOSITORY / file
            self.digests[file] = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
        return self.digests[file]

    def read(self) -> None:
        for record in _read(self.output / "tests.jsonl"):
            if record["digest"] == self.digest(record["file"]):
                self.recorded.add((record["file"], record["digest"]))
                for test, seconds, numbers in record["tests"]:
                    for number in numbers:
                        self.covering[number][test] = seconds
        for record in _read(self.output / "results.jsonl"):
            self.results[record["mutant"]] = record
            self.ran[record["mutant"]].update(record["ran"])

    def record(self, files: Sequence[str], tree: Path) -> None:
        """Runs each file of tests in an instrumented tree, unless it has been."""
        hits = self.output / "hits.txt"
        recording.instrument(tree, self.mutants, hits)
        for file in files:
            if (file, self.digest(file)) in self.recorded:
                continue
            hits.unlink(missing_ok=True)
            ended, runs = running.run_tests(tree, [file], work=self.output, cpu_s=1800, wall_s=3600)
            met = recording.met(hits, runs, self.mutants)
            tests = [(run.test, round(run.seconds, 3), met[run.test]) for run in runs]
            line = {"file": file, "digest": self.digest(file), "tests": tests}
            _append(self.output / "tests.jsonl", line)
            total = sum(run.seconds for run in runs)
            print(
                f"{file}: {ended}, {len(runs)} tests, {total:.1f} s, {len(set().union(*met.values()))} mutants",
                flush=True,
            )
        self.read()

    def take_nearest(self, tree: Path, times: Path) -> None:
        """Covering by imports: files of tests, with the seconds of their quick tests."""
        tests = seconds_of(times)
        self.long = {test for each in tests.values() for test, s in each.items() if s > _QUICK_S}
        seconds = {file: sum(s for s in each.values() if s <= _QUICK_S) for file, each in tests.items()}
        self.seconds = {file: sum(each.values()) for file, each in tests.items()}
        for file in self.changed_since():
            seconds.setdefault(file, 1.0)
            self.seconds.setdefault(file, 1.0)
        self.distances = nearest(tree, [file for file in seconds if self.seconds[file] <= _LONGEST_S])
        self.covering = defaultdict(dict)
        for number, mutant in enumerate(self.mutants):
            self.covering[number] = {file: seconds[file] for file in self.distances[mutant.file]}

    def changed_since(self) -> list[str]:
        """Files of tests that are not what they were at the first start."""
        first = self.output / "tests.json"
        now = {
            path.relative_to(REPOSITORY).as_posix(): self.digest(path.relative_to(REPOSITORY).as_posix())
            for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        }
        if not first.exists():
            first.write_text(json.dumps(now, indent=1), encoding="utf-8")
        then = json.loads(first.read_text(encoding="utf-8"))
        return [file for file, digest in now.items() if then.get(file) != digest]

    def meet(self, number: int, tree: Path, limit_s: float, quick: bool = False) -> None:
        """One mutant and the tests that come by it, but for those that it has met, for some seconds of tests. quick:
        without long tests."""
        mutant = self.mutants[number]
        if self.results.get(number, {}).get("status") in KILLED:
            return
        tests = self.chosen(number, limit_s, quick)
        if not tests:
            return
        path = tree / mutant.file
        clean = path.read_bytes()
        print(f"{number} {mutant.file}:{mutant.line} {mutant.kind}: {len(tests)} tests", end=" ", flush=True)
        try:
            path.write_bytes(mutant.apply(clean))
            os.utime(path, (1e9 + number, 1e9 + number))  # compiled files are told from each other by this time
            ended, runs = self.run(tests, tree, self.long if quick else ())
        finally:
            path.write_bytes(clean)
        failed = [run.test for run in runs if not run.passed]
        if ended == "passed":
            result = {"status": "survived", "by": ""}
        elif ended == "timeout":
            whole = len(runs) < len(tests) and "::" in tests[len(runs)]
            result = {"status": "timeout", "by": tests[len(runs)] if whole else runs[-1].test if runs else tests[0]}
        elif failed and not self.is_fit(failed[0], tree):
            print(f"{failed[0]} fails by itself", flush=True)
            return self.meet(number, tree, limit_s, quick)  # without it
        elif not failed and self.run([*tests, "--collect-only"], tree)[0] != "passed":
            print("not comparable: some test's name is another in every process", flush=True)
            return
        else:
            result = {"status": "killed", "by": failed[0] if failed else "import"}
        line = {
            "mutant": number,
            "place": place(mutant),
            **result,
            "ran": sorted({self.key(test, quick) for test in tests}),
        }
        line["since"] = result["by"].split("::", 1)[0] in self.changed_since()
        _append(self.output / "results.jsonl", line)
        self.results[number] = line
        self.ran[number].update(line["ran"])
        print(result["status"], result["by"], flush=True)

    def key(self, test: str, quick: bool) -> str:
        return f"{test} {self.digest(test.split('::', 1)[0])}{' quick' if quick else ''}"

    def chosen(self, number: int, limit_s: float, quick: bool) -> list[str]:
        """Nearest and cheapest first, as far as the limit of seconds allows."""
        costs = self.covering[number]
        chosen, total = [], 0.0
        file = self.mutants[number].file
        near = self.distances.get(file, {})
        for test in sorted(costs, key=lambda t: (near.get(t, _distance(t, file)), costs[t], t)):
            if self.key(test, quick) in self.ran[number] or not self.fit.get(test, True):
                continue
            total += costs[test] if quick else self.seconds.get(test, costs[test])
            if chosen and total > limit_s:
                break
            chosen.append(test)
        return chosen

    def run(self, tests: Sequence[str], tree: Path, skipped: Collection[str] = ()) -> tuple[str, list[TestRun]]:
        known = {test: s for costs in self.covering.values() for test, s in costs.items()} | self.seconds
        seconds = sum(known.get(test, 0.0) for test in tests)
        unfit = [f"--deselect={test}" for test, fit in self.fit.items() if not fit]
        return running.run_tests(
            tree,
            ["-x", *unfit, *tests],
            work=self.output,
            cpu_s=30 + 3 * seconds,
            wall_s=240 + 20 * seconds,
            skipped=skipped,
        )

    def is_fit(self, test: str, tree: Path) -> bool:
        """Whether a test passes by itself where nothing is changed."""
        if test not in self.fit:
            self.fit[test] = True  # not left out of this run
            self.fit[test] = self.run([test], tree)[0] == "passed"
        return self.fit[test]


def place(mutant: Mutant) -> str:
    return f"{mutant.file}:{mutant.line} {mutant.kind}"


def _distance(test: str, file: str) -> int:
    """0: the file's own tests; 1: those of its folder; 2: of its package; 3: others."""
    path, source = Path(test.split("::", 1)[0]), Path(file)
    folder = source.parent == path.relative_to("tests").parent
    if folder and path.stem == f"test_{source.stem}":
        return 0
    return 1 if folder else 2 if path.parts[1] == source.parts[0] else 3


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def copy_of_tree(packages: Path, target: Path) -> Path:
    """The working tree's files, the four packages as they were at the campaign's first start."""
    shutil.rmtree(target, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0")
    for name in listed:
        if name and name.split("/", 1)[0] not in PACKAGES and (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    for package in PACKAGES:
        shutil.copytree(packages / package, target / package)
    return target


def frozen(output: Path) -> Path:
    folder = output / "packages"
    if not folder.exists():
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / package, output / "packages.new" / package, ignore=ignored)
        (output / "packages.new").rename(folder)
    return folder


def table(campaign: Campaign) -> str:
    judged = {}
    if (path := campaign.output / "judged.json").exists():
        judged = json.loads(path.read_text(encoding="utf-8"))
    states = [_state(campaign, number, judged) for number in range(len(campaign.mutants))]
    heads = ["drawn", "killed by tests that were there", "of these, endless", "by tests since", "survived"]
    heads += [
        "no test comes by",
        "changes nothing",
        "killed of those that change something",
        "by tests that were there",
    ]
    lines = []
    for title, key in (("package", lambda m: m.package), ("kind of change", lambda m: m.kind)):
        names = sorted({key(m) for m in campaign.mutants}, key=list(PACKAGES).index if title == "package" else None)
        lines += [f"| {' | '.join([title, *heads])} |", "|---" * (1 + len(heads)) + "|"]
        for name in [*names, "all"]:
            own = [s for s, m in zip(states, campaign.mutants, strict=True) if name in ("all", key(m))]
            there, since = own.count("killed") + own.count("timeout"), own.count("since")
            changing = len(own) - own.count("equivalent")
            counts = [len(own), there, own.count("timeout"), since]
            counts += [own.count(state) for state in ("survived", "unmet", "equivalent")]
            shares = [f"{100 * killed / changing:.0f} %" if changing else "" for killed in (there + since, there)]
            lines.append(f"| {' | '.join(map(str, [name, *counts, *shares]))} |")
        lines.append("")
    lines += ["| survivor | before | after | |", "|---|---|---|---|"]
    for state, mutant in zip(states, campaign.mutants, strict=True):
        if state not in (*KILLED, "since"):
            why = judged.get(place(mutant), "no test comes by" if state == "unmet" else "")
            before, after = (text.replace("|", "\\|")[:90] for text in (mutant.before, mutant.after))
            lines.append(f"| {place(mutant)} | `{before}` | `{after}` | {why} |")
    return "\n".join(lines)


def _state(campaign: Campaign, number: int, judged: dict[str, str]) -> str:
    result = campaign.results.get(number, {"status": "unmet"})
    if result["status"] in KILLED:
        return "since" if result.get("since") else str(result["status"])
    return "equivalent" if place(campaign.mutants[number]) in judged else str(result["status"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--mutants", type=int, default=150, metavar="N")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="outside of the repository")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files and folders (default: all)")
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), help="whose mutants meet the tests")
    parser.add_argument("--limit", type=float, default=60, metavar="S", help="CPU seconds of tests a mutant and call")
    parser.add_argument("--nearest", type=Path, metavar="JUNIT.xml", help="choose tests by imports; times of a run")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args(arguments)
    output = options.output.absolute()
    if output.is_relative_to(REPOSITORY):
        parser.error(f"--output must be outside of the repository, {output} is in it")
    output.mkdir(parents=True, exist_ok=True)
    packages = frozen(output)
    campaign = Campaign(output, draw(packages, options.mutants, options.seed), options.limit)
    listed = output / "mutants.json"
    if not listed.exists():
        listed.write_text(json.dumps([asdict(m) for m in campaign.mutants], indent=1), encoding="utf-8")
    if json.loads(listed.read_text(encoding="utf-8")) != [asdict(m) for m in campaign.mutants]:
        parser.error(f"{output} holds another draw: take its seed and number, or a new folder")
    campaign.read()
    if options.nearest is not None and not options.table:
        tree = copy_of_tree(packages, output / "scratch")
        running.preload(tree)
        campaign.take_nearest(tree, options.nearest)
        # Some of each package early: a run that is stopped then tells of all of them.
        numbers = sorted(range(len(campaign.mutants)), key=lambda number: (number % 8, number))
        for number in numbers:
            if campaign.mutants[number].package in options.packages:
                if number not in campaign.results:
                    campaign.meet(number, tree, _QUICK_TESTS_S, quick=True)
                if options.limit > 0:
                    campaign.meet(number, tree, options.limit)
    elif not options.table:
        running.preload(packages)
        files = [path for name in options.tests for path in sorted((REPOSITORY / name).rglob("test_*.py"))]
        files += [REPOSITORY / name for name in options.tests if name.endswith(".py")]
        names = [path.relative_to(REPOSITORY).as_posix() for path in files if "campaigns" not in path.parts]
        campaign.record(names, copy_of_tree(packages, output / "instrumented"))
        tree = copy_of_tree(packages, output / "scratch")
        for number, mutant in enumerate(campaign.mutants):
            if mutant.package in options.packages:
                campaign.meet(number, tree, options.limit)
    print(table(campaign))
    return 0


if __name__ == "__main__":
    sys.exit(main())
