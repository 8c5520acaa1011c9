"""Names of Ray's private loggers follow its modules: a renamed module would be heard again."""

import logging
from importlib.util import find_spec

import pytest

from ray_jobs import ray_loggers
from shards.reading import ray_source


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
