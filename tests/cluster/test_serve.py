"""`conclugen serve` as it is typed: a real Ray Serve in a process of its own, asked by a real HTTP client."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import serve_load
from ray_jobs.embedding.clips import Embedded, Windows, embed_files
from ray_jobs.embedding.model import RunModel
from ray_jobs.extraction.extract import choices_of
from ray_jobs.options.extract import EncoderOptions
from ray_jobs.run_folder import RunFolder
from tests.cluster.runs import without_ray_of_the_test
from tests.cluster.servers import free_port
from tests.ray_jobs.embedding.test_embed import NAMES, make_run
from tests.ray_jobs.extraction.extraction_loop import make_clips, make_plan, run_loop
from tests.shards.media.make_media import make_video, sine

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run on features of clips."""
    root = tmp_path_factory.mktemp("served")
    clips = make_clips(root / "clips", 2, 12, pictures=25)
    run_loop(make_plan(clips, root / "features", NAMES))
    make_run(root, "run", ("video", "audio"))
    return root


class Running:
    """The command, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port, self.said = process, port, ""
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith("ctrl-c ends it"):
                self.ready.set()
        self.ready.set()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        status = self.process.wait(120)
        self._reader.join(10)
        return status


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rs", ignore_cleanup_errors=True))
        options = ["run", "--output", str(root / "runs"), "--port", str(port), "--queue", "4", "--max-mib", "8"]
        process = subprocess.Popen(
            [sys.executable, "-m", "conclugen", "serve", *options],
            cwd=ROOT,
            env=without_ray_of_the_test() | {"RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running = Running(process, port)
        try:
            assert running.ready.wait(600) and process.poll() is None, running.said
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


@pytest.fixture(scope="module")
def model(root: Path) -> RunModel:
    return RunModel.open(RunFolder(root / "runs/run"))


def features(model: RunModel, rows: int, seed: int) -> tuple[bytes, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    arrays = {m: rng.normal(size=(rows, w)).astype(np.float32) for m, w in model.embedder.widths.items()}
    sent = {m: x.tolist() for m, x in arrays.items()}
    if rows > 1:
        arrays["audio"][1], sent["audio"][1] = np.nan, None
    return json.dumps({"features": sent}).encode(), arrays


def test_health_vectors_and_probabilities(server: Running, model: RunModel) -> None:
    status, told = server.ask("GET", "/health")
    assert status == 200 and told["clips"] is True and told["features"] == model.embedder.widths
    assert model.probe is not None
    assert told["label"] == "mood" and tuple(told["classes"]) == model.probe.classes
    asked = [features(model, rows, seed) for seed, rows in enumerate((1, 4, 2, 3))]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda one: server.ask("POST", "/features", one[0]), asked))
    for (status, answer), (_, arrays) in zip(answers, asked, strict=True):
        assert status == 200
        vectors, probabilities = model.represent(arrays, "concat")
        assert probabilities is not None
        np.testing.assert_allclose(answer["vectors"], vectors, rtol=1e-5, atol=1e-6)
        found = [[row[name] for name in model.probe.classes] for row in answer["probabilities"]]
        np.testing.assert_allclose(found, probabilities, rtol=1e-5, atol=1e-6)
        assert answer["present"]["audio"] == (~np.isnan(arrays["audio"]).any(axis=1)).tolist()


def test_a_clip_is_embedded_as_the_job_does_it(server: Running, model: RunModel, tmp_path: Path) -> None:
    video = make_video(tmp_path / "long.mp4", 100, (48, 64), sound=sine(4.0, 44_100, 1))
    encoders = [choice.create("cpu") for choice in choices_of(model.encoder_names, EncoderOptions(), model.provided)]
    [expected] = embed_files(model, encoders, [str(video)], "concat", Windows(), ["well then"])
    assert isinstance(expected, Embedded)
    status, answer = server.ask("POST", "/clips?windows=true&text=well%20then", video.read_bytes())
    assert status == 200
    assert [tuple(stretch) for stretch in answer["times"]] == list(expected.stretches)
    np.testing.assert_allclose(answer["vectors"], expected.embeddings, rtol=1e-4, atol=1e-5)
    status, whole = server.ask("POST", "/clips?text=well%20then", video.read_bytes())
    assert status == 200 and len(whole["vectors"]) == 1
    np.testing.assert_allclose(whole["vectors"][0], answer["vectors"][0], rtol=1e-4, atol=1e-5)


def test_what_is_no_clip_is_refused_as_the_job_does_and_harms_nobody(server: Running, tmp_path: Path) -> None:
    video = make_video(tmp_path / "short.mp4", 30, (48, 64), sound=sine(1.2, 44_100, 1))
    for body, reason in ((b"no video at all", "not_media"), (video.read_bytes()[:2000], None)):
        status, told = server.ask("POST", "/clips", body)
        assert status == 422 and told["reason"] == (reason or told["reason"])
        assert "/tmp" not in told["error"] and "\n" not in told["error"]
    assert server.ask("POST", "/clips", b"x" * (9 << 20))[0] == 413
    assert server.ask("POST", "/clips", video.read_bytes())[0] == 200


def test_under_load_what_is_too_much_is_refused_and_the_rest_answered(server: Running, model: RunModel) -> None:
    body, _ = features(model, 64, 1)
    load = serve_load.measure(f"http://127.0.0.1:{server.port}", "/features", body, "application/json", 64, 2.0)
    assert load.failed == {} and load.statuses[200] > 0
    assert load.statuses[503] > 0 and "busy" in load.said[503]
    assert server.ask("GET", "/health")[0] == 200


def test_metrics_are_scraped_from_the_node(server: Running, model: RunModel) -> None:
    """Those of the server's own: requests by path and status, rows, seconds."""
    assert server.ask("POST", "/features", features(model, 2, 5)[0])[0] == 200
    ports = _listening(server.process.pid)
    deadline = time.monotonic() + 120
    found = ""
    while time.monotonic() < deadline and "conclugen_serve_rows" not in found:
        for port in ports:
            with contextlib.suppress(OSError, http.client.HTTPException, UnicodeDecodeError):
                url = f"http://127.0.0.1:{port}/metrics"
                found += urllib.request.urlopen(url, timeout=5).read().decode()
        time.sleep(2)
    for name in ("conclugen_serve_requests", "conclugen_serve_seconds", "conclugen_serve_rows"):
        assert f"ray_{name}" in found, sorted(ports)


def test_it_ends_when_it_is_told_to(server: Running) -> None:
    assert server.end(signal.SIGTERM) == 143
    assert "terminated: the server has ended; the same command starts it again" in server.said
    noise = [line for line in server.said.splitlines() if "ray.serve" in line or "INFO" in line or "Traceback" in line]
    assert not noise, noise
    with pytest.raises(OSError):
        server.ask("GET", "/health")


def _listening(pid: int) -> set[int]:
    """Ports on which the process and its descendants listen."""
    ports = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            ports |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return ports
