"""One encoder of one state of the project: takes a number of clips on a line, answers with the CPU seconds of each.

Run as a file, with the code to measure first on the path. Its arguments: [name of the encoder, seconds of a clip].
"""

import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np


def clip(takes: Any, seconds: float, number: int) -> Any:
    """What an encoder takes of a clip drawn at random: frames, sound at a rate, a spectrogram, or a sentence."""
    rng = np.random.default_rng(number)
    if takes.kind == "text":
        return " ".join(rng.choice(["she", "said", "that", "nobody", "had", "told", "them", "about", "it"], 12))
    if takes.kind == "frames":
        return rng.integers(0, 256, (max(1, int(seconds * takes.rate)), *takes.size, 3), dtype=np.uint8)
    if takes.kind == "mel":
        return rng.random((128, int(seconds * 100)), np.float32)
    t = np.arange(int(seconds * takes.rate)) / takes.rate
    return (np.sin(2 * np.pi * (120 + number) * t) * rng.uniform(0.2, 1, len(t))).astype(np.float32)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    name, seconds = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    try:
        from conclugen import encoders
    except ImportError:  # the name until 23c8ff1
        from conclugen import backbones as encoders  # type: ignore[no-redef]
    begin = time.process_time()
    encoder = encoders.create(name)
    found = {"width": encoder.info.width, "starts": time.process_time() - begin}
    encoder.encode([clip(encoder.info.takes, seconds, 0)])
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found), file=answers, flush=True)
    number = 1
    for line in sys.stdin:
        spent = []
        for _ in range(int(line)):
            item = clip(encoder.info.takes, seconds, number)
            before = time.process_time()
            encoder.encode([item])
            spent.append(time.process_time() - before)
            number += 1
        print(json.dumps(spent), file=answers, flush=True)


if __name__ == "__main__":
    main()
