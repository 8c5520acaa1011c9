"""`python -m shards verify`: reads every byte of a data set and names all damage; repairs the manifest on request."""

from __future__ import annotations

import argparse
import sys
import time

from shards.clips.reader import ClipManifest
from shards.manifest import MANIFEST_NAME
from shards.verification.check import Problem, stray_files, verify
from shards.verification.clips import open_manifest
from shards.verification.repair import repair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Read every byte of a data set. Each problem is one line: shard, sample, reason, what to do.\n"
        "Exit status: 0 whole, 1 damaged, 2 wrong input."
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder (or URL) of the shards, of features or of clips")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make a manifest of the whole shards: rebuild indexes that are lost, leave damaged shards out and list "
        "them (they stay in the folder)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Verify, and repair if asked; returns the exit status."""
    if args.repair:
        outcome = repair(args.folder)
        for name in outcome.rebuilt:
            print(f"rebuilt the index of shard {name!r}")
        for name, reason in outcome.left_out:
            print(f"left out: {reason if name in reason else f'shard {name!r}: {reason}'}")
        for note in outcome.notes:
            print(note)
        print(f"{outcome.manifest.folder}: {outcome.manifest.rows} samples in {len(outcome.manifest)} shards, "
              f"digest {outcome.manifest.digest}")  # fmt: skip
        return 1 if outcome.left_out else 0
    began = time.monotonic()

    def progress(done: int, rows: int) -> None:
        if not args.quiet:
            speed = done / max(time.monotonic() - began, 1e-9)
            print(f"\r{done} of {rows} samples, {speed:,.0f}/s ", end="", file=sys.stderr, flush=True)

    def found(problem: Problem) -> None:
        print(problem, flush=True)

    problems = verify(args.folder, found, progress)
    if not args.quiet:
        print(file=sys.stderr)
    if problems:
        shards = len({problem.shard for problem in problems})
        print(f"{len(problems)} problem(s) in {shards} shard(s)")
        return 1
    manifest = open_manifest(args.folder)
    for name in stray_files(manifest):
        print(f"note: {name} is not in {MANIFEST_NAME}; nothing reads it")
    what = "clips" if isinstance(manifest, ClipManifest) else "samples"
    print(f"{manifest.folder}: whole, {manifest.rows} {what} in {len(manifest)} shards, digest {manifest.digest}")
    return 0
