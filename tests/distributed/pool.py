"""Spawned processes that are started once and then run many small jobs as ranks of a gloo group."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Pool:
    """`run(world, function, *arguments)` calls the function on `world` ranks and returns their results in order.

    `function` must live in an importable module; arguments and results must be plain data or numpy arrays.
    """

    def __init__(self, size: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._size, self._jobs = size, 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(self._size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 280) -> list[Any]:
        self._jobs += 1
        store = str(Path(self._folder.name) / f"store{self._jobs}")
        for rank, pipe in enumerate(self._pipes[:world]):
            pipe.send((store, rank, world, function, arguments))
        results, errors = [], []
        for rank, pipe in enumerate(self._pipes[:world]):
            if not pipe.poll(timeout):
                self._start_anew()
                raise TimeoutError(f"rank {rank} of {world} gave no answer to {function.__name__} in {timeout} s")
            result, error = pipe.recv()
            results.append(result)
            errors += [f"rank {rank}:\n{error}"] if error else []
        if errors:
            raise RuntimeError("\n".join(errors))
        return results

    def _start_anew(self) -> None:
        """After a job that was given up: ranks may wait for each other, or for somebody to take their answers."""
        for process in self._processes:
            process.kill()
            process.join()
        self._start()

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)
        self._folder.cleanup()


@contextmanager
def pool(size: int) -> Iterator[Pool]:
    started = Pool(size)
    try:
        yield started
    finally:
        started.close()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while (task := pipe.recv()) is not None:
        store, rank, world, function, arguments = task
        try:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
            pipe.send((function(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
