"""One process of the server, without Ray Serve around it; with it: tests/cluster/test_serve.py."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

import conclugen
from conclugen import Pretrainer, export, presets
from ray_jobs.run_folder import RunFolder
from ray_jobs.serve import ServeJob, main
from ray_jobs.serving import application
from ray_jobs.serving.application import Server
from ray_jobs.serving.requests import Features
from ray_jobs.serving.service import Service

WIDTHS = {"video": 5, "audio": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on features whose encoders nobody knows."""
    sizes = {"representation_dim": 8, "projection_dim": 8}
    config = presets.build("contrast_only_video_audio", global_batch=8, epochs=1, model=sizes)
    moments = {m: (np.zeros(w), np.ones(w)) for m, w in WIDTHS.items()}
    folder = RunFolder(tmp_path_factory.mktemp("serving") / "first")
    export.save(folder.model, Pretrainer(config, WIDTHS, 1, moments), {"modalities": {m: [m] for m in WIDTHS}})
    return folder.path.parent


@pytest.fixture(scope="module")
def service(runs: Path) -> Service:
    return Service.open(ServeJob(run="first", output=runs))


class Noting(Service):
    """Notes how many requests share a pass, and waits where it is told to."""

    passes: list[int]
    wait: threading.Event

    @classmethod
    def of(cls, service: Service) -> Noting:
        found = cls(**{name: getattr(service, name) for name in service.__dataclass_fields__})
        found.passes, found.wait = [], threading.Event()
        found.wait.set()
        return found

    def embed(self, asked: Sequence[Features]) -> list[dict[str, Any]]:
        self.wait.wait(30)
        self.passes.append(len(asked))
        return super().embed(asked)


def request(method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Request:
    path, _, query = target.partition("?")
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    given = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": given}
    return Request(scope | {"server": ("127.0.0.1", 8000), "scheme": "http", "root_path": ""}, receive)


def asked(seed: int, rows: int = 1) -> tuple[bytes, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    arrays = {m: rng.normal(size=(rows, w)).astype(np.float32) for m, w in WIDTHS.items()}
    return json.dumps({"features": {m: x.tolist() for m, x in arrays.items()}}).encode(), arrays


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Runner]:
    """Where a process's requests are read; Ray Serve's batches ask for the context of their replica."""
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=1000))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    with asyncio.Runner() as runner:
        yield runner


def send(loop: asyncio.Runner, server: Server, *requests: Request) -> list[tuple[int, Any]]:
    async def all_at_once() -> list[Any]:
        return list(await asyncio.gather(*(server(one) for one in requests)))

    return [(response.status_code, json.loads(response.body)) for response in loop.run(all_at_once())]


def test_requests_that_come_together_share_a_pass_and_each_has_its_own_rows(
    runs: Path, service: Service, loop: asyncio.Runner
) -> None:
    noting = Noting.of(service)
    server = Server(ServeJob(run="first", output=runs, batch=4, wait_ms=200), noting)
    bodies = [asked(seed, rows) for seed, rows in enumerate((1, 3, 2, 1, 5, 1))]
    answers = send(loop, server, *(request("POST", "/features", body) for body, _ in bodies))
    assert sum(noting.passes) == 6 and max(noting.passes) == 4
    embedder = conclugen.load(runs / "first/model")
    for (status, answer), (_, arrays) in zip(answers, bodies, strict=True):
        assert status == 200
        np.testing.assert_allclose(np.array(answer["vectors"]), embedder.embed(arrays), rtol=1e-5, atol=1e-6)
        assert answer["present"] == {m: [True] * len(x) for m, x in arrays.items()}
        assert "probabilities" not in answer  # the run was not evaluated


