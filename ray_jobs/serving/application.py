"""Ray Serve around a `Service`: its requests, what they share, what is refused, and how the server starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig
from ray.util.metrics import Counter, Histogram
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from conclugen.common import screen, uris
from conclugen.common.ending import resumable
from conclugen.common.options import GOOD, JobFailedError
from ray_jobs import ray_cluster
from ray_jobs.options.serve import ServeJob
from ray_jobs.serving.requests import BUSY, TOO_LARGE, WRONG, Features, RefusedError, features_of
from ray_jobs.serving.service import Service

_NAME = "conclugen"
_SPARE_CPUS = 2  # Serve's own processes reserve none, and want some
_REFUSED_AT_ONCE = 64  # requests beyond the queue that a process still reads, to refuse them in words
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]

Result = TypeVar("Result")


class Server:
    """One process of the server.

    Features of requests that come together go through the model in one pass; a clip is decoded and encoded by itself,
    beside them. Two threads do the work, so that the loop that reads requests refuses what is too much at once.
    """

    def __init__(self, job: ServeJob, service: Service | None = None) -> None:
        self._job, self._service = job, service or Service.open(job)
        self._features = ThreadPoolExecutor(1, thread_name_prefix="features")
        self._clips = ThreadPoolExecutor(1, thread_name_prefix="clips")
        self._waiting = 0
        self._told_requests = Counter(
            "conclugen_serve_requests", "Requests, by path and HTTP status.", tag_keys=("path", "status")
        )
        self._told_seconds = Histogram(
            "conclugen_serve_seconds", "Seconds of a request, by path.", boundaries=_SECONDS, tag_keys=("path",)
        )
        self._told_rows = Counter("conclugen_serve_rows", "Rows and clips that were embedded.", tag_keys=("path",))
        self._together = serve.batch(max_batch_size=job.batch, batch_wait_timeout_s=job.wait_ms / 1e3)(self._pass)

    def check_health(self) -> None:
        """What Ray Serve asks now and then; a process that raises is replaced."""
        if self._features._shutdown or self._clips._shutdown:
            raise RuntimeError("the threads that embed have ended")

    async def __call__(self, request: Request) -> Response:
        begin, path = time.perf_counter(), request.url.path.rstrip("/") or "/"
        handlers = {
            "/": ("GET", self._describe),
            "/health": ("GET", self._describe),
            "/features": ("POST", self._rows),
            "/clips": ("POST", self._clip),
        }
        try:
            if path not in handlers:
                path = "other"  # or a metric would have a series for whatever somebody types
                raise RefusedError(404, f"there is no such path; there are {', '.join(sorted(handlers))}")
            method, handler = handlers[path]
            if request.method != method:
                raise RefusedError(405, f"{path} takes {method}")
            response: Response = JSONResponse(await handler(request))
        except RefusedError as refused:
            headers = {"Retry-After": "1"} if refused.status == BUSY else None
            response = JSONResponse(refused.body(), refused.status, headers)
        self._told_requests.inc(tags={"path": path, "status": str(response.status_code)})
        self._told_seconds.observe(time.perf_counter() - begin, tags={"path": path})
        return response

    async def _describe(self, request: Request) -> dict[str, Any]:
        return self._service.describe()

    async def _rows(self, request: Request) -> dict[str, Any]:
        async with self._admitted():
            body = await self._body(request)
            widths, most = self._service.model.embedder.widths, self._job.max_rows
            asked = await self._in(self._features, features_of, body, widths, most)
            answer: dict[str, Any] = await self._together(asked)
            self._told_rows.inc(len(answer["vectors"]), tags={"path": "/features"})
            return answer

    async def _pass(self, asked: list[Features]) -> list[dict[str, Any]]:
        return await self._in(self._features, self._service.embed, asked)

    async def _clip(self, request: Request) -> dict[str, Any]:
        unknown = sorted(set(request.query_params) - {"text", "windows"})
        if unknown:
            raise RefusedError(WRONG, f"unknown parameter {unknown[0][:40]!r}; there are text and windows")
        windows = request.query_params.get("windows", "").lower()
        if windows not in (*_TRUE, *_FALSE):
            raise RefusedError(WRONG, f"windows: must be true or false, got {windows[:40]!r}")
        text = request.query_params.get("text") or None
        async with self._admitted():
            with tempfile.TemporaryDirectory(prefix="conclugen-serve-") as folder:
                path = Path(folder) / "clip"
                with path.open("wb") as file:
                    async for part in self._parts(request):
                        file.write(part)
                if path.stat().st_size == 0:
                    raise RefusedError(WRONG, "body: must be a video file, got nothing")
                answer = await self._in(self._clips, self._service.clip, path, text, windows in _TRUE)
            self._told_rows.inc(len(answer["vectors"]), tags={"path": "/clips"})
            return answer

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """A place in the queue. RefusedError where it is full: later is better than for ever."""
        if self._waiting >= self._job.queue:
            raise RefusedError(BUSY, f"busy: {self._waiting} requests are waiting; try again in a second")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _body(self, request: Request) -> bytes:
        return b"".join([part async for part in self._parts(request)])

    async def _parts(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes, at most as much of it as is allowed."""
        most = self._job.max_mib << 20
        too_large = RefusedError(TOO_LARGE, f"body: must be at most {self._job.max_mib} MiB")
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > most:
            raise too_large
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large
            yield part

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(thread, functools.partial(work, *arguments))


