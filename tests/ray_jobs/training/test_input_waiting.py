"""What a loop waits for, told apart by running streams that are slow in one place each; and when a warning is due."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from conclugen import presets
from conclugen.training.prefetch import ahead
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig
from ray_jobs.training.input_gauge import InputGauge, InputTimes
from ray_jobs.training.wait_warning import WaitWatch, likely_cause
from shards.reading.stream import ReadAhead
from shards.reading.stream_counters import StreamCounters
from tests.clock import Clock


def job(payload: str = "object_store") -> PretrainJob:
    data = DataConfig(folder="shards", payload=payload)  # type: ignore[arg-type]
    return PretrainJob(presets.build("conclugen"), data, RunConfig(name="x", output="outputs"))


def run(fetch: float = 0.0, read: float = 0.0, stage: float = 0.0, steps: int = 30) -> InputTimes:
    """The counters of a loop over a stream whose parts sleep for so long at each batch; a step sleeps for 4 ms."""
    counters, gauge = StreamCounters(), InputGauge()

    def source() -> Iterator[int]:
        for i in range(steps):
            with counters.while_fetching():
                time.sleep(fetch)
            with counters.while_reading():
                time.sleep(read)
            yield i

    def staged(batch: int) -> int:
        time.sleep(stage)
        return batch

    with ReadAhead(source(), 2, counters) as stream:
        batches = ahead(stream, staged) if stage else stream
        for seen, batch in enumerate(gauge.timed(batches, stream.counters)):
            assert batch == seen
            time.sleep(0.004)
    return gauge.times()


def test_the_share_of_waiting_is_a_share() -> None:
    assert InputTimes(seconds=10.0, waited=4.0).wait_share == 0.4
    assert InputTimes(seconds=10.0, waited=10.5).wait_share == 1.0, "clocks are read one after the other"
    assert InputTimes(seconds=0.0, waited=1.0).wait_share == 0.0


def test_counters_of_a_source_that_is_always_ahead() -> None:
    """The step lasts until the queue is full again, so every batch that is asked for is there."""
    made, counters, gauge = [0], StreamCounters(), InputGauge()

    def source() -> Iterator[int]:
        for i in range(20):
            made[0] = i
            yield i

    with ReadAhead(source(), 2, counters) as stream:
        for seen in gauge.timed(stream, stream.counters):
            while made[0] < min(19, seen + 3):  # two in the queue, and one more made
                time.sleep(0.001)
    times = gauge.times()
    assert times.steps == 20 and times.capacity == 2
    assert times.asked == 20, "19 batches and the end; the first one is not counted"
    assert times.queue_depth > 1.7, "but for the last two"


@pytest.mark.parametrize(
    ("name", "payload", "slow"),
    [
        ("read tasks", "object_store", {"fetch": 0.02}),
        ("tasks of the plan", "worker", {"fetch": 0.02}),
        ("storage", "worker", {"read": 0.02}),
        ("copy to the device", "object_store", {"stage": 0.02}),
    ],
)
def test_the_slow_part_is_named(name: str, payload: str, slow: dict[str, float]) -> None:
    times = run(**slow)
    assert times.wait_share > 0.1, times
    assert likely_cause(times, job(payload)).name == name, times


@pytest.mark.parametrize(
    ("name", "payload", "counters"),
    [
        ("bursts", "object_store", {"ready": 150}),
        ("reading in the worker", "worker", {"reading": 11.0, "reading_cpu": 10.0}),
        ("storage", "worker", {"reading": 11.0, "reading_cpu": 1.0}),
        ("copy from the object store", "object_store", {"reading": 11.0, "reading_cpu": 10.0}),
    ],
)
def test_the_likely_cause_of_counters(name: str, payload: str, counters: dict[str, float]) -> None:
    times = InputTimes(seconds=12, steps=100, waited=3, starved=2.9, asked=100, capacity=2, fetching=0.5)
    assert likely_cause(replace(times, **counters), job(payload)).name == name  # type: ignore[arg-type]


def test_pauses_and_the_first_batch_count_nowhere(clock: Clock) -> None:
    gauge = InputGauge()

    def slow_start() -> Iterator[int]:
        time.sleep(0.2)
        yield from range(5)

    for batch in gauge.timed(slow_start()):
        if batch == 3:
            with gauge.paused():
                time.sleep(0.2)
        time.sleep(0.01)
    times = gauge.times()
    assert times.steps == 5 and times.waited == 0 and times.seconds == pytest.approx(5 * 0.01)


GOOD = InputTimes(seconds=12, steps=100, waited=0.1, asked=100, ready=190, capacity=2)
POOR = replace(GOOD, waited=3.0, starved=2.9, ready=10, fetching=9.0)
DEVICE = replace(GOOD, waited=3.0, starved=0.1)


def added(a: InputTimes, b: InputTimes) -> InputTimes:
    return replace(a - (InputTimes() - b), capacity=b.capacity)


def told(*periods: InputTimes) -> list[str | None]:
    watch, so_far, result = WaitWatch(job()), InputTimes(), []
    for period in periods:
        so_far = added(so_far, period)
        result.append(watch.judge([so_far]))
    return result


def test_a_warning_comes_in_steady_state_and_not_again_for_the_same_cause() -> None:
    first, second, *rest = told(POOR, POOR, POOR, DEVICE, DEVICE)
    assert first is None, "start-up"
    assert second is not None and "waits for data 25% of its time (rank 0, 100 steps, queue 0.1 of 2)" in second
    assert "Raise data.read_tasks (now 2 for each worker)" in second
    assert rest[0] is None and rest[1] is not None and "copy to the device" in rest[1] and rest[2] is None
    assert told(GOOD, GOOD, GOOD) == [None] * 3
    at_the_limit = replace(POOR, waited=12 * 0.049)
    assert told(GOOD, at_the_limit, replace(at_the_limit, waited=12 * 0.051))[1:] != [None, None]
    assert told(GOOD, at_the_limit) == [None, None]


def test_short_periods_are_judged_together() -> None:
    short = InputTimes(seconds=1, steps=30, waited=0.25, starved=0.2, asked=30, fetching=0.9, capacity=2)
    found = told(*[short] * 45)
    assert [i for i, warning in enumerate(found) if warning] == [19], "twice ten seconds"


def test_a_cause_that_lasts_is_told_again_after_half_an_hour() -> None:
    long = replace(POOR, seconds=1000, waited=200.0, starved=190.0, fetching=900.0)
    assert [warning is not None for warning in told(long, long, long, long, long)] == [False, True, False, True, False]


def test_the_rank_that_waits_longest_is_the_one_told_of() -> None:
    watch = WaitWatch(job())
    assert watch.judge([GOOD, GOOD]) is None
    warning = watch.judge([added(GOOD, GOOD), added(GOOD, POOR)])
    assert warning is not None and "(rank 1," in warning
    assert math.isclose(POOR.wait_share, 0.25)
