"""Workers of Ray Train that stay while a benchmark runs and do what they are asked, and the Ray that they need.

To start a group of workers takes Ray Train several seconds. A group therefore starts once, and its training function
waits for one task after the other: what is measured in Train workers can then alternate with what is not.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import ray
from ray.train import LoggingConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer

Result = TypeVar("Result")
Task = Callable[[int, int], Result]  # is given rank and world

# Ray Train reads these where it starts; what the user has set there holds. A busy machine may take longer to start
# processes than the minute that is Ray's default, and nobody takes this machine away with a notice.
_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_LEAVES_WITHIN_S = 60.0
_LOOKS_EVERY_S = 1.0


@contextmanager
def running(worlds: Sequence[int], store_bytes: int) -> Iterator[dict[int, TrainWorkers]]:
    """A Ray of its own, and groups of so many Train workers each; all of it ends with the block.

    Each worker reserves a CPU, and as many as there are cores are left to tasks that read.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cores = max(2, os.cpu_count() or 2)
    ray.init(
        # "local": never a Ray that something else started on this machine.
        "local", num_cpus=cores + sum(worlds), include_dashboard=False, logging_level="ERROR",
        object_store_memory=store_bytes, log_to_driver=False,
    )  # fmt: skip
    try:
        with ExitStack() as stack:
            yield {world: stack.enter_context(TrainWorkers(world)) for world in worlds}
    finally:
        ray.shutdown()


class TrainWorkers:
    """The workers of one Ray Train run, a CPU each: `run` lets every one of them do the same task.

    start_seconds: from the run's start until each worker waited for a task.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._mailbox = _Mailbox.remote(world)  # type: ignore[attr-defined]
        self._error: BaseException | None = None
        begin = time.perf_counter()
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self._thread.start()
        self._answers()
        self.start_seconds = time.perf_counter() - begin

    def run(self, task: Task[Result]) -> list[Result]:
        """What `task(rank, world)` returned in each worker, by rank; raises what it raised in one of them, whereupon
        Ray Train ends the others and the group is of no use any more."""
        ray.get(self._mailbox.send.remote([ray.put(task)]))  # in a list, so that it is not read on the way
        return self._answers()

    def close(self) -> None:
        """End the run and wait for it."""
        if not ray.is_initialized():
            return  # it ended with Ray; to ask now would start another one
        if self._thread.is_alive():
            ray.get(self._mailbox.send.remote(None))
            self._thread.join(_LEAVES_WITHIN_S)
        ray.kill(self._mailbox)

    def __enter__(self) -> TrainWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fit(self) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
                _Trainer(
                    _serve,
                    train_loop_config={"mailbox": self._mailbox},
                    scaling_config=ScalingConfig(num_workers=self.world, resources_per_worker={"CPU": 1}),
                    run_config=RunConfig(storage_path=folder, logging_config=LoggingConfig(log_level="CRITICAL")),
                ).fit()
        except BaseException as error:  # raised where an answer is waited for
            self._error = error

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < self.world:
            waiting = self._mailbox.next_answer.remote()
            while not ray.wait([waiting], timeout=_LOOKS_EVERY_S)[0]:
                if not self._thread.is_alive():
                    raise RuntimeError("the Train workers have ended before they answered") from self._error
            rank, value, error = ray.get(waiting)
            if error is not None:
                raise error
            answers[rank] = value
        return [answers[rank] for rank in range(self.world)]


class _Trainer(TorchTrainer):
    """A TorchTrainer without two processes of Ray Train's own. Its cleaner of placement groups asks a dashboard whether
    its controller lives: there is none here, and where several Rays run on a machine it may ask another one's, which
    knows no such controller, and then takes the workers' CPUs away. Its manager of data sets has none to manage.
    They are left out by name, for they are not public."""

    _LEFT_OUT = ("PlacementGroupCleanerCallback", "DatasetsCallback")

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in self._LEFT_OUT]


@ray.remote(num_cpus=0)
class _Mailbox:
    """Carries tasks to the workers and their answers back; waiting costs nothing."""

    def __init__(self, world: int) -> None:
        self._tasks: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(world)]
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, task: Any) -> None:
        for tasks in self._tasks:
            tasks.put_nowait(task)

    async def next_task(self, rank: int) -> Any:
        return await self._tasks[rank].get()

    async def answer(self, rank: int, value: Any, error: BaseException | None) -> None:
        self._answers.put_nowait((rank, value, error))

    async def next_answer(self) -> Any:
        return await self._answers.get()


def _serve(config: dict[str, Any]) -> None:
    """The training function: one task after the other until there is none."""
    mailbox, rank, world = config["mailbox"], get_context().get_world_rank(), get_context().get_world_size()
    value: Any = None
    while True:
        ray.get(mailbox.answer.remote(rank, value, None))
        task = ray.get(mailbox.next_task.remote(rank))
        if task is None:
            return
        try:
            value = ray.get(task[0])(rank, world)
        except Exception as error:
            ray.get(mailbox.answer.remote(rank, None, error))
            raise
