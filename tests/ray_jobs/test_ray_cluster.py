"""A local Ray is private, needs no home, gets the time it needs, and fails with one line."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
import ray
from ray._private import ray_constants, services

from conclugen.common import machine
from conclugen.common.machine import Memory
from conclugen.common.options import JobFailedError
from ray_jobs import ray_cluster
from ray_jobs.ray_cluster import NoRayError, private_folder
from tests.clock import Clock

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 12345
LATE = Exception("The current node timed out during startup. This\ncould happen because")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """RAY_TMPDIR; what else of Ray is in the environment is gone, and what the code sets there as well."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="rt") as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield Path(folder)
    os.environ.clear()
    os.environ.update(before)


def runs(pid: int) -> bool:
    """Not so of one whose parent has not asked how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def starts(monkeypatch: pytest.MonkeyPatch, *ends: Exception | None) -> list[dict[str, Any]]:
    """Stands in for `ray.init`, which ends in these ways one after the other; what each call was given and met."""
    calls: list[dict[str, Any]] = []

    def init(*_: Any, **given: Any) -> None:
        calls.append(given | {"cluster": ray_constants.ENABLE_RAY_CLUSTER, "environment": dict(os.environ)})
        end = ends[min(len(calls), len(ends)) - 1]
        if end is not None:
            raise end

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return calls


def test_a_busy_machine_gets_other_tries_and_then_one_line(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for load, why in ((99.0, "the machine is busy, load 99.0 on"), (0.0, "Exception: The current node timed out")):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        calls = starts(monkeypatch, LATE, LATE, LATE, LATE, None)
        ray_cluster.connect(1)
        assert len(calls) == 5
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4 and all("Ray is not up after" in line and why in line for line in lines)
    os.environ["RAY_START_WAIT_S"] = "100"
    calls = starts(monkeypatch, LATE)
    with pytest.raises(NoRayError, match=r"timed out during startup.*; load .* free: .*RAY_ADDRESS") as failed:
        ray_cluster.connect(1)
    assert len(calls) > 3
    assert "\n" not in str(failed.value)
    assert isinstance(failed.value, JobFailedError)  # status 1 and no trace, in every command
    for wrong in ("nan", "inf", "-1", "soon"):
        os.environ["RAY_START_WAIT_S"] = wrong
        calls = starts(monkeypatch, LATE)
        with pytest.raises(NoRayError, match=rf"^RAY_START_WAIT_S: must be .*, at least 0, got '{wrong}'$"):
            ray_cluster.connect(1)
        assert not calls  # not after ten minutes
    del os.environ["RAY_START_WAIT_S"]
    calls = starts(monkeypatch, ValueError("num_cpus"))
    with pytest.raises(NoRayError, match="in 1 tries"):
        ray_cluster.connect(1)
    assert len(calls) == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt(), ValueError("num_cpus")])
def test_a_start_that_does_not_succeed_leaves_no_processes(
    end: BaseException, monkeypatch: pytest.MonkeyPatch, short: Path
) -> None:
    """Ray knows those of a start that has succeeded only. What others have started, or Ray before, goes on."""

    def started(word: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sh", "-c", "sleep 600; true", word])

    package = Path(ray.__file__).parent
    children = {"before": started(f"{package}/gcs_server")}

    def init(*_: Any, **given: Any) -> NoReturn:
        children.update(ours=started(f"{package}/raylet"), foreign=started("/elsewhere/raylet"))
        while not psutil.Process(children["ours"].pid).children():
            time.sleep(0.01)
        children["below"] = psutil.Process(children["ours"].pid).children()[0]  # type: ignore[assignment]
        raise end

    starts(monkeypatch, None)
    monkeypatch.setattr(ray, "init", init)
    try:
        with pytest.raises((KeyboardInterrupt, NoRayError)):
            ray_cluster.connect(1)
        alive = {name for name, child in children.items() if runs(child.pid)}
        assert alive == {"before", "foreign"}
    finally:
        for child in children.values():
            with contextlib.suppress(psutil.Error):
                child.kill()


def test_a_local_ray_is_private(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    calls = starts(monkeypatch, None)
    mask = os.umask(0)
    ray_cluster.connect(1)
    os.umask(mask)
    given = calls[0]["environment"]
    token = Path(given["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert Path(calls[0]["_temp_dir"]).parent == token.parent == short / f"ray-{os.getuid()}"
    # Ray does not warn of as many worker processes as it was told to have CPUs for.
    assert given["RAY_worker_maximum_startup_concurrency"] == str(calls[0]["num_cpus"])
    assert "RAY_worker_maximum_startup_concurrency" not in os.environ
    assert given["RAY_COLOR_PREFIX"] == "0"  # what the tests print is no terminal
    assert calls[0]["cluster"] is False and given[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0"
    # Neither lasts: later this process may join a cluster.
    assert ray_constants.ENABLE_RAY_CLUSTER and ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR not in os.environ
    token.unlink()  # with the folder of an earlier Ray of this process
    ray_cluster.connect(1)
    assert Path(calls[1]["environment"]["RAY_AUTH_TOKEN_PATH"]).is_file()
    os.environ["RAY_AUTH_TOKEN"] = "mine"  # noqa: S105
    del os.environ["RAY_AUTH_TOKEN_PATH"]
    ray_cluster.connect(1)
    assert "RAY_AUTH_TOKEN_PATH" not in calls[2]["environment"]


def test_tokens_of_jobs_that_are_over_go_and_no_others(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    """However old: a run may last for months."""
    starts(monkeypatch, None)
    ray_cluster.connect(1)
    mine = Path(os.environ.pop("RAY_AUTH_TOKEN_PATH"))
    host, pid, began = mine.name.removeprefix("token-").split("@")[:3]
    assert (host, pid) == (socket.gethostname(), str(os.getpid()))
    with subprocess.Popen(["true"]) as ended:
        pass
    over = [f"token-{host}@{ended.pid}@{began}@a", f"token-{host}@{pid}@{began}1@b"]
    others = [f"token-another@{ended.pid}@{began}@c", "token-d"]
    for name in (*over, *others):
        (mine.parent / name).touch()
    os.utime(mine, (0, 0))
    ray_cluster.connect(1)
    new = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert {path.name for path in mine.parent.glob("token-*")} == {*others, mine.name, new.name}


@pytest.mark.parametrize("address", ["", "local"])
def test_rays_word_for_a_local_one_gives_a_private_one(
    monkeypatch: pytest.MonkeyPatch, short: Path, address: str
) -> None:
    os.environ["RAY_ADDRESS"] = address
    calls = starts(monkeypatch, None)
    ray_cluster.connect(1)
    assert not ray_cluster.joins() and Path(calls[0]["_temp_dir"]).is_relative_to(short)
    assert calls[0]["cluster"] is False and calls[0]["environment"]["RAY_AUTH_TOKEN_PATH"]


def test_the_folder_is_nobody_elses(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = short / f"ray-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    own.symlink_to(tmp_path / "theirs")
    with pytest.raises(NoRayError, match=r"belongs to another user, or is not a folder.*set RAY_TMPDIR"):
        private_folder()
    own.unlink()
    own.mkdir(mode=0o777)
    assert private_folder() == own and stat.S_IMODE(own.stat().st_mode) == 0o700
    os.environ["RAY_TMPDIR"] = str(tmp_path / ("long" * 20))
    with pytest.raises(NoRayError, match=r"RAY_TMPDIR: .* is too long"):
        private_folder()
    os.environ["RAY_TMPDIR"] = "/proc/x"
    with pytest.raises(NoRayError, match="set RAY_TMPDIR to one that can be written"):
        private_folder()
    del os.environ["RAY_TMPDIR"]
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / ("long" * 20)))
    assert len(str(private_folder())) < 36


def test_a_node_is_waited_for_as_long_as_its_raylet_lives(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    asked = []

    def get_node(address: str, node: str) -> str:
        asked.append(clock.read())
        if clock.read() - asked[0] < 100:
            raise RuntimeError("no node info")
        return node

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(ray_cluster, "_raylet_lives", lambda: True)
    with ray_cluster._patient():
        assert services.get_node("a", "n") == "n"
    assert services.get_node is get_node and len(asked) > 100
    asked.clear()
    monkeypatch.setattr(ray_cluster, "_raylet_lives", lambda: False)
    with ray_cluster._patient(), pytest.raises(RuntimeError):
        services.get_node("a", "n")
    assert len(asked) == 1


def test_a_raylet_lives_as_long_as_a_child_of_that_name_is_no_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    def child(name: str, status: str) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: name, status=lambda: status)

    def lives(*children: SimpleNamespace) -> bool:
        monkeypatch.setattr(ray_cluster.psutil, "Process", lambda: SimpleNamespace(children=lambda: children))
        return ray_cluster._raylet_lives()

    running, dead = child("raylet", psutil.STATUS_SLEEPING), child("raylet", psutil.STATUS_ZOMBIE)
    assert lives(child("gcs_server", psutil.STATUS_SLEEPING), running) and lives(dead, running)
    assert not lives() and not lives(dead) and not lives(child("gcs_server", psutil.STATUS_SLEEPING))

    def hidden() -> NoReturn:
        raise psutil.AccessDenied

    monkeypatch.setattr(ray_cluster.psutil, "Process", hidden)
    assert ray_cluster._raylet_lives(), "who may not look waits"


def test_a_small_address_space_and_a_cluster_that_is_not_there_are_told(
    monkeypatch: pytest.MonkeyPatch, short: Path
) -> None:
    calls = starts(monkeypatch, ConnectionError("no answer\nfrom there"))
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    with pytest.raises(NoRayError, match=r"^RAY_ADDRESS: no Ray .* at 127.0.0.1:1 \(ConnectionError: no answer\)"):
        ray_cluster.connect(1)
    os.environ["RAY_ADDRESS"] = "ray://me:mine@127.0.0.1:1"
    with pytest.raises(NoRayError, match=r"at ray://127.0.0.1:1 \("):
        ray_cluster.connect(1)
    del os.environ["RAY_ADDRESS"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (6 << 30, 6 << 30))
    with pytest.raises(NoRayError, match=r"limited to 6\.0 GiB \(ulimit -v\)"):
        ray_cluster.connect(1)
    assert len(calls) == 2  # the third was refused before any start


PROGRAM = """
import os, stat, sys
import psutil
from conclugen.common.options import JobFailedError
from ray_jobs import ray_cluster
ray_cluster.connect(1)
import ray
assert ray.get(ray.remote(lambda: 7).remote()) == 7
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
found = [c for process in processes for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
listening = {connection.laddr.ip.removeprefix("::ffff:") for connection in found}
print("listening", sorted(listening))
token = os.environ["RAY_AUTH_TOKEN_PATH"]
print("token", oct(stat.S_IMODE(os.stat(token).st_mode)), oct(stat.S_IMODE(os.stat(os.path.dirname(token)).st_mode)))
"""
_AS_NOBODY = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
# Files of the installation may lie where this user could not look.
_LOOKING = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
_SMALL = 'mount -t tmpfs -o size=20m tmpfs /dev/shm && exec "$@"'
# (shell before it, command in front)
MACHINES = {
    "home that cannot be written, umask 077": ("umask 077; export HOME=/proc", []),
    "another user without a home": ("unset HOME USER LOGNAME", f"{_AS_NOBODY} {_LOOKING}".split()),
    "/dev/shm of 20 MB": (":", ["unshare", "-m", "sh", "-c", _SMALL, "x"]),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_real_ray_comes_up_on_an_awkward_machine(machine: str) -> None:
    """On loopback only; the token and the folder above it are its user's."""
    shell, before = MACHINES[machine]
    if before and (os.getuid() != 0 or shutil.which(before[0]) is None):
        pytest.skip(f"{before[0]} needs root and util-linux")
    if before and subprocess.run([*before, "true"], capture_output=True).returncode != 0:
        pytest.skip(f"this machine allows no {before[0]}")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory(prefix="ra", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)
        environment["RAY_TMPDIR"] = folder
        command = [*before, sys.executable, "-c", PROGRAM]
        done = subprocess.run(
            ["sh", "-c", f'{shell}; exec "$@"', "x", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
            cwd=folder,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "listening ['127.0.0.1']" in done.stdout and "token 0o600 0o700" in done.stdout, done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_local_ray_comes_up_in_a_process_that_has_had_another() -> None:
    """Ray keeps the first token that a process has read; that of the one before leads nowhere."""
    program = (
        "import ray; from ray_jobs import ray_cluster\n"
        "ray.init('local', num_cpus=2, include_dashboard=False, logging_level='error'); ray.shutdown()\n"
        "for _ in range(2): ray_cluster.connect(1); assert ray.is_initialized(); ray.shutdown()\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", program], env=kept, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "Ray is not up" not in done.stdout, done.stdout + done.stderr


INTERRUPTED = """
import signal, sys, time
from dataclasses import dataclass
from conclugen.common import ending
from conclugen.common.options import Command
from ray_jobs import ray_cluster

signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored

@dataclass(frozen=True)
class Job:
    '''Wait.

    Attributes:
        seconds: How long.
    '''
    seconds: int = 600

def work(job):
    with ending.resumable(lambda: "1 of 2 are done; the same command goes on"):
        ray_cluster.connect(2)
        time.sleep(job.seconds)
    return 0

sys.exit(Command("job", Job, work).main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "status", "how"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("begun", ["gcs_server", "raylet"])
def test_a_job_stopped_while_ray_comes_up_says_one_line_and_leaves_nothing(
    begun: str, number: signal.Signals, status: int, how: str
) -> None:
    """As from a terminal, where every process of the group gets the interrupt."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory(prefix="ri", ignore_cleanup_errors=True) as folder:
        job = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED],
            env=environment | {"RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            process = psutil.Process(job.pid)
            while not any(child.name().startswith(begun) for child in process.children()):
                assert job.poll() is None, job.communicate()
                time.sleep(0.005)
            os.killpg(job.pid, number) if number == signal.SIGINT else job.send_signal(number)
            started = process.children(recursive=True)
            out, error = job.communicate(timeout=120)
            assert job.returncode == status, out + error
            words = [line for line in error.splitlines() if line and not line.startswith("stopping as soon as")]
            assert out == "" and words == [f"{how}: 1 of 2 are done; the same command goes on"]
            psutil.wait_procs(started, timeout=30)
            assert started and not [child for child in started if runs(child.pid)]
        finally:
            job.kill()


@pytest.mark.slow
def test_workers_speak_with_the_jobs_own_voice_and_libraries_with_rays() -> None:
    program = """
import io, sys, time, ray
from ray_jobs import ray_cluster
ray_cluster.connect(2)

@ray.remote(num_cpus=1)
class Worker:
    def work(self):
        print("a line of ours")
        print("warning: of ours", file=sys.stderr)
        print("something of a library", file=sys.stderr)

workers = [Worker.remote() for _ in range(2)]
shown = sys.stdout = sys.stderr = io.StringIO()
ray.get([worker.work.remote() for worker in workers])
while not all(word in shown.getvalue() for word in ("a line", "warning", "library")):
    time.sleep(0.1)
ray.shutdown()
print(shown.getvalue(), end="", file=sys.__stdout__)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="rw", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=kept | {"RAY_TMPDIR": folder, "RAY_COLOR_PREFIX": "0", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("a line of ours") == lines.count("warning: of ours") == 1, lines
    rest = [line for line in lines if line not in ("a line of ours", "warning: of ours")]
    assert rest and all(re.fullmatch(r"\(Worker pid=\d+\) something of a library.*", line) for line in rest), lines


def test_a_limit_on_memory_sizes_the_object_store_and_the_advice(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch system's group, which Ray does not see: it would take its share of the whole machine."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30, available=60 << 30))
    monkeypatch.setattr(machine, "memory_limit", lambda: Memory(limit=4 << 30, free=2 << 30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    (given,) = connected(monkeypatch)
    assert given["object_store_memory"] == int(0.3 * (2 << 30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))  # of /dev/shm
    (given,) = connected(monkeypatch)
    assert given["object_store_memory"] == 100 << 20
    monkeypatch.setattr(machine, "memory_limit", lambda: Memory(limit=4 << 30, free=10 << 20))
    (given,) = connected(monkeypatch)
    assert given["object_store_memory"] == ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES
    assert "10 MiB of memory" in ray_cluster._advice(LATE, 3, 1.0, short)
    for none in (None, Memory(limit=128 << 30, free=100 << 30)):
        monkeypatch.setattr(machine, "memory_limit", lambda none=none: none)
        (given,) = connected(monkeypatch)
        assert given["object_store_memory"] is None


def connected(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls = starts(monkeypatch, None)
    ray_cluster.connect(1)
    return calls


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


def test_workers_without_a_place_are_told_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    head, large, small = node(8), node(16, 4), node(3, 4)  # three workers' CPUs beside four GPUs
    check = ray_cluster.check_places
    assert check(7, 1, True, None, [head, large, small]) is None
    assert check(5, 1, True, None, [head, large, node(16, 4, alive=False)]) == (
        "warning: run.workers=5: a worker wants a GPU and 1 CPU, and there is room for 4 (4 GPUs, 24 CPUs on 2 nodes); "
        "the run waits for nodes to join. Where none will, give run.workers=4, or run.min_workers=4"
    )
    told = check(8, 1, True, None, [head, large, small])
    assert told is not None and "room for 7 (8 GPUs, 27 CPUs on 3 nodes)" in told
    assert check(8, 1, True, 6, [head, large, small]) is None, "fewer will do"
    assert "2 CPUs" in str(check(30, 2, False, None, [head, large]))
    assert "run.gpu=false, or a cluster with GPUs" in str(check(1, 1, True, None, [head]))


def test_on_one_machine_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_cluster.check_places(4, 1, False, None, [node(8)]) is None
    with pytest.raises(
        ValueError, match=r"^run.workers=8: .* room for 2 \(2 GPUs, 12 CPUs on 1 node\); give run.workers=2$"
    ):
        ray_cluster.check_places(8, 1, True, None, [node(12, 2)])
    with pytest.raises(ValueError, match=r"give run.gpu=false, or a cluster with GPUs \(RAY_ADDRESS\)$"):
        ray_cluster.check_places(1, 1, True, None, [node(12)])


def test_tasks_are_as_many_as_cores_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_cluster.processes() == machine.cores()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_cluster.processes() is None
