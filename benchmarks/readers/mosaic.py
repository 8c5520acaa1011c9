"""MosaicML Streaming's side of `python -m benchmarks.readers`; run by a Python that has `mosaicml-streaming` and not this package.

    python mosaic.py write MEMBERS OUT video:float32:4096,audio:float32:1024,text:float32:768
    python mosaic.py read FOLDER BATCH SECONDS WORKERS MOST

MEMBERS holds `<key>.<column>.npy` files; `read` prints one line of JSON: samples a second after the first batch (and a
quarter of the time, where MOST samples are not the limit), seconds to the first batch.
"""  # noqa: E501

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np


def write(members: str, out: str, columns: str) -> None:
    """Samples in the order of their keys; the files are removed."""
    from streaming import MDSWriter  # type: ignore[import-not-found]

    names = {}
    for column in columns.split(","):
        name, dtype, width = column.split(":")
        names[name] = f"ndarray:{dtype}:{width}"
    first = next(iter(names))
    keys = sorted(path.name.removesuffix(f".{first}.npy") for path in Path(members).glob(f"*.{first}.npy"))
    with MDSWriter(out=out, columns=names) as writer:
        for key in keys:
            writer.write({name: np.load(f"{members}/{key}.{name}.npy", allow_pickle=False) for name in names})
    shutil.rmtree(members)


def read(folder: str, batch: int, seconds: float, workers: int, most: int) -> dict[str, float]:
    """A shuffled StreamingDataset in torch's DataLoader, as its documentation shows, epoch after epoch."""
    import torch
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=batch)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, num_workers=workers, drop_last=True)
    begin = since = time.perf_counter()
    start = 0.0
    settle = 0.0 if most else seconds / 4
    total = counted = 0
    while True:
        for columns in loader:
            size, now = len(next(iter(columns.values()))), time.perf_counter()
            total += size
            if not start:
                start, since = now - begin, now
                continue
            counted += size
            if settle and now - begin - start > settle:
                settle, counted, since = 0.0, 0, now
            elif not settle and (now - since > seconds or (most and total >= most)):
                return {"samples": counted / (now - since), "start": start}
        if most:
            return {"samples": counted / (time.perf_counter() - since), "start": start}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:5])
    else:
        result = read(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
        print(json.dumps(result), flush=True)
