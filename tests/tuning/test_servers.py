"""An ablation on a server of any kind stays one parent with its cells under it, whatever was sent late, and is complete
only when the server says so. Real MLflow servers; each is out of reach in the middle."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ray_jobs.tracking.__main__ import main as send
from ray_jobs.tracking.destination import remember, uri_of_run
from ray_jobs.tracking.mlflow_environment import bounded_calls
from ray_jobs.tracking.mlflow_run import MLFLOW_PARENT_TAG
from tests.cluster.servers import Gate, free_port, mlflow_server
from tuning.ablation.tracking import CellRuns
from tuning.ledger import Record
from tuning.report.report import track

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MARK = "Zq7marker-password"
CELLS = 3
PREFIX = "/team/mlflow"


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[str]:
    with mlflow_server(folder) as url:
        yield url


@contextlib.contextmanager
def with_password(folder: Path) -> Iterator[str]:
    if find_spec("flask_wtf") is None:
        pytest.skip("MLflow's basic-auth needs flask-wtf")
    folder.mkdir(parents=True)
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = somebody\nadmin_password = {MARK}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-for-forms"}
    options = ("--artifacts-destination", str(folder / "files"), "--app-name", "basic-auth")
    with mlflow_server(folder, options=options, environment=environment) as url:
        yield url


@contextlib.contextmanager
def behind_a_path(folder: Path) -> Iterator[str]:
    """A proxy that serves MLflow below a path of its own, and nothing else."""
    with mlflow_server(folder) as target:

        class Proxy(http.server.BaseHTTPRequestHandler):
            def _pass_on(self) -> None:
                if not self.path.startswith(f"{PREFIX}/"):
                    self.send_error(404)
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
                path = self.path.removeprefix(PREFIX)
                request = urllib.request.Request(target + path, body or None, kept, method=self.command)  # noqa: S310
                try:
                    answer = urllib.request.urlopen(request, timeout=60)  # noqa: S310
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    content = answer.read()
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


@contextlib.contextmanager
def on_postgresql(folder: Path) -> Iterator[str]:
    if find_spec("psycopg2") is None:
        pytest.skip("a server on PostgreSQL needs psycopg2")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    tool = Path(shutil.which("initdb") or (found[-1] if found else "")).resolve()
    if tool.name != "initdb":
        pytest.skip("PostgreSQL's server is not installed (Debian's package postgresql)")
    # Not below pytest's own folder, into which another session's start lets no other user.
    data, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    # It refuses to run as root.
    before = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    if before:
        shutil.chown(data, "nobody", "nogroup")
    run = [*before, str(tool)]
    subprocess.run([*run, "-D", str(data), "-U", "conclugen", "-A", "trust"], check=True, capture_output=True)
    listening = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(data)]
    server = subprocess.Popen([*before, str(tool.with_name("postgres")), *listening], stderr=subprocess.DEVNULL)
    try:
        ready = [str(tool.with_name("pg_isready")), "-h", "127.0.0.1", "-p", str(port)]
        for _ in range(300):
            if subprocess.run(ready, capture_output=True).returncode == 0:
                break
            threading.Event().wait(0.2)
        backend = f"postgresql+psycopg2://conclugen@127.0.0.1:{port}/postgres"
        with mlflow_server(folder / "mlflow", backend=backend) as url:
            yield url
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(data, ignore_errors=True)


@contextlib.contextmanager
def artifacts_elsewhere(folder: Path) -> Iterator[str]:
    """The server names a store, and clients write into it themselves."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(parents=True)
    with mlflow_server(folder, options=("--no-serve-artifacts", "--default-artifact-root", elsewhere.as_uri())) as url:
        yield url
    assert list(elsewhere.rglob("report.txt"))


KINDS = {
    "slow": plain,
    "basic authentication": with_password,
    "behind a path": behind_a_path,
    "PostgreSQL": on_postgresql,
    "artifacts elsewhere": artifacts_elsewhere,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_ablation_on_a_server_stays_one_tree_and_is_complete_when_the_server_says_so(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "outputs" / "ablation"
    folder.mkdir(parents=True)
    if kind == "basic authentication":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", MARK)
    with KINDS[kind](tmp_path / "server") as address:
        gate = Gate(address)
        gate.delay_s = 0.3 if kind == "slow" else 0.0
        uri = gate.url + (PREFIX if kind == "behind a path" else "")
        # Begun while the server is away: nothing is there until later.
        gate.shut()
        assert remember(folder, uri) == uri
        runs = cells(folder, uri, range(2))
        assert runs.close(1.0), "nothing can have been sent"
        assert send([str(folder), "--tracking-uri", uri, "--timeout", "1"]) == 1
        gate.open = True
        # It continues with a third cell, and a report is added; the parent is sent first, by one of these.
        runs = cells(folder, uri, range(CELLS))
        runs.close(120.0)
        (folder / "report").mkdir()
        (folder / "report" / "report.txt").write_text("told")
        assert track(folder, [folder / "report" / "report.txt"], uri) is not None
        capsys.readouterr()
        assert send([str(folder), "--tracking-uri", uri]) == 0
        assert capsys.readouterr().out.count(" is complete") == 1 + CELLS
        with bounded_calls():
            client = MlflowClient(uri)
            parent, children = tree(client)
            assert check(client, parent, children, tmp_path)
            # A run that the server loses is no complete run: it is written again, under the same parent.
            client.delete_run(children[0])
            assert send([str(folder), "--tracking-uri", uri]) == 0
            again, anew = tree(client)
            assert again == parent and children[0] not in anew
            assert check(client, parent, anew, tmp_path)
        # Without a word from the user nothing goes to the server that the folder names.
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(ValueError, match="nothing was sent"):
            uri_of_run(folder / "runs" / "cell0")
        gate.close()
    assert not list(folder.parent.glob("mlflow.db*"))
    said = capsys.readouterr()
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert MARK not in said.out + said.err and not [content for content in files if MARK.encode() in content]


def cells(folder: Path, uri: str, numbers: range) -> CellRuns:
    """The runs of an ablation that has come so far; what is sent of them is sent until they are closed."""
    told = {"params": {"seeds": 1}, "tags": {"kind": "ablation"}}
    runs = CellRuns(folder, uri, experiment="on a server", name="ablation", **told)
    tags = {"dataset": "faces", "tasks": ["a", "b"]}
    for number in numbers:
        metrics = {"accuracy@0.1": number / 7}
        runs.cell(Record(f"cell{number}", "cell", "finished", {"n": number}, tags, metrics), f"c{number}")
    runs.parent.status("FINISHED")
    return runs


def tree(client: MlflowClient) -> tuple[str, list[str]]:
    """The one parent's id, and its children's."""
    experiment = client.get_experiment_by_name("on a server")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    parents = [run.info.run_id for run in found if MLFLOW_PARENT_TAG not in run.data.tags]
    assert len(parents) == 1 and len(found) == 1 + CELLS
    children = [run for run in found if run.data.tags.get(MLFLOW_PARENT_TAG) == parents[0]]
    assert len(children) == CELLS
    return parents[0], [run.info.run_id for run in sorted(children, key=lambda run: run.info.run_name)]


def check(client: MlflowClient, parent: str, children: list[str], tmp_path: Path) -> bool:
    for number, child in enumerate(children):
        history = client.get_metric_history(child, "accuracy:0.1")
        assert [(m.step, m.value) for m in history] == [(0, number / 7)]
        assert client.get_run(child).info.status == "FINISHED"
    copy = client.download_artifacts(parent, "report/report.txt", str(tmp_path))
    assert Path(copy).read_text() == "told"
    return True
