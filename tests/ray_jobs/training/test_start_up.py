"""What a training worker does not import before it needs it: each of these is a good part of a second of its start."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
LATER = ("matplotlib", "mlflow", "scipy", "sklearn", "torch._dynamo", "torchvision", "ray.tune")


def test_workers_and_jobs_start_without_what_only_their_end_needs() -> None:
    program = f"import sys, ray_jobs.pretrain; print([name for name in {LATER!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=True
    )
    assert done.stdout.strip() == "[]"
