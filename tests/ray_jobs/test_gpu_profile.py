"""What training on GPUs means where nothing else is said, and what is said about it."""

from pathlib import Path

import pytest

from ray_jobs.pretrain import COMMAND
from ray_jobs.run_config import PretrainJob, gpu_lines


def job_of(*options: str) -> PretrainJob:
    job = COMMAND.parse(["--data", "shards", "--run", "test", *options])
    assert isinstance(job, PretrainJob)
    return job


@pytest.mark.parametrize(
    ("options", "precision", "compiled"),
    [
        ((), "float32", False),
        (("--gpu",), "bfloat16", True),
        (("--gpu", "--pretrain.precision", "float32"), "float32", True),
        (("--gpu", "--no-pretrain.compile"), "bfloat16", False),
        (("--no-gpu",), "float32", False),
    ],
)
def test_on_gpus_steps_are_compiled_and_in_bfloat16_unless_said_otherwise(
    options: tuple[str, ...], precision: str, compiled: bool
) -> None:
    config = job_of(*options).pretrain
    assert (config.precision, config.compile) == (precision, compiled)


def test_a_file_counts_as_much_as_options(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("run: {gpu: true}\npretrain: {compile: false, tasks: {contrastive: {weight: 2.0}}}\n")
    config = job_of("--config", str(file)).pretrain
    assert (config.precision, config.compile) == ("bfloat16", False)
    assert config.tasks.contrastive.weight == 2.0


def test_how_it_computes_is_told_and_slow_precision_warned_of() -> None:
    assert gpu_lines(job_of()) == []
    assert gpu_lines(job_of("--gpu")) == ["on GPUs: bfloat16, compiled (pretrain.precision, pretrain.compile)"]
    first, warning = gpu_lines(job_of("--gpu", "--pretrain.precision", "float32", "--no-pretrain.compile"))
    assert first.startswith("on GPUs: float32, eager")
    assert warning.startswith("warning: a step in float32 takes at least 4.8 times as long as in bfloat16")
    assert "pretrain.precision=bfloat16 under a new run.name" in warning
