"""How many bytes of rows cross the network: jobs on a Ray of three nodes, each in a network namespace, and what went
through each interface.

The head has no CPUs, as on a cluster where it only manages; the driver runs there. Pretraining reads float32 features
as wide as the published ones with both payloads that read, and its model is so small that gradients are little beside
them; this code then embeds the same rows with it. With --videos (a folder of videos) it builds clip shards as well, and
with --clips (clip shards) it extracts features. --beside COMMIT puts an older state of the project there, which
pretrains only: it may not read clip shards that were built later. Needs root, `ip` and `tc`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import command_line
from benchmarks.beside import HERE, ROOT, older
from benchmarks.namespaces import Namespaces
from benchmarks.readers.methods import WIDTHS, write_shards

_NODES, _CPUS, _PORT = 3, 4, 6399
_BATCH, _R = 512, 16
_STARTS_WITHIN_S = 120.0


@contextlib.contextmanager
def cluster(machines: Namespaces, folder: str, tree: Path) -> Iterator[dict[str, str]]:
    """A Ray of three nodes that runs the code of `tree`; the environment in which a job joins it."""
    address = f"{machines.address(0)}:{_PORT}"
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"GLOO_SOCKET_IFNAME": "eth0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(tree)}
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    running: list[subprocess.Popen[bytes]] = []
    alone = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    try:
        for machine in range(_NODES):
            words = [*ray, "start", "--block", f"--node-ip-address={machines.address(machine)}"]
            if machine == 0:
                words += ["--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false"]
                words.append(f"--temp-dir={folder}")
            else:
                words += [f"--address={address}", f"--num-cpus={_CPUS}"]
            words.append(f"--object-store-memory={512 << 20}")
            with (Path(folder) / f"node{machine}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(  # noqa: S603 - this interpreter
                        machines.command(machine, words), env=alone, stdout=log, stderr=log
                    )
                )
            _await(machines, machine, running[-1], Path(folder) / f"node{machine}.log")
        yield environment
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _await(machines: Namespaces, machine: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a node says that Ray runs there."""
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"node {machine}, {machines.address(machine)}: Ray did not start: {log.read_text()[-500:]}")
        time.sleep(0.2)


def jobs(args: argparse.Namespace, data: Path, out: Path, own: bool = True) -> dict[str, list[str]]:
    """What is run, by name: words after the interpreter. own: by this code, not an older state."""
    sizes = {"representation_dim": _R, "projection_dim": 8, "reconstruction_hidden_dim": 8}
    found = {}
    epochs = max(1, args.steps * _BATCH // args.rows)
    for payload in ("object_store", "worker"):
        words = ["-m", "ray_jobs.pretrain", "--data.folder", str(data), "--data.view", "everything"]
        words += ["--data.payload", payload, "--data.validation_view", "null", "--preset", "contrast_generative"]
        words += [word for name, size in sizes.items() for word in (f"--pretrain.model.{name}", str(size))]
        words += ["--pretrain.global_batch", str(_BATCH), "--pretrain.epochs", str(epochs)]
        words += ["--run.workers", "2", "--run.name", payload, "--run.output", str(out)]
        found[f"pretrain, {payload}"] = words
    if own:  # of the run that ended last
        found["embed"] = ["-m", "ray_jobs.embed", "--data", str(data), "--run", "worker", "--output", str(out)]
    if args.videos is not None and own:
        words = ["-m", "ray_jobs.build_shards", str(args.videos.absolute()), "--output", str(out / "clips")]
        found["build"] = [*words, "--faces", "off", "--quiet"]
    if args.clips is not None and own:
        words = ["-m", "ray_jobs.extract_features", "--data", str(args.clips.absolute()), "--encoders", args.encoders]
        found["extract_features"] = [*words, "--output", str(out / "features"), "--quiet"]
    return found


def measure(
    machines: Namespaces, words: Sequence[str], environment: dict[str, str], tree: Path
) -> list[tuple[int, int]]:
    """(received, sent) bytes of each machine while a job runs."""
    before = [machines.bytes(machine) for machine in range(_NODES)]
    command = machines.command(0, [sys.executable, *words])
    done = subprocess.run(  # noqa: S603 - this interpreter, jobs of the project
        command, env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        raise OSError(
            f"{' '.join(words[:2])} ended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    after = [machines.bytes(machine) for machine in range(_NODES)]
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]


def table(found: dict[str, list[tuple[int, int]]]) -> str:
    """For people, in Markdown: MB received and sent by each node."""
    lines = ["| job | head | node 1 | node 2 |", "|---|---|---|---|"]
    for name, each in found.items():
        cells = " | ".join(f"{received / 1e6:,.1f} / {sent / 1e6:,.1f}" for received, sent in each)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=4096, help="rows of features")
    parser.add_argument("--steps", type=int, default=40, help=f"of {_BATCH} rows, at least an epoch")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="videos of which clip shards are built too")
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="clip shards whose features are extracted too")
    parser.add_argument("--encoders", default="random", help="for --clips")
    parser.add_argument("--beside", metavar="COMMIT", help="also run this state of the project")
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")


def run(args: argparse.Namespace) -> int:
    if args.rows < _BATCH:
        raise ValueError(f"--rows: must be at least {_BATCH}, got {args.rows}")
    found: dict[str, list[tuple[int, int]]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pl", ignore_cleanup_errors=True))
        tree = stack.enter_context(older(args.beside))
        machines = stack.enter_context(Namespaces(_NODES))
        data = Path(folder) / "data"
        write_shards(data, args.rows, "float32")
        for name, where in {HERE: ROOT, **({args.beside: tree} if tree is not None else {})}.items():
            place = Path(folder) / f"r{len(found)}"
            place.mkdir()
            with cluster(machines, str(place), Path(where)) as environment:
                for job, words in jobs(args, data, Path(folder) / f"out{len(found)}", own=where == ROOT).items():
                    found[f"{job}: {name}"] = measure(machines, words, environment, Path(where))
    read = max(1, args.steps * _BATCH // args.rows) * args.rows * sum(WIDTHS.values()) * 4
    print(f"MB received / sent; a pretraining run reads {read / 1e6:,.0f} MB of features\n\n{table(found)}")
    if args.json:
        report: dict[str, Any] = {"features": read, "bytes": found}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("placement", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
