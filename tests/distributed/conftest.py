"""Ranks that are started once for all tests of this folder, each of which imports PyTorch for seconds."""

from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool, pool

RANKS = 4  # the most that any test wants


@pytest.fixture(scope="session")
def workers() -> Iterator[Pool]:
    with pool(RANKS) as started:
        yield started
