"""`python -m shards verify`: reads every byte of a data set and names all damage; repairs the manifest on request."""

from __future__ import annotations

import sys
import time

from conclugen.common.options import GOOD, PARTIAL
from shards.clips.reader import ClipManifest
from shards.commands import VerifyJob
from shards.manifest import MANIFEST_NAME
from shards.verification.check import Problem, stray_files, verify
from shards.verification.clips import open_manifest
from shards.verification.repair import repair


def run(job: VerifyJob) -> int:
    """Verify, and repair if asked; returns the exit status."""
    if job.repair:
        outcome = repair(job.data)
        for name in outcome.rebuilt:
            print(f"rebuilt the index of shard {name!r}")
        for name, reason in outcome.left_out:
            print(f"left out: {reason if name in reason else f'shard {name!r}: {reason}'}")
        for note in outcome.notes:
            print(note)
        print(f"{outcome.manifest.folder}: {outcome.manifest.rows} samples in {len(outcome.manifest)} shards, "
              f"digest {outcome.manifest.digest}")  # fmt: skip
        return PARTIAL if outcome.left_out else GOOD
    began = time.monotonic()

    def progress(done: int, rows: int) -> None:
        if not job.quiet:
            speed = done / max(time.monotonic() - began, 1e-9)
            print(f"\r{done} of {rows} samples, {speed:,.0f}/s ", end="", file=sys.stderr, flush=True)

    def found(problem: Problem) -> None:
        print(problem, flush=True)

    problems = verify(job.data, found, progress)
    if not job.quiet:
        print(file=sys.stderr)
    if problems:
        shards = len({problem.shard for problem in problems})
        print(f"{len(problems)} problem(s) in {shards} shard(s)")
        return 1
    manifest = open_manifest(job.data)
    for name in stray_files(manifest):
        print(f"note: {name} is not in {MANIFEST_NAME}; nothing reads it")
    what = "clips" if isinstance(manifest, ClipManifest) else "samples"
    print(f"{manifest.folder}: whole, {manifest.rows} {what} in {len(manifest)} shards, digest {manifest.digest}")
    return 0
