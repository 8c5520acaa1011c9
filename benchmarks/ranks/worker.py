"""One rank of one case: takes a number of steps on a line, answers with what they cost.

Run as a file, with the code to measure first on the path, so that an older state of the project can run beside this
one: of `conclugen` it uses what both have. On its command line is one JSON object; see `command.Case`.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

GROUP = 8  # rows of a speaker
WARM_UP = 9  # steps, which fill the queue of clustering
_STATISTICS = Path("/sys/class/net")


def batch(widths: dict[str, int], rows: int, number: int, rank: int) -> Any:
    """Standard normal features, all present: others at every step, for those of a batch that is learned by heart have
    scores whose exponentials underflow."""
    generator = torch.Generator().manual_seed(1000 * number + rank)
    row = torch.arange(rank * rows, (rank + 1) * rows)
    return SimpleNamespace(
        features={m: torch.randn(rows, d, generator=generator) for m, d in widths.items()},
        present={m: torch.ones(rows, dtype=torch.bool) for m in widths},
        row=row,
        group=row // GROUP,
        labels={},
        corpus=None,
    )


def loop(case: dict[str, Any]) -> Any:
    """What has a `step`."""
    from conclugen import Pretrainer, presets

    model = dict(zip(("representation_dim", "projection_dim", "reconstruction_hidden_dim"), case["sizes"], strict=True))
    tasks, widths = {"clustering": {"start_epoch": 0}, **case["tasks"]}, case["widths"]
    rows = case["rows"] * case["world"]
    options = {"modalities": tuple(widths), "global_batch": rows, "model": model, "tasks": tasks}
    config = presets.build("conclugen", "improved", **options, **case["options"])
    if case["peer"]:
        from benchmarks.ranks.peer import Loop

        torch.manual_seed(0)  # noqa: TID251 - the peer draws as everybody does
        return Loop(config, widths)
    return Pretrainer(config, widths, 10**6, {m: ([0.0] * d, [1.0] * d) for m, d in widths.items()})


def sent(interface: str) -> int:
    """Bytes that have left by a network interface; 0 where none is named."""
    return int((_STATISTICS / interface / "statistics" / "tx_bytes").read_text()) if interface else 0


def processor_s() -> float:
    """User and system time of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(trained: Any, case: dict[str, Any], first: int, steps: int) -> dict[str, float]:
    """Sums over steps; making a batch is not part of one."""
    found = {"cpu": 0.0, "wall": 0.0, "bytes": 0.0}
    for number in range(first, first + steps):
        rows = batch(case["widths"], case["rows"], number, case["rank"])
        dist.barrier()
        before = processor_s(), time.perf_counter(), sent(case["interface"])
        trained.step(rows)
        after = processor_s(), time.perf_counter(), sent(case["interface"])
        for name, old, new in zip(found, before, after, strict=True):
            found[name] += new - old
    return found


def main() -> None:
    case = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    dist.init_process_group("gloo", init_method=case["meet"], rank=case["rank"], world_size=case["world"])
    trained, number = loop(case), WARM_UP
    measure(trained, case, 0, WARM_UP)
    print("true", file=answers, flush=True)
    for line in sys.stdin:
        steps = int(line)
        print(json.dumps(measure(trained, case, number, steps)), file=answers, flush=True)
        number += steps
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