def test_what_is_too_much_is_refused_at_once_and_what_waits_is_answered(
    runs: Path, service: Service, loop: asyncio.Runner
) -> None:
    noting = Noting.of(service)
    server = Server(ServeJob(run="first", output=runs, queue=3, batch=1, wait_ms=0), noting)
    noting.wait.clear()

    async def crowd() -> list[Any]:
        sent = [asyncio.create_task(server(request("POST", "/features", asked(seed)[0]))) for seed in range(5)]
        done, waiting = await asyncio.wait(sent, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            more, waiting = await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert len(waiting) == 3
        healthy = await server(request("GET", "/health"))  # whoever waits holds up nobody else
        noting.wait.set()
        return [healthy, *(task.result() for task in done), *await asyncio.gather(*waiting)]

    healthy, *others = loop.run(crowd())
    assert healthy.status_code == 200
    assert sorted(response.status_code for response in others) == [200, 200, 200, 503, 503]
    for refused in (response for response in others if response.status_code == 503):
        assert refused.headers["retry-after"] == "1"
        assert json.loads(refused.body)["error"] == "busy: 3 requests are waiting; try again in a second"
    assert send(loop, server, request("POST", "/features", asked(9)[0]))[0][0] == 200  # and their places are free again


def test_health_says_what_the_model_takes(runs: Path, service: Service, loop: asyncio.Runner) -> None:
    server = Server(ServeJob(run="first", output=runs), service)
    for target in ("/", "/health", "/health/"):
        [(status, told)] = send(loop, server, request("GET", target))
        assert status == 200
        assert told["features"] == WIDTHS and told["width"] == 16 and told["fusion"] == "concat"
        assert told["run"] == "first" and told["clips"] is False and "classes" not in told


@pytest.mark.parametrize(
    ("made", "status", "said"),
    [
        (("GET", "/nothing"), 404, "there is no such path"),
        (("GET", "/features"), 405, "/features takes POST"),
        (("POST", "/health"), 405, "/health takes GET"),
        (("POST", "/features", b"{"), 400, "body: expected JSON"),
        (("POST", "/features", b" " * (1 << 20) + b"x"), 413, "body: must be at most 1 MiB"),
        (("POST", "/features", b"{}", {"Content-Length": "2000000"}), 413, "body: must be at most 1 MiB"),
        (("POST", "/clips", b" " * (2 << 20)), 413, "body: must be at most 1 MiB"),
        (("POST", "/clips"), 400, "body: must be a video file, got nothing"),
        (("POST", "/clips?windows=2", b"x"), 400, "windows: must be true or false, got '2'"),
        (("POST", "/clips?txt=hello", b"x"), 400, "unknown parameter 'txt'; there are text and windows"),
        (("POST", "/clips", b"x"), 422, "its shards do not tell which encoders made their features"),
    ],
)
def test_what_can_t_be_answered_is_one_line_with_a_status(
    made: tuple[Any, ...], status: int, said: str, runs: Path, service: Service, loop: asyncio.Runner
) -> None:
    server = Server(ServeJob(run="first", output=runs, max_mib=1), service)
    [(found, body)] = send(loop, server, request(*made))
    assert found == status and said in body["error"] and "\n" not in body["error"], body


def test_a_server_that_can_t_be_is_refused_before_ray_starts(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application.ray_cluster, "connect", lambda *_, **__: pytest.fail("Ray was started"))
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, line in (
            (["frist"], "did you mean 'first'?"),
            (["first", "--fusion", "sum"], "fusion"),
            (["first", "--label", "mood"], "was not evaluated on a label 'mood'"),
            (["first", "--stride", "9"], "--stride: must be above 0 and within the window (2 s), got 9"),
            (["first", "--port", port], f"--port: {port} cannot be used (Address already in use); give another one"),
            (["first", "--host", "192.0.2.7"], "--host: '192.0.2.7' is not an address of this machine"),
            (["first", "--port", "70000"], "--port: must be 1 to 65535, got 70000"),
            (["first", "--queue", "0"], "--queue: must be at least 1, got 0"),
            (["first", "--host", "a b"], "--host: must be an address such as 127.0.0.1, got 'a b'"),
        ):
            assert main([*options, "--output", str(runs)]) == 2, options
            error = capsys.readouterr().err
            assert line in error and error.count("\n") == 1, error


def test_loopback_addresses_are_told_from_others() -> None:
    assert all(application._is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    everywhere = "0.0.0.0"  # noqa: S104 - the warning is about it
    assert not any(application._is_loopback(host) for host in (everywhere, "::", "10.0.0.1", "example.org"))
    assert application._is_loopback(ServeJob(run="a").host)
