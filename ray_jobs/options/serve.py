"""Options of `conclugen serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ray_jobs.options.extract import WeightOptions
from ray_jobs.options.model import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ServeJob(WeightOptions, ModelOptions):
    """A finished run behind HTTP: features or clips in, vectors and class probabilities out.

    GET /health says what the model takes; POST /features takes rows of features as JSON; POST /clips a video file as
    the body. Requests that come at the same time share a pass through the model; what is too large, too much or wrong
    is refused with a status and one line. On this machine alone unless --host says otherwise: nothing asks who is
    there. docs/how-to/serve.md has examples.

    Attributes:
        host: Address to listen on; 0.0.0.0: every interface of this machine.
        port: Port to listen on.
        clips: Take clips too, which needs the encoders of the run's features; otherwise features alone.
        replicas: Processes that hold the model.
        cpus: Logical CPUs of each of them; also its number of threads.
        batch: Requests with features that share a pass through the model, at most.
        wait_ms: Milliseconds for which the first of them waits for others.
        queue: Requests that may wait in a process; those beyond are refused with status 503.
        max_rows: Rows of one request at most.
        max_mib: Size of a request at most, in MiB.
        max_seconds: Length of a clip at most, in seconds.
        timeout_s: Seconds for one request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    clips: bool = True
    replicas: int = 1
    cpus: int = 1
    batch: int = 32
    wait_ms: float = 5.0
    queue: int = 64
    max_rows: int = 4096
    max_mib: int = 64
    max_seconds: float = 300.0
    timeout_s: float = 120.0

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