def application(job: ServeJob) -> serve.Application:
    """What Ray Serve runs."""
    options: dict[str, Any] = {
        "name": _NAME,
        "num_replicas": job.replicas,
        "ray_actor_options": {"num_cpus": job.cpus},
        # So many requests reach a process at once, which refuses those beyond its queue in words; others are refused
        # by Ray Serve, with the same status.
        "max_ongoing_requests": job.queue + _REFUSED_AT_ONCE,
        "max_queued_requests": job.queue + _REFUSED_AT_ONCE,
        "logging_config": _quiet(),
    }
    return serve.deployment(Server, **options).bind(job)


def run(job: ServeJob) -> int:
    """Serve until somebody ends it."""
    service = Service.open(job)  # refused here, in a line, and not in a process that starts again and again
    takes = "features and clips" if service.without_clips is None else f"features, no clips: {service.without_clips}"
    service.close()
    refuse_taken(job.host, job.port)
    ray_cluster.connect(job.replicas, job.cpus, spare=_SPARE_CPUS)
    with resumable(lambda: "the server has ended; the same command starts it again"):
        try:
            with started(job) as address:
                print(f"run {job.run!r} at {address} ({takes})", flush=True)
                print(f"  curl {address}/health", flush=True)
                if not _is_loopback(job.host):
                    print(
                        "warning: whoever reaches this address can use it, for nothing asks who they are; put a proxy "
                        "that does before it",
                        flush=True,
                    )
                print("ctrl-c ends it", flush=True)
                screen.rest()
                threading.Event().wait()
        except RayServeException as error:
            raise JobFailedError(_line(error)) from error
    return GOOD


@contextlib.contextmanager
def started(job: ServeJob) -> Iterator[str]:
    """The server, for as long as the block lasts; its address. Ray runs already."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=job.host, port=job.port, request_timeout_s=job.timeout_s),
        logging_config=_quiet(),
    )
    try:
        try:
            serve.run(application(job), name=_NAME, route_prefix="/")
        except RuntimeError as error:
            raise JobFailedError(f"the server did not come up: {_line(error)}") from error
        host = f"[{job.host}]" if ":" in job.host else job.host
        yield f"http://{host}:{job.port}"
    finally:
        serve.shutdown()


def refuse_taken(host: str, port: int) -> None:
    """OSError, naming the option, where nothing can listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"host: {host!r} is not an address of this machine; give 127.0.0.1 or 0.0.0.0") from None
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(f"port: {port} cannot be used ({why}); give another one") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _quiet() -> LoggingConfig:
    return LoggingConfig(log_level="ERROR", enable_access_log=False)


def _line(error: BaseException) -> str:
    lines = [line for line in uris.scrub(error).splitlines() if line.strip()]
    return lines[-1].strip()[:400] if lines else type(error).__name__
