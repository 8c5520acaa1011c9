"""The thread that sends: how long it waits, what it says of a server that is away and back, and how it ends."""

from __future__ import annotations

import logging
import time

import pytest

from ray_jobs.tracking.background_sender import BackgroundSender, pause_before_retry
from tests.clock import Clock

OK, AWAY = True, ConnectionError("http://me:mine@host/ does not answer")


class Sender(BackgroundSender):
    """Sends with these outcomes, one after the other; it is told to stop while it waits for the last one."""

    def __init__(self, *outcomes: bool | Exception, stop_at: int | None = None) -> None:
        super().__init__("http://host", name="test", interval_s=7.0)
        self.outcomes, self.released, self.pauses = list(outcomes), 0, list[float]()
        self._stop_at = len(outcomes) - 1 if stop_at is None else stop_at
        self._stop.wait = self._waited  # type: ignore[method-assign, assignment]

    def _waited(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) >= self._stop_at:
            self._deadline = time.monotonic() + 60
            self._stop.set()

    def send_new(self) -> bool:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def release(self) -> None:
        self.released += 1

    def unsent_message(self) -> str:
        return "not all of it"


def test_pauses_double_while_a_server_is_away_and_are_the_usual_ones_again(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(OK, AWAY, AWAY, AWAY, OK, AWAY, OK)
    sender._work()
    assert sender.pauses == [7.0, 0.5, 1.0, 2.0, 7.0, 0.5]
    assert sender.complete and sender.released == 1 and not sender.outcomes
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    away = "MLflow at http://host: ConnectionError: http://host/ does not answer; will be tried again"
    back = "MLflow at http://host: sending continues after {} failed attempts"
    assert told == [away, back.format(3), away, back.format(1)]


@pytest.mark.parametrize(("last", "complete"), [(True, True), (False, False)])
def test_what_is_new_when_it_is_told_to_stop_is_sent_too(last: bool, complete: bool) -> None:
    sender = Sender(OK, last, stop_at=1)
    sender._work()
    assert sender.complete is complete and sender.released == 1 and not sender.outcomes


def test_it_ends_in_time_where_nobody_answers(clock: Clock) -> None:
    """Told to stop, it tries on with pauses until its time is over, and lets go of what it held."""
    sender = Sender(*[AWAY] * 20, stop_at=1)
    sender._work()
    assert not sender.complete and sender.released == 1
    assert 60.0 <= clock.now < 61.0, "in the time that it was given"
    assert 2 < 20 - len(sender.outcomes) < 15


def test_pauses_are_bounded() -> None:
    assert [pause_before_retry(n) for n in (1, 2, 3, 7, 8, 5000)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
