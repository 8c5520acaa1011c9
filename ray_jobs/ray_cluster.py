"""Joins the Ray cluster that is there, or starts a local one: the one place where jobs get their Ray.

A local Ray is this user's alone: its ports are on the loopback interface, its files in a folder that nobody else may
enter, and who connects needs a token that lies there, mode 0600. It needs no home directory. On a machine that is busy
or small it is given time and several tries; where it does not come up at all, the job ends with one line of advice.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import resource
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import (
    ray_constants,
    services,
    utils,
)  # of Ray's start alone; all else is in training/ray_internals.py
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from conclugen.common import ending, machine, paths, screen, uris
from conclugen.common.locks import Owner
from conclugen.common.options import JobFailedError
from ray_jobs import ray_loggers, ray_token

# A training worker reserves its CPUs, and the tasks that read data need some beside them.
_SPARE_CPUS = 4
_LEAST_TRIES = 3
_PATIENCE_S = 600.0  # after the last try that began within it the start is given up; RAY_START_WAIT_S
_NODE_S = 150.0  # of one try, for the node to register; Ray's own 30 s are too few where a core is shared by many
# A socket's path has at most 107 bytes, of which the names of a session take 70.
_LONGEST_FOLDER = 36
_LEAST_DISK_MIB, _LEAST_MEMORY_MIB = 200, 1000  # below them a failed start is explained by them
# What Ray waits for by itself, for a local Ray whose cores are shared with other work.
_PATIENT = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_failure_threshold": "20",
}
_GONE_S = 1.0  # for processes that were killed
_EXPECTED = "RAY_worker_maximum_startup_concurrency"
_LEAST_ADDRESS_SPACE = 16 << 30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray keeps objects
_OPEN = "r"  # Ray lets everybody into the folder that it is given, so that one lies in the private one
# Whose token it is: host, process, and when that began.
_TOKEN = re.compile(r"token-(?P<host>[^@]+)@(?P<pid>\d{1,9})@(?P<began>[^@]*)@[^@]+")
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class NoRayError(JobFailedError):
    """No Ray could be joined or started; the message says what to do."""


def connect(workers: int, cpus_per_worker: int = 1, dashboard: bool = False, spare: int = _SPARE_CPUS) -> None:
    """Join the cluster named by RAY_ADDRESS (a submitted job's own, for instance), else start Ray on this machine.

    A local Ray gets enough logical CPUs for the workers and the tasks that read for them, also where there are
    fewer cores. dashboard: a local Ray has one, for whose start `ray.init` waits; only Ray Train inside Ray Tune needs
    it, to ask its State API which controllers have died. spare: logical CPUs beside those of the workers.

    Raises NoRayError.
    """
    if ray.is_initialized():
        return
    if not screen.is_terminal(sys.stderr):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # before lines of workers: no colours in a log
    try:
        with _signals_stay():
            if joins():
                _join(os.environ["RAY_ADDRESS"])
            else:
                ray_loggers.quieten(ray_loggers.AUTHENTICATION)
                _start_local(workers * cpus_per_worker + spare, dashboard)
    finally:
        ending.retake()  # Ray's native part has taken SIGTERM
    ray_loggers.show_our_lines()


def check_places(
    workers: int, cpus: int, gpu: bool, least: int | None, nodes: Sequence[Mapping[str, Any]]
) -> str | None:
    """A warning where workers of so many CPUs each (and a GPU) find no place on the cluster now, None where all do.

    least: workers with which the run begins as well. nodes: as `ray.nodes()` gives them. Raises ValueError on this
    machine alone, which no node will join.
    """
    wanted = {"CPU": cpus} | ({"GPU": 1} if gpu else {})
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    places = sum(int(min(there.get(name, 0) // count for name, count in wanted.items())) for there in alive)
    if places >= (workers if least is None else least):
        return None
    has = ", ".join(f"{sum(there.get(name, 0) for there in alive):g} {name}s" for name in reversed(wanted))
    each = f"{'a GPU and ' if gpu else ''}{cpus} CPU{'s' if cpus > 1 else ''}"
    found = f"run.workers={workers}: a worker wants {each}, and there is room for {places} ({has} on {len(alive)} node"
    found += "s)" if len(alive) != 1 else ")"
    remedy = f"run.workers={places}" if places else "run.gpu=false, or a cluster with GPUs (RAY_ADDRESS)"
    if not joins() and len(alive) == 1:
        raise ValueError(f"{found}; give {remedy}")
    smaller = f"run.workers={places}, or run.min_workers={places}" if places else remedy
    return f"warning: {found}; the run waits for nodes to join. Where none will, give {smaller}"


def processes() -> int | None:
    """How many tasks shall run at once that keep a core busy each: as many as this machine has cores, where Ray was
    told of more for what only waits; None on a cluster, whose nodes say how many they have."""
    return None if joins() else machine.cores()


def joins() -> bool:
    """Whether `connect` joins a cluster; RAY_ADDRESS=local is Ray's word for one of its own on this machine."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def _join(address: str) -> None:
    if (why := ray_token.refusal(address)) is not None:  # Ray would try for half a minute
        raise NoRayError(f"RAY_ADDRESS: {why}")
    try:
        ray.init(log_to_driver=True, logging_level="warning")
    except Exception as error:
        advice = ray_token.advice(error)
        remedy = advice or "correct it, start the cluster, or unset RAY_ADDRESS to work on this machine alone"
        raise NoRayError(
            f"RAY_ADDRESS: no Ray cluster could be joined at {uris.public(address)} ({_first_line(error)}); {remedy}"
        ) from error


def _start_local(cpus: int, dashboard: bool) -> None:
    """Start Ray on this machine with that many logical CPUs, or as many as there are cores.

    Ray gives its own processes fixed times to come up. A machine that is busy (with what a killed job has left, for
    instance) gets longer ones here, and other tries.
    """
    _check_address_space()
    patience_s = _patience_s()
    folder = private_folder()
    _own_token(folder)
    # Nobody takes the one node of a local Ray away with a notice: Ray Train need not start a process, at each start of
    # its workers, that waits for one. What the user has set there holds.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    for name, value in _PATIENT.items():
        os.environ.setdefault(name, value)
    cpus = max(cpus, machine.cores())
    began, tries = time.monotonic(), 0
    while True:
        tries += 1
        try:
            starting = screen.doing("starting Ray on this machine")
            with starting, _as_many_workers(cpus), _on_loopback(), _patient(), _whole_or_gone():
                ray.init(
                    # Without it, Ray would look for one left by an earlier job of this machine, which may be dying.
                    "local",
                    num_cpus=cpus,
                    object_store_memory=_store_bytes(),
                    include_dashboard=dashboard,
                    logging_level="warning",
                    _temp_dir=str(folder / _OPEN),
                )
            return
        except Exception as error:
            waited = time.monotonic() - began
            if _is_lasting(error) or (tries >= _LEAST_TRIES and waited > patience_s):
                raise NoRayError(_advice(error, tries, waited, folder)) from error
            print(f"Ray is not up after {waited:.0f} s; try {tries + 1}: {_why_late(error)}", flush=True)
            time.sleep(min(5.0 * tries, 30.0))


def _why_late(error: Exception) -> str:
    """Ray's own message is of processes that time out; mostly the machine has other work."""
    load, cores = os.getloadavg()[0], machine.cores()
    return f"the machine is busy, load {load:.1f} on {cores} cores" if load > cores else _first_line(error)


def _store_bytes() -> int | None:
    """Size of the object store where this process's memory is limited by a group that Ray does not look at (it knows
    that of a container): Ray's own share of what is free, or None, where Ray sees the same."""
    limit, available = machine.memory_limit(), psutil.virtual_memory().available
    if limit is None or limit.free >= available:
        return None
    share = int(limit.free * ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION)
    least: int = ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES
    with contextlib.suppress(OSError):
        share = min(share, shutil.disk_usage(_SHARED_MEMORY).free)
    return max(share, least)


def _free_memory() -> int:
    """Bytes that this machine and the limits of this process have left."""
    limit, available = machine.memory_limit(), int(psutil.virtual_memory().available)
    return available if limit is None else min(limit.free, available)


def private_folder() -> Path:
    """Where a local Ray keeps its sockets, logs and token: this user's own, mode 0700, below the system's temporary
    folder or as RAY_TMPDIR says. Raises NoRayError where there is none that serves."""
    given = os.environ.get("RAY_TMPDIR")
    own = f"ray-{os.getuid()}"
    if given:
        try:
            folder = paths.absolute(given, "RAY_TMPDIR") / own
        except ValueError as error:
            raise NoRayError(str(error)) from None
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            raise NoRayError(
                f"RAY_TMPDIR: {given} is too long for the names of sockets below it; name a shorter folder"
            )
    else:
        try:
            # Long paths (batch systems have them) do not fit into a socket's name; the usual places are short.
            places = [Path(tempfile.gettempdir()), *map(Path, ("/tmp", "/var/tmp", "/dev/shm"))]  # noqa: S108
            fitting = (place / own for place in places if os.access(place, os.W_OK | os.X_OK))
            folder = next(path for path in fitting if len(os.fsencode(path)) <= _LONGEST_FOLDER)
        except (OSError, StopIteration):
            raise NoRayError("no temporary folder with a short path can be written to; set RAY_TMPDIR to one") from None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user, or is not a folder")
        folder.chmod(0o700)
    except OSError as error:
        raise NoRayError(
            f"Ray needs a folder of its own ({error}); set RAY_TMPDIR to one that can be written"
        ) from error
    return folder


def _own_token(folder: Path) -> None:
    """Ray would write its token into the home directory, readable by all whom its umask lets in, and fail where there
    is no home. What the user has set for it holds."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if any(os.environ.get(name) for name in _TOKEN_VARIABLES) and not _is_stale(os.environ, folder):
        return
    mine = Owner.here()
    prefix = f"token-{mine.host}@{mine.pid}@{mine.began}@"
    handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)  # mode 0600, whatever the umask
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = name
    # This process may have read another token, for a Ray that is over: Ray keeps the first.
    AuthenticationTokenLoader.instance().reset_cache()
    for other in folder.glob("token-*"):
        made = _TOKEN.fullmatch(other.name)
        if made and Owner(made["host"], int(made["pid"]), made["began"], since=0.0).is_gone():
            with contextlib.suppress(OSError):
                other.unlink()


def _is_stale(environment: Mapping[str, str], folder: Path) -> bool:
    """Whether the token is one of an earlier local Ray of this process that is no longer there."""
    path = environment.get("RAY_AUTH_TOKEN_PATH", "")
    return Path(path).parent == folder and Path(path).name.startswith("token-") and not Path(path).is_file()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray listens on all interfaces, unless it knows, as on desktop systems by default, that no other machine will
    ever join; there is no argument for it. Its processes read the variable, this one has read it when Ray was imported.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, was = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[name] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if was is None:
            del os.environ[name]
        else:
            os.environ[name] = was


@contextlib.contextmanager
def _as_many_workers(cpus: int) -> Iterator[None]:
    """Let Ray expect as many worker processes as it has logical CPUs. It expects as many as there are cores, fewer
    where it was told of more CPUs for what only waits, and warns of three times as many on the job's screen. What the
    user has set there holds."""
    if _EXPECTED in os.environ:
        yield
        return
    os.environ[_EXPECTED] = str(cpus)
    try:
        yield
    finally:
        del os.environ[_EXPECTED]


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Give the node longer to register than the 30 s that are written into Ray, which asks for it by `get_node` and
    looks at the clock between two questions; a raylet that has died is not waited for."""
    ask = services.get_node

    def asked_again(*arguments: object, **more: object) -> object:
        end = time.monotonic() + _NODE_S
        while True:
            try:
                return ask(*arguments, **more)
            except RuntimeError:
                if time.monotonic() > end or not _raylet_lives():
                    raise
                time.sleep(0.2)

    services.get_node = asked_again
    try:
        yield
    finally:
        services.get_node = ask


@contextlib.contextmanager
def _whole_or_gone() -> Iterator[None]:
    """End what Ray has started where it does not come up, or is interrupted meanwhile.

    Ray knows the processes of a start that succeeded. Others would go on beside those of the next try until this
    process ends, and some of them a while longer.
    """
    before = {child.pid for child in _started_by_ray()}
    try:
        yield
    except BaseException:
        try:
            with contextlib.suppress(Exception):
                ray.shutdown()
        finally:
            _kill([child for child in _started_by_ray() if child.pid not in before])
        raise


def _started_by_ray() -> list[psutil.Process]:
    """This process's children that run something of Ray's."""
    package, found = str(Path(ray.__file__).parent), []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if any(word.startswith(package) for word in child.cmdline()):
                    found.append(child)
    return found


def _kill(processes: Sequence[psutil.Process]) -> None:
    """With all that they have started."""
    doomed = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            doomed += process.children(recursive=True)
    for process in doomed:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(doomed, timeout=_GONE_S)


@contextlib.contextmanager
def _signals_stay() -> Iterator[None]:
    """Keep Ray from answering SIGTERM while it starts: it would end the job with status 15, or 1, and without a word.
    In a notebook, where nobody else answers, it may."""
    if not ending.listens():
        yield
        return
    take = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = take


def _raylet_lives() -> bool:
    try:
        children = psutil.Process().children()
        return any(c.name().startswith("raylet") and c.status() != psutil.STATUS_ZOMBIE for c in children)
    except psutil.Error:
        return True


def _patience_s() -> float:
    given = os.environ.get("RAY_START_WAIT_S") or str(_PATIENCE_S)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise NoRayError(f"RAY_START_WAIT_S: must be a number of seconds, at least 0, got {given!r}")
    return seconds


def _is_lasting(error: Exception) -> bool:
    """Whether another try can't help."""
    return isinstance(error, ValueError | TypeError | PermissionError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.EDQUOT)
    )


