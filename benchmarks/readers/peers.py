"""Other readers of the same samples, each as its own documentation uses it, decoded, batched, as torch tensors."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.readers.methods import WIDTHS
from benchmarks.readers.report import Measured

_PASSES = 1000  # over the shards; the measuring stops before
_RAY_PASSES = 8  # bounds the tasks that are planned beforehand; the measuring may end with them
MOSAIC_SCRIPT = Path(__file__).with_name("mosaic.py")


class PeerMethods:
    """Methods yield sizes of batches; no checksums, no order of an epoch. JSON members are left out where the library
    allows it, which is faster than to decode them."""

    def __init__(self, paths: list[str], batch: int, loader_workers: int) -> None:
        self.paths, self.batch, self.loader_workers = paths, batch, loader_workers
        os.environ["WDS_SECURE"] = "1"  # `webdataset` then unpickles nothing

    def _pipeline(self, batched: bool) -> object:
        import webdataset

        pipeline = (
            webdataset.WebDataset(
                self.paths * _PASSES,
                shardshuffle=False,
                empty_check=False,
                select_files=lambda name: name.endswith(".npy"),
                workersplitter=webdataset.split_by_worker,
            )
            .decode()
            .to_tuple(*(f"{name}.npy" for name in WIDTHS))
        )
        return pipeline.batched(self.batch, partial=False) if batched else pipeline

    def webdataset(self) -> Iterator[int]:
        """The `webdataset` package in one process."""
        import torch

        for columns in self._pipeline(batched=True):  # type: ignore[attr-defined]
            tensors = [torch.as_tensor(array) for array in columns]
            yield len(tensors[0])

    def webdataset_loader(self) -> Iterator[int]:
        """The same in a DataLoader with worker processes, which make the batches."""
        import torch
        import webdataset

        loader = webdataset.WebLoader(self._pipeline(batched=True), batch_size=None, num_workers=self.loader_workers)
        for columns in loader:
            tensors = [torch.as_tensor(array) for array in columns]
            yield len(tensors[0])

    def read_webdataset(self) -> Iterator[int]:
        """`ray.data.read_webdataset` and `iter_batches`, as a Train worker does it by itself: as fast as to be handed a
        part by the trainer's `datasets=`, and it can be stopped anywhere."""
        import ray
        import torch

        dataset = ray.data.read_webdataset(self.paths * _RAY_PASSES, suffixes=[f"{name}.npy" for name in WIDTHS])
        for columns in dataset.iter_batches(batch_size=self.batch, drop_last=True, batch_format="numpy"):
            tensors = [torch.as_tensor(columns[f"{name}.npy"]) for name in WIDTHS]
            yield len(tensors[0])


class MosaicStreaming:
    """MosaicML Streaming on the same samples in its own format, run by another Python, for its requirements exclude
    this package's: `python -m venv ENV && ENV/bin/pip install mosaicml-streaming`, then `--peer-python ENV/bin/python`.
    """

    def __init__(self, python: str, shards: list[str], folder: Path, dtype: str, batch: int) -> None:
        self._python, self._batch = python, batch
        self.folder = folder / "mds"
        members = folder / "members"
        members.mkdir()
        for path in shards:
            with tarfile.open(path) as tar:
                tar.extractall(members, filter="data")
        widths = ",".join(f"{name}:{dtype}:{width}" for name, width in WIDTHS.items())
        self._run("write", str(members), str(self.folder), widths)

    @property
    def paths(self) -> list[str]:
        return [str(path) for path in self.folder.iterdir()]

    def read(self, seconds: float, workers: int, most: int | None) -> Measured:
        """One measurement, by the rules of `bench_report.measure`; start-up is that of the loader, not of Python."""
        result = self._run("read", str(self.folder), str(self._batch), str(seconds), str(workers), str(most or 0))
        return Measured(**json.loads(result.splitlines()[-1]))

    def _run(self, *arguments: str) -> str:
        command = [self._python, str(MOSAIC_SCRIPT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's own choice
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ValueError(
                f"--peer-python {self._python}: {lines[-1] if lines else 'failed'}; "
                "install mosaicml-streaming in its environment"
            )
        return done.stdout
