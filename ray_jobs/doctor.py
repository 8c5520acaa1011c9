"""Command: what is installed and what this machine has, for which commands. `conclugen doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conclugen.common import commands, extras, machine, uris
from conclugen.common.names import did_you_mean
from conclugen.common.options import FAILED, GOOD, Command
from conclugen.common.revision import revision_of, version

_CORE = ("torch", "numpy", "safetensors", "filelock", "yaml")
# What fails to import although it is installed: built for another torch, or against libraries of the system.
_FRAGILE = ("torch", "torchaudio", "torchvision", "av", "cv2", "ray")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps objects
_LEAST_SHARED = 1 << 30  # below it Ray keeps objects on the disk, many times slower
_LEAST_DISK = 5 << 30
_GIB = 1 << 30
_ANSWER_WITHIN_S = 5.0


@dataclass(frozen=True)
class DoctorJob:
    """Say what is installed, what this machine has, and what is missing for which command.

    Exit status: 0 where every command can run (every one that is named), 1 where something keeps one from it.

    Attributes:
        commands: Commands that are looked at; given without an option; none: all of them.
        output: Folder of all runs, whose disk is looked at.
    """

    commands: tuple[str, ...] = ()
    output: Path = Path("outputs")

    def __post_init__(self) -> None:
        known = commands.registered().entries
        for name in self.commands:
            if name not in known:
                raise ValueError(f"commands: unknown command {name!r}; {did_you_mean(name, known)}")


@dataclass(frozen=True)
class Finding:
    """One line. good: None where it is only told; False where it keeps a command from running."""

    name: str
    text: str
    good: bool | None = None


def run(job: DoctorJob) -> int:
    bad = False
    for finding in examine(job):
        mark = {True: "ok", False: "MISSING", None: ""}[finding.good]
        print(f"{finding.name:<15} {mark:<7}  {uris.scrub(finding.text)}".rstrip(), flush=True)
        bad = bad or finding.good is False
    if bad:
        return FAILED
    commands.tell_next(f"{job.commands[0]} --help" if job.commands else "demo")
    return GOOD


def examine(job: DoctorJob) -> Iterator[Finding]:
    """What is found, in the order of the page."""
    broken = dict(_broken())
    yield Finding("conclugen", f"{version()}{_of_clone()}")
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}, {platform.platform(terse=True)}")
    yield Finding("libraries", ", ".join(_versions()))
    for library, why in broken.items():
        yield Finding(library, f"is installed and can't be imported: {why}; reinstall it beside this torch", False)
    yield from _machine(job.output)
    if "torch" not in broken:
        yield Finding("devices", _devices())
    if not extras.absent("train"):
        yield _cluster()
    if not extras.absent("media"):
        yield _media()
    for name in job.commands or commands.registered().entries:
        yield _command(name, broken)


def _of_clone() -> str:
    revision = revision_of(Path(__file__).parent)
    return "" if revision is None else f", a clone at {revision}"


def _versions() -> Iterator[str]:
    names = importlib.metadata.packages_distributions()
    for library in (*_CORE, *extras.EXTRA_OF):
        found = names.get(library, ())
        if found:  # several share a package, such as mlflow and mlflow-skinny
            distribution = library if library in found else found[0]
            yield f"{distribution} {importlib.metadata.version(distribution)}"


def _broken() -> Iterator[tuple[str, str]]:
    for library in _FRAGILE:
        if importlib.util.find_spec(library) is not None:
            try:
                importlib.import_module(library)
            except Exception as error:  # whatever its own code raises
                yield library, f"{type(error).__name__}: {' '.join(uris.scrub(error).split())[:200]}"


def _machine(output: Path) -> Iterator[Finding]:
    limit = machine.memory_limit()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = f"{pages / _GIB:.1f} GiB of memory" + (f", limited to {limit.limit / _GIB:.1f}" if limit else "")
    yield Finding("machine", f"{machine.cores()} cores to use, {memory}")
    there = next(place for place in (output.absolute(), *output.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("disk", f"{there} can't be written to; give another --output", False)
    else:
        few = "" if free >= _LEAST_DISK else "; clips, features and checkpoints of a small set take a few"
        yield Finding("disk", f"{free / _GIB:.1f} GiB free for {output}{few}", free >= _LEAST_DISK or None)
    if _SHARED_MEMORY.is_dir():
        shared = shutil.disk_usage(_SHARED_MEMORY)
        text = f"{shared.free / _GIB:.1f} of {shared.total / _GIB:.1f} GiB free in {_SHARED_MEMORY}"
        few = "; Ray is slow with less than 1: start the container with --shm-size=4g"
        enough = shared.free >= _LEAST_SHARED
        yield Finding("shared memory", text + ("" if enough else few), enough or None)


def _devices() -> str:
    import torch

    built = f"torch is built {f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"
    if not torch.cuda.is_available():
        return f"no GPU in use ({built}); everything runs on CPUs"
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return "; ".join(f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB" for gpu in found) + f" ({built})"


def _cluster() -> Finding:
    """Where the jobs would run, and whether they may. Nothing is started or joined."""
    from ray_jobs import ray_cluster, ray_token

    address = os.environ.get("RAY_ADDRESS", "")
    if not ray_cluster.joins():
        return Finding("Ray", "no cluster is named or found here: jobs start one of their own on this machine", True)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address and (why := ray_token.refusal(address)) is not None:
            return Finding("Ray", why, False)
        return Finding("Ray", f"jobs join the cluster {address or 'of this machine'}", True)
    try:
        socket.create_connection((host, int(port)), _ANSWER_WITHIN_S).close()
    except OSError as error:
        why = error.strerror or "no answer"
        return Finding("Ray", f"nothing answers at {address} ({why}); start it, or unset RAY_ADDRESS", False)
    if (why := ray_token.refusal(address)) is not None:
        return Finding("Ray", why, False)
    return Finding("Ray", f"jobs join the cluster at {address}", True)


def _media() -> Finding:
    import av

    library = ".".join(map(str, av.library_versions["libavcodec"]))
    own = shutil.which("ffmpeg")
    beside = f"a program ffmpeg is at {own}" if own else "no program ffmpeg on PATH"
    return Finding("ffmpeg", f"PyAV {av.__version__} brings libavcodec {library}; {beside}, and none is needed", True)


def _command(name: str, broken: dict[str, str]) -> Finding:
    if absent := commands.missing(name):
        libraries = ", ".join(library for of in absent.values() for library in of)
        return Finding(name, f'lacks {libraries}: pip install "conclugen[{",".join(absent)}]"', False)
    needed = {library for extra in commands.extras_of(name) for library in extras.libraries(extra)}
    if unusable := sorted(needed & set(broken)):
        return Finding(name, f"needs {', '.join(unusable)}, which can't be imported", False)
    try:
        commands.load(name)
    except ValueError as error:
        return Finding(name, str(error), False)
    return Finding(name, "", True)


COMMAND = Command("ray_jobs.doctor", DoctorJob, run, bare="commands")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
