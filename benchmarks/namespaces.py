"""Several machines made of one: network namespaces on a bridge, each with an interface, counters and a limit.

Needs root, `ip` and `tc`. Where it is not allowed, entering raises PermissionError with what was refused. They are
gone when the block ends, with whatever still runs in them; a signal ends it too where the program turns signals into
KeyboardInterrupt (`benchmarks.command_line`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from types import TracebackType

INTERFACE = "eth0"
_NETWORK = "10.79"


class Namespaces:
    """`count` machines, up while the block is entered.

    rate: what each sends and receives at most, as `tc` takes it (`60mbit`); None: as fast as the machine can.
    """

    def __init__(self, count: int, rate: str | None = None) -> None:
        self._count, self._rate = count, rate
        number = os.getpid() % 60_000
        self._name, self._network = f"cg{number}", f"{_NETWORK}.{number % 250}"

    def address(self, machine: int) -> str:
        return f"{self._network}.{machine + 1}"

    def command(self, machine: int, words: Sequence[str]) -> list[str]:
        """The command that runs on that machine."""
        return ["ip", "netns", "exec", self._machine(machine), *words]

    def bytes(self, machine: int) -> tuple[int, int]:
        """(received, sent) by its interface since it is up."""
        folder = f"/sys/class/net/{INTERFACE}/statistics"
        read = self.command(machine, ["cat", f"{folder}/rx_bytes", f"{folder}/tx_bytes"])
        received, sent = _run(read).split()
        return int(received), int(sent)

    def __enter__(self) -> Namespaces:
        try:
            _ip("link", "add", self._name, "type", "bridge")
            _ip("link", "set", self._name, "up")
            for machine in range(self._count):
                self._add(machine)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _machine(self, machine: int) -> str:
        return f"{self._name}-{machine}"

    def _add(self, machine: int) -> None:
        name, cable = self._machine(machine), f"{self._name}v{machine}"
        _ip("netns", "add", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", INTERFACE, "netns", name)
        _ip("link", "set", cable, "master", self._name, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "addr", "add", f"{self.address(machine)}/24", "dev", INTERFACE)
        _ip("-n", name, "link", "set", INTERFACE, "up")
        if self._rate is not None:  # of what it sends, and of what it is sent
            for where in (self.command(machine, ["tc"]), ["tc"]):
                device = INTERFACE if len(where) > 1 else cable
                limit = ["tbf", "rate", self._rate, "burst", "256kb", "latency", "100ms"]
                _run([*where, "qdisc", "replace", "dev", device, "root", *limit])

    def _remove(self) -> None:
        for machine in range(self._count):  # one in which a process still runs would live on without its name
            with contextlib.suppress(PermissionError):
                for process in _run(["ip", "netns", "pids", self._machine(machine)]).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
        for words in (*(("netns", "del", self._machine(i)) for i in range(self._count)), ("link", "del", self._name)):
            with contextlib.suppress(PermissionError):  # of what is not there
                _ip(*words)


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - fixed commands
    except FileNotFoundError:
        raise FileNotFoundError(f"{words[0]}: not installed; it makes network namespaces (package iproute2)") from None
    if done.returncode:
        raise PermissionError(f"{' '.join(words)}: {done.stderr.strip()} (network namespaces need root)")
    return done.stdout
