"""`python -m benchmarks.serve_load`: how a server that runs already (`conclugen serve RUN`) bears load.

Clients, each with one connection that it keeps, send requests one after the other for some seconds; the table has a row
for each number of clients: answers a second, seconds of an answer (50th and 99th percentile), and what was refused for
being too much (status 503), told in words. Anything else that is not an answer is a failure, and the exit status is 1.

    conclugen serve first --queue 16 &
    python -m benchmarks.serve_load --clients 1 8 32 128
    python -m benchmarks.serve_load --clip CLIP.mp4 --clients 1 2
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import command_line

_BUSY = 503
_TIMEOUT_S = 300.0


@dataclass
class Load:
    """What one number of clients met. seconds: of each answer; statuses: of all that came back."""

    clients: int
    wall: float = 0.0
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int | str] = field(default_factory=Counter)
    said: dict[int | str, str] = field(default_factory=dict)

    @property
    def failed(self) -> dict[int | str, int]:
        return {status: count for status, count in self.statuses.items() if status not in (200, _BUSY)}

    def row(self) -> str:
        shown = np.percentile(self.seconds, [50, 99]) * 1e3 if self.seconds else (float("nan"),) * 2
        refused, all_of_them = self.statuses[_BUSY], self.statuses.total()
        return (
            f"| {self.clients} | {all_of_them} | {self.statuses[200] / self.wall:,.1f} | {shown[0]:.1f} | "
            f"{shown[1]:.1f} | {refused} ({refused / max(1, all_of_them):.0%}) | {sum(self.failed.values())} |"
        )


def measure(url: str, path: str, body: bytes, kind: str, clients: int, seconds: float) -> Load:
    """Send the body from so many clients for so long."""
    place, found, lock = urllib.parse.urlsplit(url), Load(clients), threading.Lock()
    begin = time.perf_counter()

    def client() -> None:
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=_TIMEOUT_S)
        while time.perf_counter() - begin < seconds:
            sent = time.perf_counter()
            status: int | str
            try:
                connection.request("POST", path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                status, text = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                status, text = type(error).__name__, str(error).encode()
                connection.close()
            took = time.perf_counter() - sent
            with lock:
                found.statuses[status] += 1
                if status == 200:
                    found.seconds.append(took)
                else:
                    found.said.setdefault(status, text.decode(errors="replace")[:200])
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.wall = time.perf_counter() - begin
    return found


def widths_of(url: str) -> dict[str, int]:
    """What the server's model takes. OSError where nothing answers, ValueError where something else does."""
    place = urllib.parse.urlsplit(url)
    if place.scheme != "http" or not place.hostname:
        raise ValueError(f"--url: found {url!r}, expected http://HOST:PORT")
    connection = http.client.HTTPConnection(place.hostname, place.port or 80, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        told = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if not isinstance(told, dict) or not isinstance(told.get("features"), dict):
        raise ValueError(f"--url: what answers at {url} is no `conclugen serve`")
    return {str(name): int(width) for name, width in told["features"].items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0, help="for which each number of clients sends")
    parser.add_argument("--rows", type=int, default=1, help="of a request, random features")
    parser.add_argument("--clip", metavar="FILE", help="send this clip in their place")
    parser.add_argument("--json", metavar="FILE", help="also write what was found to this file")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 where something failed."""
    if min(args.clients) < 1 or args.rows < 1 or not args.seconds > 0:
        raise ValueError("--clients, --rows and --seconds: expected numbers above 0")
    widths = widths_of(args.url)
    if args.clip:
        path, body, kind = "/clips", Path(args.clip).read_bytes(), "application/octet-stream"
    else:
        rng = np.random.default_rng(0)
        features = {name: np.round(rng.normal(size=(args.rows, width)), 5).tolist() for name, width in widths.items()}
        path, body, kind = "/features", json.dumps({"features": features}).encode(), "application/json"
    print(f"POST {path}, {len(body):,} bytes, {args.seconds:g} s each\n")
    print(
        "| clients | requests | answers/s | p50, ms | p99, ms | refused (503) | failed |\n|---|---|---|---|---|---|---|"
    )
    found = []
    for clients in args.clients:
        found.append(measure(args.url, path, body, kind, clients, args.seconds))
        print(found[-1].row(), flush=True)
    for said in {text for load in found for text in load.said.values()}:
        print(f"\nsaid: {said}")
    if args.json:
        plain = [
            {"clients": one.clients, "wall": one.wall, "seconds": one.seconds, "statuses": dict(one.statuses)}
            for one in found
        ]
        Path(args.json).write_text(json.dumps(plain) + "\n", encoding="utf-8")
    return 1 if any(load.failed for load in found) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("serve_load", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
