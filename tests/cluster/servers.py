"""Servers for tests, each a process of its own: MLflow's own server behind a gate that can be shut, and an S3 store."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(command: list[str], url: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A server's address while it runs; it answers when the block begins."""
    process = subprocess.Popen(
        command, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(url, timeout=2)  # noqa: S310
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"{command} ended with {process.returncode}") from None
                time.sleep(0.2)
        else:
            raise TimeoutError(f"{url} does not answer")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def mlflow_server(
    folder: Path,
    port: int | None = None,
    *,
    backend: str | None = None,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> contextlib.AbstractContextManager[str]:
    """MLflow's server over a SQLite file or another `backend`, at a port that is free where none is given."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        backend or f"sqlite:///{folder}/server.db",
        *(options or ("--artifacts-destination", str(folder / "files"))),
    ]
    # Half a dozen processes for jobs of its own (evaluations of language models) would start beside it.
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return serving(command, f"http://127.0.0.1:{port}", own | (environment or {}))


def s3_server() -> contextlib.AbstractContextManager[str]:
    """An S3-compatible store in memory."""
    port = free_port()
    main = "from moto.server import main; import sys; main(sys.argv[1:])"
    return serving([sys.executable, "-c", main, "-H", "127.0.0.1", "-p", str(port)], f"http://127.0.0.1:{port}")


class Faulty:
    """An S3 store that answers every request with one error, or with none at all."""

    def __init__(self) -> None:
        self.status, self.code, self.silent = 403, "AccessDenied", False
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                if store.silent:
                    threading.Event().wait(3)
                    return
                body = f"<Error><Code>{store.code}</Code><Message>told by the store</Message></Error>".encode()
                self.send_response(store.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = answer  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "key": "k",
            "secret": "s",
            "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{self.server.server_port}", "region_name": "x"},
            "config_kwargs": {"retries": {"max_attempts": 1}, "read_timeout": 0.5, "connect_timeout": 0.5},
            "skip_instance_cache": True,
            **more,
        }


class Gate:
    """Passes connections on to a server, unless it is shut (they are refused at once), slow (whatever is sent
    to the server waits first), or silent (they are taken and get no answer until it is no longer)."""

    def __init__(self, target: str):
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.open, self.silent, self.delay_s = True, False, 0.0
        self.passed = self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def shut(self) -> None:
        self.open = False

    def fall_silent(self) -> None:
        self.silent = True

    def back(self) -> None:
        self.open, self.silent, self.delay_s = True, False, 0.0

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                self.refused += 1
                connection.close()
                continue
            self.passed += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, socket.create_connection(self._target) as server:
            back = threading.Thread(target=self._copy, args=(server, connection, False), daemon=True)
            back.start()
            self._copy(connection, server, True)
            back.join()

    def _copy(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with contextlib.suppress(OSError):
            while self.open and (data := source.recv(1 << 16)):
                if to_server:
                    time.sleep(self.delay_s)
                    while self.silent:
                        time.sleep(0.05)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
