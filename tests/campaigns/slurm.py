"""`deploy/slurm/pretrain.sbatch` on a Slurm that this starts: the distribution's own, a node of this machine, no GPUs.

    python -m tests.campaigns.slurm           # as root; packages slurmctld, slurmd and munge

One job runs undisturbed. Another is requeued, and in its second start comes to its time limit. A third is preempted, by
a job of a better partition and with a grace. All must end as COMPLETED, with the same model to the last bit. A last one
has a time limit that is shorter than the time before it at which it is signalled, and a Ray that takes its time: it
must fail, and say so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.cluster.runs import without_ray_of_the_test
from tests.feature_corpus import write_corpus

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "deploy/slurm/pretrain.sbatch"
CPUS = 6
GRACE_S = 20  # between the notice of a preemption and its end
_WAIT_S = 600.0
_DAEMONS = ("munged", "slurmctld", "slurmd")
_CONFIGURATION = """ClusterName=one
SlurmctldHost={name}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=30
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={name} NodeAddr=127.0.0.1 CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory}
PartitionName=spare Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={grace}
PartitionName=first Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """A controller and a node that run until `close`; jobs run the project from this checkout."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        for name in ("state", "spool", "bin", "jobs"):
            (folder / name).mkdir()
        self._programs()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        configuration = _CONFIGURATION.format(
            name=socket.gethostname().split(".")[0], folder=folder, ports=_free_ports(2), cpus=CPUS, memory=memory,
            grace=GRACE_S,
        )  # fmt: skip
        (folder / "slurm.conf").write_text(configuration)
        self.environment = without_ray_of_the_test() | {
            "SLURM_CONF": f"{folder}/slurm.conf",
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        write_corpus(folder / "shards")
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _programs(self) -> None:
        """What an environment with the project has in its `bin`, of this interpreter."""
        words = {
            "python": '"$@"',
            "conclugen": '-m conclugen "$@"',
            "ray": '-c "from ray.scripts.scripts import main; main()" "$@"',
        }
        for name, rest in words.items():
            program = self.folder / "bin" / name
            late = 'sleep "${RAY_LATE_S:-0}"\n' if name == "ray" else ""
            program.write_text(f'#!/bin/bash\n{late}exec "{sys.executable}" {rest}\n')
            program.chmod(0o755)
        one_node = [line for line in SCRIPT.read_text().splitlines() if not line.startswith("#SBATCH --gpus-per-node")]
        (self.folder / "pretrain.sbatch").write_text("\n".join(one_node) + "\n")

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        places = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        munge = [f"--{name}={self.folder}/{file}" for name, file in places.items()]
        self._daemon(["munged", "--foreground", "--force", f"--log-file={self.folder}/munge.log", *munge])
        self.wait((self.folder / "munge.socket").exists, "munged came up")
        self._daemon(["slurmctld", "-D", "-i", "-c"])
        self._daemon(["slurmd", "-D", "-c"])
        self.wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "the node was idle")

    def _daemon(self, words: list[str]) -> None:
        with (self.folder / f"{words[0]}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def ask(self, *words: str) -> str:
        """What a program of Slurm says, errors included."""
        done = subprocess.run(
            words, env=self.environment, cwd=self.folder / "jobs", capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    def submit(self, name: str, partition: str, *more: str) -> str:
        """Submit a run of that name, with more options of sbatch; its job's number."""
        model = {"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 8}
        options = ["--data", str(self.folder / "shards"), "--output", str(self.folder / "out"), "--run", name]
        options += [word for size, value in model.items() for word in (f"--pretrain.model.{size}", str(value))]
        options += ["--pretrain.global_batch", "60", "--pretrain.epochs", str(self.steps // 21)]
        options += ["--run.checkpoint-every", "100", "--run.max-failures", "0"]
        job = self.ask(
            "sbatch", "--parsable", f"--partition={partition}", f"--cpus-per-task={CPUS}", *more,
            str(self.folder / "pretrain.sbatch"), *options,
        ).strip()  # fmt: skip
        assert job.isdigit(), job
        return job

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job."""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def newest(self, name: str) -> int:
        """Step of the newest checkpoint of a run, 0 without one."""
        found = (self.folder / "out" / name / "checkpoints").glob("step-*")
        return max((int(path.name.split("-")[1]) for path in found), default=0)

    def wait(self, condition: Callable[[], bool], what: str, job: str | None = None) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                logs = [*self.folder.glob("*.out"), *self.folder.glob("jobs/*.log")]
                told = [f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in logs]
                known = "" if job is None else self.ask("scontrol", "show", "job", job)
                raise TimeoutError("\n".join([f"{what}: not within {_WAIT_S:.0f} s", known, *told]))
            time.sleep(0.5)

    def reaches(self, name: str, step: int, job: str) -> None:
        """Wait until a run has a checkpoint of that step or a later one."""
        self.wait(lambda: self.newest(name) >= step, f"{name}: a checkpoint of step {step}", job)

    def restarts(self, job: str, times: int) -> None:
        """Wait until a job has been queued again, and let it run for as long as it wants."""
        self.wait(lambda: int(self.facts(job)["Restarts"]) >= times, f"job {job} was queued again", job)
        self.ask("scontrol", "update", f"jobid={job}", "TimeLimit=UNLIMITED")

    def ends(self, job: str) -> dict[str, str]:
        """Wait until a job has ended; what is known of it then."""
        unended = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "PREEMPTED"}
        self.wait(lambda: self.facts(job)["JobState"] not in unended, f"job {job} ended", job)
        return self.facts(job)

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
            self.ask("scancel", "--quiet", "--full", "--user=root")
            deadline = time.monotonic() + 60
            while self.ask("squeue", "--noheader").strip() and time.monotonic() < deadline:
                time.sleep(1)
        for process in reversed(self._daemons):
            process.terminate()
        for process in self._daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def requeued_and_out_of_time(slurm: Slurm, name: str) -> str:
    job = slurm.submit(name, "spare")
    slurm.reaches(name, 100, job)
    slurm.ask("scontrol", "requeue", job)
    slurm.restarts(job, 1)
    before = slurm.newest(name)
    slurm.reaches(name, before + 100, job)
    # The script wants its signal five minutes before the end: with less left it comes as soon as Slurm looks.
    minutes = int(slurm.facts(job)["RunTime"].split(":")[1])
    slurm.ask("scontrol", "update", f"jobid={job}", f"TimeLimit={minutes + 4}")
    slurm.restarts(job, 2)
    return job


def preempted(slurm: Slurm, name: str, by: Callable[[], str]) -> tuple[str, str]:
    """The job that is preempted, and the one that takes its node."""
    job = slurm.submit(name, "spare")
    slurm.reaches(name, 100, job)
    other = by()
    slurm.restarts(job, 1)
    return job, other


def without_time(slurm: Slurm) -> tuple[dict[str, str], str]:
    """A job whose limit is shorter than the time before it at which the script wants its signal; and what it says of
    it. Slurm looks at limits every 30 s: Ray must not be there before."""
    job = slurm.submit("hurried", "spare", "--time=4", "--export=ALL,RAY_LATE_S=60")
    known = slurm.ends(job)
    log = (slurm.folder / "jobs" / f"conclugen-{job}.log").read_text(errors="replace")
    return known, "".join(line for line in log.splitlines() if "TimeLimit=00:04:00 was nearly over" in line)


@contextlib.contextmanager
def running(steps: int) -> Iterator[Slurm]:
    lacking = [name for name in _DAEMONS if shutil.which(name) is None]
    if lacking:
        raise FileNotFoundError(f"{', '.join(lacking)}: not installed (packages slurmctld, slurmd, munge)")
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        slurm = Slurm(Path(folder), steps)
        try:
            yield slurm
        finally:
            slurm.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="of each run: enough for a minute at least")
    options = parser.parse_args()
    right = True
    expected: dict[str, np.ndarray] = {}
    with running(options.steps) as slurm:
        taken, undisturbed = preempted(slurm, "preempted", lambda: slurm.submit("undisturbed", "first"))
        print("| job | state | exit | starts | model |\n|---|---|---|---|---|", flush=True)
        for name, starts, job in (
            ("undisturbed", 1, lambda: undisturbed),
            ("preempted", 2, lambda: taken),
            ("requeued, then out of time", 3, lambda: requeued_and_out_of_time(slurm, "requeued")),
        ):
            known = slurm.ends(job())
            model = slurm.folder / "out" / name.split(",")[0] / "model" / "model.safetensors"
            found = load_file(model) if model.is_file() else {}
            expected = expected or found
            same = bool(found) and found.keys() == expected.keys()
            same = same and all(np.array_equal(found[tensor], x) for tensor, x in expected.items())
            ended = known["JobState"], known["ExitCode"], int(known["Restarts"]) + 1
            right &= same and ended == ("COMPLETED", "0:0", starts)
            print(f"| {name} | {' | '.join(map(str, ended))} | {'the same bits' if same else 'another'} |", flush=True)
        known, said = without_time(slurm)
        ended = known["JobState"], known["ExitCode"], int(known["Restarts"]) + 1
        right &= ended == ("FAILED", "1:0", 1) and bool(said)
        print(f"| limit of four minutes | {' | '.join(map(str, ended))} | none |\n\n{said}", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
