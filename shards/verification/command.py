"""`python -m shards verify`: reads every byte of a data set, names every problem; repairs the manifest on request."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from conclugen.common.options import FAILED, GOOD, PARTIAL
from conclugen.common.screen import Progress
from shards.clips.reader import ClipManifest
from shards.errors import ManifestError
from shards.format.manifest import MANIFEST_NAME
from shards.options import VerifyJob, by_name
from shards.verification.check import Problem, stray_files, verify
from shards.verification.clips import open_manifest
from shards.verification.repair import repair


def run(job: VerifyJob) -> int:
    """Verify, and repair if asked; returns the exit status."""
    folders = by_name(job.data)
    if job.repair:
        (folder,) = folders.values()
        return _repair(folder)
    if len(folders) == 1:
        (folder,) = folders.values()
        whole, told = _verified(folder, job.quiet)
        print(told)
        return GOOD if whole else FAILED
    for name, folder in folders.items():
        _refuse_none(name, folder)  # before hours are spent on the others
    results = {name: _verified(folder, job.quiet, f"{name}/") for name, folder in folders.items()}
    for name, (_, told) in results.items():
        print(f"{name}: {told}")
    return GOOD if all(whole for whole, _ in results.values()) else FAILED


def _verified(folder: str, quiet: bool, corpus: str = "") -> tuple[bool, str]:
    """Whether a data set is whole, and a line that says so; its problems are printed as they are met, shards named
    with the corpus (`NAME/`) in front."""
    began, shown = time.monotonic(), Progress(quiet, sys.stderr)

    def progress(done: int, rows: int) -> None:
        speed = done / max(time.monotonic() - began, 1e-9)
        line = f"{corpus}{' ' * bool(corpus)}{done} of {rows} samples, {speed:,.0f}/s"
        shown.show(line, done / max(rows, 1), last=done == rows)

    def found(problem: Problem) -> None:
        print(replace(problem, shard=f"{corpus}{problem.shard}"), flush=True)

    problems = verify(folder, found, progress)
    if problems:
        return False, f"{len(problems)} problem(s) in {len({problem.shard for problem in problems})} shard(s)"
    manifest = open_manifest(folder)
    for name in stray_files(manifest):
        print(f"note: {corpus}{name} is not in {MANIFEST_NAME}; nothing reads it")
    what = "clips" if isinstance(manifest, ClipManifest) else "samples"
    size = f"{manifest.rows} {what} in {len(manifest)} shards"
    return True, f"{manifest.folder}: whole, {size}, digest {manifest.digest}"


def _refuse_none(name: str, folder: str) -> None:
    """Raise FileNotFoundError, with the corpus, for a folder without a data set; one that is damaged is for later."""
    try:
        open_manifest(folder)
    except ManifestError:
        pass
    except FileNotFoundError as error:
        raise FileNotFoundError(f"corpus {name!r}: {error}") from None


def _repair(folder: str) -> int:
    outcome = repair(folder)
    for name in outcome.rebuilt:
        print(f"rebuilt the index of shard {name!r}")
    for name, reason in outcome.left_out:
        print(f"left out: {reason if name in reason else f'shard {name!r}: {reason}'}")
    for note in outcome.notes:
        print(note)
    print(f"{outcome.manifest.folder}: {outcome.manifest.rows} samples in {len(outcome.manifest)} shards, "
          f"digest {outcome.manifest.digest}")  # fmt: skip
    return PARTIAL if outcome.left_out else GOOD
