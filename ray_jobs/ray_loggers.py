"""What Ray puts on the screen of a job: loggers whose messages concern nobody who runs these jobs, and the lines that
workers write. Names of private modules for it are here only."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray.experimental.tqdm_ray import RAY_TQDM_MAGIC

# That the cluster asks for a token, also where it is a local Ray of the job's own.
AUTHENTICATION = ("ray._private.authentication",)
# That progress bars are off (the jobs have lines of their own), and the end of each execution and of each file.
DATA = ("ray.data._internal.progress", "ray.data._internal.execution.streaming_executor", "ray.data.dataset")

_PRINTER = "ray_print_logs"
_OURS = re.compile(r" *(?:warning|note|error): ")
_SAME_WITHIN_S = 60.0


def quieten(names: tuple[str, ...]) -> None:
    """Let loggers, and those below them, tell errors only."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


def show_our_lines() -> None:
    """From now on, show what workers of this job say in the job's own words as if the job had said it.

    Ray puts `(RayTrainWorker pid=4711)` before every line and adds how often it came. A normal run of these jobs has
    lines of its own alone: all that its workers print, and warnings. What else comes on standard error is of a library,
    and keeps Ray's prefix, which says where it came from.
    """
    dispatcher = global_worker_stdstream_dispatcher
    printers = [handler for name, handler in dispatcher.handlers if name == _PRINTER]
    if printers and not isinstance(printers[0], _OwnLines):
        dispatcher.remove_handler(_PRINTER)
        dispatcher.add_handler(_PRINTER, _OwnLines(printers[0]))  # Ray takes it away by that name


class _OwnLines:
    """others: prints what is not ours. A line that several processes say at about the same time is shown once."""

    def __init__(self, others: Callable[[Mapping[str, Any]], object]) -> None:
        self._others = others
        self._said: dict[str, tuple[object, float]] = {}

    def __call__(self, data: Mapping[str, Any]) -> None:
        lines = list(data.get("lines", ()))
        if not str(data.get("pid")).isdigit():  # of the cluster itself: "autoscaler", "raylet"
            ours = []
        else:
            ours = [line for line in lines if RAY_TQDM_MAGIC not in line and (not data["is_err"] or _OURS.match(line))]
        for line in ours:
            if self._is_new(line, (data.get("ip"), data["pid"])):
                print(line, flush=True)
        if others := [line for line in lines if line not in ours]:
            self._others({**data, "lines": others})

    def _is_new(self, line: str, who: object) -> bool:
        now = time.monotonic()
        self._said = {said: by for said, by in self._said.items() if now - by[1] < _SAME_WITHIN_S}
        first, _ = self._said.setdefault(line, (who, now))
        return first == who
