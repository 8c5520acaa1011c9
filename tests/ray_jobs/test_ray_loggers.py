"""Names of Ray's private loggers follow its modules: a renamed module would be heard again."""

import functools
import logging
from importlib.util import find_spec

import pytest
from ray._private.ray_logging import WorkerStandardStreamDispatcher
from ray._private.worker import print_to_stdstream
from ray.experimental.tqdm_ray import RAY_TQDM_MAGIC

from ray_jobs import ray_loggers
from shards.reading import ray_source
from tests.clock import Clock


@pytest.mark.parametrize(
    "name",
    [*ray_loggers.AUTHENTICATION, *ray_loggers.DATA, *(f"ray.data._internal.{name}" for name in ray_source._CHATTER)],
)
def test_every_logger_is_a_module_of_ray(name: str) -> None:
    assert find_spec(name) is not None


def test_what_is_quietened_still_tells_errors() -> None:
    ray_loggers.quieten(("a.private.module",))
    below = logging.getLogger("a.private.module.part")
    assert not below.isEnabledFor(logging.WARNING) and below.isEnabledFor(logging.ERROR)


def test_what_workers_say_of_ours_is_shown_once_and_without_rays_prefix(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatcher = WorkerStandardStreamDispatcher()
    monkeypatch.setattr(ray_loggers, "global_worker_stdstream_dispatcher", dispatcher)
    ray_loggers.show_our_lines()  # nobody prints: `log_to_driver=False`
    assert not dispatcher.handlers
    dispatcher.add_handler("another", lambda _: None)
    dispatcher.add_handler("ray_print_logs", functools.partial(print_to_stdstream, ignore_prefix=False))  # as Ray does
    for _ in range(2):
        ray_loggers.show_our_lines()

    def say(pid: object, *lines: str, error: bool = False, ip: str = "10.0.0.1") -> tuple[list[str], list[str]]:
        data = {
            "pid": str(pid),
            "ip": ip,
            "localhost": "10.0.0.1",
            "is_err": error,
            "lines": list(lines),
            "actor_name": "A",
        }
        dispatcher.emit({**data, "lines": list(lines)})
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    monkeypatch.setenv("RAY_COLOR_PREFIX", "0")
    assert say(1, "rank 0 reads", "  a table") == (["rank 0 reads", "  a table"], [])
    assert say(2, "rank 0 reads", "rank 1 reads") == (["rank 1 reads"], [])
    assert say(1, "rank 0 reads", ip="10.0.0.2") == ([], [])  # the same number elsewhere is another process
    assert say(1, "rank 0 reads") == (["rank 0 reads"], [])  # once more by itself
    clock.sleep(61)
    assert say(2, "rank 0 reads") == (["rank 0 reads"], [])
    mixed = "warning: slow", "  note: a detail", "a.py:3: UserWarning: odd", "an error: none"
    assert say(1, *mixed, error=True) == (list(mixed[:2]), [f"(A pid=1) {line}" for line in mixed[2:]])
    # What is Ray's own goes Ray's way.
    assert say("raylet", "of a raylet") == ([f"(raylet) {'of a raylet'}"], [])
    drawn: list[str] = []
    monkeypatch.setattr("ray._private.worker.process_tqdm", drawn.append)
    assert say(1, f"{RAY_TQDM_MAGIC} 3 of 4") == ([], []) and len(drawn) == 1
    dispatcher.remove_handler("ray_print_logs")  # as Ray does when it disconnects
    assert [name for name, _ in dispatcher.handlers] == ["another"]
