"""What a head says of tokens, asked before anything joins it: every pair of a head and a process, by a server that
answers as the head does, and by real heads."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray._raylet import AuthenticationTokenLoader

from conclugen.common.options import JobFailedError
from ray_jobs import doctor, ray_cluster, ray_token
from ray_jobs.ray_cluster import NoRayError
from tests.cluster.runs import without_ray_of_the_test
from tests.cluster.servers import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
RIGHT, WRONG = "a" * 64, "b" * 64


class Head(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the one question as Ray's own does; token: None where it asks for none."""

    def __init__(self, token: str | None) -> None:
        self.token = token
        self.asked: list[str | None] = []

    def service(self, details: Any) -> Any:
        if details.method != "/ray.rpc.NodeInfoGcsService/GetClusterId":
            return None
        header = dict(details.invocation_metadata).get("authorization")

        def answer(request: bytes, context: Any) -> bytes:
            self.asked.append(header)
            if self.token is not None and header != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: Authentication token is missing")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def heads() -> Iterator[Callable[[str | None], tuple[str, Head]]]:
    """Makes a head of this token; its address."""
    servers = []

    def make(token: str | None) -> tuple[str, Head]:
        head = Head(token)
        server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[head])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}", head

    yield make
    for server in servers:
        server.stop(None)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes this process one that sends a token, or has one, or neither."""
    monkeypatch.setenv("HOME", str(tmp_path))
    loader = AuthenticationTokenLoader.instance()

    def make(sends: bool, **given: str) -> None:
        monkeypatch.setattr(ray_token, "is_token_auth_enabled", lambda: sends)
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        loader.reset_cache()

    yield make
    monkeypatch.undo()
    loader.reset_cache()


def test_a_head_and_a_process_that_agree_are_not_talked_of(heads: Any, process: Any, tmp_path: Path) -> None:
    open_, asking = heads(None)[0], heads(RIGHT)[0]
    process(False)
    assert ray_token.refusal(open_) is None
    process(False, RAY_AUTH_TOKEN=RIGHT)
    assert ray_token.refusal(open_) is None  # Ray sends none of its own accord
    process(True, RAY_AUTH_TOKEN=RIGHT)
    assert ray_token.refusal(asking) is None
    (tmp_path / "token").write_text(f"{RIGHT}\n")
    process(True, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert ray_token.refusal(asking) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(RIGHT)
    process(True)
    assert ray_token.refusal(asking) is None


@pytest.mark.parametrize(
    ("token", "sends", "given", "said"),
    [
        (None, True, {"RAY_AUTH_TOKEN": RIGHT}, r"RAY_AUTH_MODE=token is set here, and the cluster at \S+ asks for no"),
        (None, True, {}, r"unset RAY_AUTH_MODE here, or start the head with RAY_AUTH_MODE=token too$"),
        (RIGHT, True, {}, r"asks for a token, and there is none here: set RAY_AUTH_TOKEN to what `ray get-auth-token`"),
        (RIGHT, False, {}, r"there is none here: .*, and export RAY_AUTH_MODE=token$"),
        (RIGHT, True, {"RAY_AUTH_TOKEN": WRONG}, r"does not take the token of RAY_AUTH_TOKEN: .* to this machine$"),
        (RIGHT, False, {"RAY_AUTH_TOKEN": WRONG}, r"does not take the token of RAY_AUTH_TOKEN: .*RAY_AUTH_MODE=token$"),
        (RIGHT, False, {"RAY_AUTH_TOKEN": RIGHT}, r"nothing sends it: export RAY_AUTH_MODE=token \(it takes the token"),
        (RIGHT, True, {"RAY_AUTH_TOKEN_PATH": "/nowhere/t"}, r"cannot be read \(RAY_AUTH_TOKEN_PATH \(/nowhere/t\)"),
    ],
)
def test_what_keeps_them_apart_is_told_with_the_remedy(
    token: str | None, sends: bool, given: dict[str, str], said: str, heads: Any, process: Any
) -> None:
    """In one line that holds neither token; by the jobs and by `doctor`, and before Ray is joined."""
    address, head = heads(token)
    process(sends, **given)
    why = ray_token.refusal(address)
    assert why is not None and re.search(said, why) and address in why, why
    assert "\n" not in why and RIGHT not in why and WRONG not in why
    assert set(head.asked) <= {None, *(f"Bearer {value}" for value in given.values())}


def test_jobs_and_doctor_say_it_before_anything_is_joined(
    heads: Any, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = heads(RIGHT)
    process(True, RAY_AUTH_TOKEN=WRONG)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("it was joined"))
    with pytest.raises(NoRayError, match=r"^RAY_ADDRESS: the cluster at \S+ does not take the token of RAY_AUTH_TOKEN"):
        ray_cluster.connect(1)
    finding = doctor._cluster()
    assert finding.good is False and finding.text == ray_token.refusal(address)
    process(True, RAY_AUTH_TOKEN=RIGHT)
    assert doctor._cluster() == doctor.Finding("Ray", f"jobs join the cluster at {address}", True)


def test_what_cannot_be_asked_is_left_to_ray(heads: Any, process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, head = heads(RIGHT)
    process(True)
    assert ray_token.refusal(f"ray://{address}") is None  # of Ray Client: another protocol
    assert ray_token.refusal("127.0.0.1:1") is None  # nobody answers: the job says so
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert ray_token.refusal(address) is None
    assert not head.asked


def test_rays_own_error_of_a_token_is_answered_with_the_token(process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process(False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for error, remedy in (
        (ray.exceptions.AuthenticationError("no token"), "; export RAY_AUTH_MODE=token, and set "),
        (RuntimeError("InvalidAuthToken: missing or incorrect"), "; export RAY_AUTH_MODE=token, and set "),
        (ConnectionError("no answer"), "; correct it, start the cluster"),
    ):

        def init(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(ray, "init", init)
        with pytest.raises(JobFailedError) as failed:
            ray_cluster.connect(1)
        assert remedy in str(failed.value) and "\n" not in str(failed.value)


# ---- real heads ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def real_head(mode: str, token: str) -> Iterator[str]:
    """A head of Ray in a session of its own; its address."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rk", ignore_cleanup_errors=True) as folder:
        environment = without_ray_of_the_test() | {"HOME": folder, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
        command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--temp-dir={folder}/r"]
        command += ["--include-dashboard=false", "--disable-usage-stats"]
        log = Path(folder) / "head.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield re.search(r"(\d+\.\d+\.\d+\.\d+):" + str(port), log.read_text())[0]  # type: ignore[index]
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            for child in (psutil.Process(process.pid), *started):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.wait()


JOB = """
from conclugen.common.options import JobFailedError
from ray_jobs import ray_cluster
try:
    ray_cluster.connect(1)
except JobFailedError as error:
    print("refused", error)
else:
    import ray
    print("answer", ray.get(ray.remote(lambda: 7).remote(), timeout=60))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_real_heads_are_joined_or_refused_before_that(mode: str) -> None:
    with real_head(mode, RIGHT) as address, tempfile.TemporaryDirectory(prefix="rh") as home:

        def told(**given: str) -> tuple[str, str]:
            """By a job, and by `doctor`."""
            environment = without_ray_of_the_test() | {"HOME": home, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
            both = []
            for words in (["-c", JOB], ["-m", "conclugen", "doctor", "pretrain"]):
                command = [sys.executable, *words]
                done = subprocess.run(command, env=environment | given, capture_output=True, text=True, timeout=240)
                assert "Traceback" not in done.stderr, done.stderr
                both.append(done.stdout + done.stderr)
            return both[0], next(line for line in both[1].splitlines() if line.startswith("Ray "))

        agree: dict[str, str] = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": RIGHT}
        job, line = told(**agree)
        assert "answer 7" in job and f"jobs join the cluster at {address}" in line, (job, line)
        wrong: list[dict[str, str]] = [
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG},
            {"RAY_AUTH_MODE": "token"},
            {},
        ]
        for given in wrong if mode == "token" else wrong[:1]:
            job, line = told(**given)
            why = re.search(r"refused RAY_ADDRESS: (.*)", job)
            assert why is not None and "MISSING" in line and line.endswith(why[1]), (given, job, line)
            assert "RAY_AUTH_MODE" in line or "RAY_AUTH_TOKEN" in line