def _check_address_space() -> None:
    """Below some size Ray's processes do not fail but wait for ever: what they map counts, used or not."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    least = _LEAST_ADDRESS_SPACE + 3 * psutil.virtual_memory().total // 10  # the object store's share of the memory
    if limit != resource.RLIM_INFINITY and limit < least:
        raise NoRayError(
            f"the address space is limited to {limit / 2**30:.1f} GiB (ulimit -v), and Ray maps more than it uses: "
            f"raise it to {least / 2**30:.0f} GiB, or limit the memory itself (a cgroup, the batch system)"
        )


def _advice(error: Exception, tries: int, waited: float, folder: Path) -> str:
    """What happened, the figures of the machine that explain it most often, and what to do; one line."""
    free = shutil.disk_usage(folder).free / 2**20
    memory = _free_memory() / 2**20
    load, cores = os.getloadavg()[0], machine.cores()
    remedy = "run the same command again when the machine is less busy, or join a cluster by RAY_ADDRESS"
    if free < _LEAST_DISK_MIB:
        remedy = f"free some space there, or set RAY_TMPDIR to a folder that has {_LEAST_DISK_MIB} MiB"
    elif memory < _LEAST_MEMORY_MIB:
        remedy = f"free memory, or give the job at least {_LEAST_MEMORY_MIB} MiB"
    return (
        f"Ray could not be started on this machine in {tries} tries and {waited:.0f} s ({_first_line(error)}); load "
        f"{load:.1f} on {cores} cores, {memory:.0f} MiB of memory and {free:.0f} MiB in {folder} free: {remedy}"
    )


def _first_line(error: BaseException) -> str:
    lines = uris.scrub(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')[:300]}" if lines else type(error).__name__
