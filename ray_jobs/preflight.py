"""What a job needs at its end, looked at before its first work: where it is tracked, and under which names.

Names are refused while the job is parsed, folders that cannot be written to where the job takes their lock
(`conclugen.common.locks.folder_held`). Here is what only a look outside can tell.
"""

from __future__ import annotations

import http.client
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar

import fsspec

from conclugen.common import uris
from conclugen.common.locks import check_room
from ray_jobs.checkpoint_store import describe
from ray_jobs.tracking.mlflow_environment import check_experiment, check_registered_name, store_folder
from shards.access import access_error

Result = TypeVar("Result")

_ANSWER_WITHIN_S = 3.0
STORED_WITHIN_S = 30.0  # a store's client asks for credentials first, and asks again


def check_tracking(uri: str, experiment: str, registered_model: str | None = None) -> None:
    """Look at where a job is to be tracked, within seconds.

    A server that does not answer stops no job: a line says so, and it gets everything when it is back. Raises
    ValueError or OSError for names that it would refuse, and for a local store that cannot be written.
    """
    check_experiment("experiment", experiment)
    if registered_model is not None:
        check_registered_name("registered_model", registered_model)
    below = store_folder(uri)
    if below is not None:
        check_room("tracking_uri", below)
        return
    reason = why_silent(uri)
    if reason is not None:
        also = "" if registered_model is None else f", and whether model {registered_model!r} can be registered is open"
        print(
            f"warning: MLflow at {uris.public(uri)} does not answer now ({reason}){also}; the job continues, and "
            "what it tracked is sent when the server is back",
            flush=True,
        )


def check_storage(field: str, url: str, within_s: float | None = None) -> None:
    """Raise OSError unless objects can be written below an address and removed again, as old checkpoints are. Where
    nothing can be removed the probe stays; all probes have one name, so that tries do not pile up."""
    probe = f"{url.rstrip('/')}/.conclugen-probe"

    def write() -> None:
        filesystem, path = fsspec.core.url_to_fs(probe, use_listings_cache=False)
        with tempfile.NamedTemporaryFile() as local:
            local.write(b"conclugen")
            local.flush()
            filesystem.put_file(local.name, path)  # as checkpoints are: where a store has folders, it makes them
        filesystem.rm_file(path)

    within(field, url, "written to", write, within_s)


def within(field: str, url: str, done: str, action: Callable[[], Result], within_s: float | None = None) -> Result:
    """What an action on a store gives. done: what it does, as a participle (`read`, `written to`).

    A store's client may wait for ever, so the action has a thread of its own and is left behind after `within_s`
    seconds (None: `STORED_WITHIN_S`). Raises OSError, in one line, where the store refuses or does not answer;
    ValueError (CheckpointError is one), which is about what lies there, stays what it is.
    """
    limit = STORED_WITHIN_S if within_s is None else within_s
    result: list[Result] = []
    error: Exception = TimeoutError(f"no answer within {limit:g} s")

    def act() -> None:
        nonlocal error
        try:
            result.append(action())
        except Exception as caught:
            error = caught

    acting = threading.Thread(target=act, name="preflight", daemon=True)
    acting.start()
    acting.join(limit)
    if result:
        return result[0]
    problem = access_error(error, url)
    if problem is None and isinstance(error, ValueError):
        raise error
    why = f"{problem.problem}; {problem.said}" if problem is not None else describe(error)[:200]
    raise OSError(
        f"{field}: {uris.public(url)} cannot be {done} ({uris.scrub(why)}); checkpoints need permission to put, "
        "list, read and delete objects there. Correct the address or the credentials, or choose another place"
    ) from error


def why_silent(uri: str, within_s: float = _ANSWER_WITHIN_S) -> str | None:
    """Why a server gives no answer, None where it gives any (also one that wants a password, which is not sent)."""
    if not uri.startswith(("http://", "https://")):
        return None
    found: list[str | None] = [f"no answer within {within_s:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(f"{uri.rstrip('/')}/health", method="GET")  # noqa: S310 - http(s) only
            with urllib.request.urlopen(request, timeout=within_s):  # noqa: S310
                found[0] = None
        except urllib.error.HTTPError:
            found[0] = None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if not isinstance(reason, TimeoutError):
                found[0] = uris.scrub(reason) or type(error).__name__

    asking = threading.Thread(target=ask, name="preflight", daemon=True)  # names may take longer to be looked up
    asking.start()
    asking.join(within_s)
    return found[0]
