"""Many damaged videos through the real jobs: `python -m tests.campaigns.clip_fuzz CLIPS --cases 550 --results FILE`.

CLIPS is a folder of real clips (.mp4, .mpg); the first second of each is what gets damaged. Both jobs run as a user
runs them, on a local Ray, with faces looked for; the encoders are the random projections, since no encoder is under
test. The table goes to the terminal, or into a document between `<!-- clip fuzz: begin -->` and `end`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ray

from ray_jobs import build_shards, extract_features, ray_cluster
from tests.campaigns.clip_fuzz.campaign import (
    BUILD,
    CONTAINED,
    DEFECT,
    EXTRACTION,
    MADE,
    TIMEOUT,
    Result,
    features_of,
    name_of,
    one_process,
    run_block,
    shortened,
)
from tests.campaigns.clip_fuzz.damage import EVERY_KIND

BEGIN, END = "<!-- clip fuzz: begin -->", "<!-- clip fuzz: end -->"
BLOCK = 275  # cases of one data set
ENCODERS = ("random-image", "random-video", "random-audio")


def real_jobs(videos: Path, clips: Path, features: Path, between: Callable[[], None]) -> None:
    """Both jobs by their command lines; RuntimeError for an exit status that says neither done nor quarantined."""
    build = ["--adapter", "folder", "--source", str(videos), "--out", str(clips), "--timeout", str(TIMEOUT), "--quiet"]
    status = build_shards.main(build)
    if status not in (0, 3):
        raise RuntimeError(f"build_shards ended with status {status}")
    between()
    extract = ["--clips", str(clips), "--out", str(features), "--encoders", *ENCODERS, "--quiet"]
    status = extract_features.main(extract)
    if status not in (0, 3):
        raise RuntimeError(f"extract_features ended with status {status}")


def read_results(path: Path, seed: int) -> dict[int, Result]:
    lines = path.read_text().splitlines() if path.exists() else []
    found = [Result(**json.loads(line)) for line in lines]
    return {result.case: result for result in found if result.seed == seed}


def table(results: list[Result]) -> str:
    """A row for each kind of damage, and the sum; then the reasons."""
    heads = ["damage", "cases", "features made", "quarantined by the build", "of these, child ended"]
    heads += ["quarantined by the extraction", "lost, doubled, crash, hang"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for kind in (*EVERY_KIND, "all"):
        own = [result for result in results if kind in (result.kind, "all")]
        counts = Counter(result.outcome for result in own)
        numbers = [len(own), counts[MADE], counts[BUILD] + counts[CONTAINED], counts[CONTAINED]]
        numbers += [counts[EXTRACTION], counts[DEFECT]]
        lines.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    reasons = Counter(result.reason for result in results if result.outcome in (BUILD, CONTAINED, EXTRACTION))
    lines += ["", "Reasons: " + ", ".join(f"{count} `{reason}`" for reason, count in reasons.most_common()) + "."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.clip_fuzz", description=__doc__)
    parser.add_argument("clips", type=Path, metavar="CLIPS")
    parser.add_argument("--cases", type=int, default=550)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("clip_fuzz.jsonl"), help="continues where it stopped")
    parser.add_argument("--one-process", action="store_true", help="the jobs' own work, but without Ray: much cheaper")
    parser.add_argument("--blocks", type=int, metavar="N", help=f"run N blocks of {BLOCK} cases at most, then stop")
    parser.add_argument("--table", type=Path, metavar="DOCUMENT", help="write the table into this document")
    args = parser.parse_args()
    done = read_results(args.results, args.seed)
    starts = [start for start in range(0, args.cases, BLOCK) if start not in done][: args.blocks]
    if starts:
        with tempfile.TemporaryDirectory(prefix="cf", ignore_cleanup_errors=True) as name:  # socket paths must be short
            if not args.one_process:
                os.environ["RAY_TMPDIR"] = f"{name}/ray"
                ray_cluster.connect(2, dashboard=False)  # both jobs continue with a Ray that is there
            _run(args, starts, Path(name))
            ray.shutdown()
    results = list(read_results(args.results, args.seed).values())
    text = table(results)
    print(text)
    if args.table is not None:
        before, rest = args.table.read_text().split(BEGIN)
        args.table.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    return 1 if any(result.outcome == DEFECT for result in results) else 0


def _run(args: argparse.Namespace, starts: list[int], folder: Path) -> None:
    (folder / "sources").mkdir()
    paths = sorted(path for path in args.clips.iterdir() if path.suffix in (".mp4", ".mpg"))
    sources = [shortened(path, folder / "sources" / path.name) for path in paths]
    one_process(folder / "sources", folder / "alone/clips", folder / "alone/features", lambda: None, encoders=ENCODERS)
    alone = features_of(folder / "alone/features")
    assert set(alone) == {path.name for path in sources}, "not every shortened clip is whole"
    isolated = partial(one_process, isolated=True, encoders=ENCODERS)
    jobs = isolated if args.one_process else real_jobs
    for start in starts:
        cases = range(start, min(start + BLOCK, args.cases))
        try:
            results = run_block(args.seed, cases, sources, folder / "block", jobs, alone)
        except Exception as error:  # every case of the block is suspect until somebody has looked
            traceback.print_exc()
            what = f"{type(error).__name__}: {error}"[:1000]
            results = [Result(args.seed, case, "?", name_of(case, Path()), DEFECT, what) for case in cases]
        with args.results.open("a") as lines:
            lines.writelines(json.dumps(result.to_dict()) + "\n" for result in results)
        print(f"{start + len(results)} of {args.cases} cases", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
