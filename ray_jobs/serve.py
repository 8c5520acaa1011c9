"""Job: a finished run behind HTTP, by Ray Serve. `conclugen serve RUN`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from conclugen.common.options import Command


@dataclass(frozen=True, kw_only=True)
class ServeJob:
    """A finished run behind HTTP: features or clips in, vectors and class probabilities out.

    GET /health says what the model takes; POST /features takes rows of features as JSON; POST /clips a video file as
    the body. Requests that come at the same time share a pass through the model; what is too large, too much or wrong
    is refused with a status and one line. On this machine alone unless --host says otherwise: nothing asks who is
    there. docs/how-to/serve.md has examples.

    Attributes:
        run: A finished pretraining run in `output`; given without an option.
        output: Folder of all runs.
        host: Address to listen on; 0.0.0.0: every interface of this machine.
        port: Port to listen on.
        label: Evaluated label whose probe gives probabilities; none: the only one, of a run with several none.
        evaluation: Of several evaluations of the label the one whose probe it is: its folder's name.
        fusion: How modalities become one vector: `concat`, `mean`, `concat+raw`, or one modality.
        clips: Take clips too, which needs the encoders of the run's features; otherwise features alone.
        window: Length of a window of a clip in seconds, where windows are asked for.
        stride: Seconds from the start of one window to that of the next.
        replicas: Processes that hold the model.
        cpus: Logical CPUs of each of them; also its number of threads.
        batch: Requests with features that share a pass through the model, at most.
        wait_ms: Milliseconds for which the first of them waits for others.
        queue: Requests that may wait in a process; those beyond are refused with status 503.
        max_rows: Rows of one request at most.
        max_mib: Size of a request at most, in MiB.
        max_seconds: Length of a clip at most, in seconds.
        timeout_s: Seconds for one request.
        weights: Encoder -> local copy of its weights: a file, a folder, or a model's name on a hub.
        mirror: Folder or URL where published weight files are found; none: their own addresses.
        plugin: Module of your own that lists encoders in `ENCODERS`; it is imported.
    """

    run: str
    output: Path = Path("outputs")
    host: str = "127.0.0.1"
    port: int = 8000
    label: str | None = None
    evaluation: str | None = None
    fusion: str = "concat"
    clips: bool = True
    window: float = 2.0
    stride: float = 0.5
    replicas: int = 1
    cpus: int = 1
    batch: int = 32
    wait_ms: float = 5.0
    queue: int = 64
    max_rows: int = 4096
    max_mib: int = 64
    max_seconds: float = 300.0
    timeout_s: float = 120.0
    weights: dict[str, str] | None = None
    mirror: str | None = None
    plugin: tuple[str, ...] = field(default=(), metadata={"line_only": True})

    def __post_init__(self) -> None:
        for name in ("replicas", "cpus", "batch", "queue", "max_rows", "max_mib"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("max_seconds", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be more than 0 seconds, got {getattr(self, name):g}")
        if not 0 <= self.wait_ms <= 1000:
            raise ValueError(f"wait_ms: must be 0 to 1000 milliseconds, got {self.wait_ms:g}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: must be 1 to 65535, got {self.port}")
        if not self.host or any(c.isspace() or c in "/@" for c in self.host):
            raise ValueError(f"host: must be an address such as 127.0.0.1, got {self.host!r}")


def run(job: ServeJob) -> int:
    from ray_jobs.serving import application  # torch, Ray: not before a wrong option has been refused

    return application.run(job)


COMMAND = Command(
    "ray_jobs.serve",
    ServeJob,
    run,
    shown=("run", "output", "host", "port", "label", "fusion", "clips", "replicas", "cpus", "queue", "weights"),
    bare="run",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
