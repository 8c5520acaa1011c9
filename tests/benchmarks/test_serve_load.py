"""`benchmarks.serve_load` against a server whose answers are known."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serve_load


class Known(BaseHTTPRequestHandler):
    """Every fourth request is refused; every tenth fails where the server says so."""

    protocol_version = "HTTP/1.1"
    served: Any

    def do_GET(self) -> None:
        self._answer(200, {"features": {"video": 3}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert [len(row) for row in body["features"]["video"]] == [3, 3]
        with self.served.lock:
            self.served.count += 1
            number = self.served.count
        if number % 4 == 0:
            self._answer(503, {"error": "busy"})
        elif self.served.fails and number % 10 == 0:
            self._answer(500, {"error": "broken"})
        else:
            self._answer(200, {"vectors": []})

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Known)
    server.count, server.fails, server.lock = 0, False, threading.Lock()  # type: ignore[attr-defined]
    Known.served = server
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def arguments(served: Any, *more: str) -> list[str]:
    return ["--url", f"http://127.0.0.1:{served.server_port}", "--seconds", "0.2", "--rows", "2", *more]


def test_answers_and_refusals_are_counted(served: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_load.main(arguments(served, "--clients", "1", "3", "--json", str(tmp_path / "found.json"))) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["clients"] for one in found] == [1, 3]
    counted = {status: sum(one["statuses"].get(status, 0) for one in found) for status in ("200", "503")}
    assert served.count == sum(counted.values()) >= 4
    assert counted["503"] == served.count // 4
    assert sum(len(one["seconds"]) for one in found) == counted["200"]
    said = capsys.readouterr().out
    assert said.count("\n| ") == 3 and 'said: {"error": "busy"}' in said


def test_a_failure_is_no_refusal(served: Any, capsys: pytest.CaptureFixture[str]) -> None:
    served.fails = True
    assert serve_load.main(arguments(served, "--clients", "4")) == 1
    assert "broken" in capsys.readouterr().out


def test_percentiles_are_of_the_answers_alone() -> None:
    load = serve_load.Load(2, wall=2.0, seconds=[0.001 * n for n in range(1, 102)])
    load.statuses.update({200: 101, 503: 99, "TimeoutError": 1})
    assert load.row() == "| 2 | 201 | 50.5 | 51.0 | 100.0 | 99 (49%) | 1 |"


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:8000", "http://127.0.0.1:9"])
def test_what_is_no_server_is_told_in_a_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_load.main(["--url", url]) == 2
    assert capsys.readouterr().err.startswith("python -m benchmarks.serve_load: ")
