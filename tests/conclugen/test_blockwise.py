"""Losses from blocks of similarities against the whole matrix: values, gradients, memory."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

from conclugen import blockwise, presets
from conclugen.blockwise import Compared, Sweep, log_sums
from conclugen.latents import Latents, Presence
from conclugen.tasks.contrastive import Contrastive, ContrastiveConfig, ring
from conclugen.tasks.simclr import Simclr, SimclrConfig
from tests.conclugen import dense_losses

N, P = 37, 6
BLOCKS = [1, 5, 36, None]


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def presence(pattern: str, grouped: bool, modalities: int) -> Presence:
    g = torch.Generator().manual_seed(3)
    present = torch.rand(modalities, N, generator=g) > {"full": -1.0, "some": 0.4, "two": 2.0, "none": 2.0}[pattern]
    if pattern == "two":
        present[:, [5, 20]] = True
    # A group too small to be compared within, two large ones, and rows without a group.
    group = torch.randint(-1, 3, (N,), generator=g).where(torch.arange(N) > 3, 7) if grouped else None
    return Presence(present, present, torch.arange(N), group, 0)


@pytest.mark.parametrize("block_rows", BLOCKS)
@pytest.mark.parametrize("pattern", ["full", "some", "two", "none"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("modalities", [2, 3])
def test_contrastive_is_the_dense_one(modalities: int, grouped: bool, pattern: str, block_rows: int | None) -> None:
    config = ContrastiveConfig(
        margin=0.15,
        temperature=0.2,
        learn_temperature=True,
        negatives="same_group" if grouped else "all",
        block_rows=block_rows,
    )
    there = presence(pattern, grouped, modalities)
    module = Contrastive(config).double()
    assert module.log_scale is not None
    z, same_z = (randn(modalities, N, P).requires_grad_() for _ in range(2))
    log_scale = module.log_scale.detach().clone().requires_grad_()
    found = module(Latents(("video", "audio", "text")[:modalities], {}, {}, z, there, 0, 0))
    expected = dense_losses.contrastive(same_z, there.all, there.all_group, 0.15, log_scale.exp(), ring(modalities))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    found.backward()
    if pattern == "none":
        assert z.grad is not None and float(z.grad.abs().sum()) == 0 and float(found.detach()) == 0
        return
    expected.backward()
    torch.testing.assert_close(z.grad, same_z.grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(module.log_scale.grad, log_scale.grad, atol=1e-12, rtol=0)
    assert log_scale.grad is not None and abs(float(log_scale.grad)) > 1e-3


@pytest.mark.parametrize("block_rows", BLOCKS)
@pytest.mark.parametrize("pattern", ["full", "some"])
def test_nt_xent_is_the_dense_one(pattern: str, block_rows: int | None) -> None:
    valid = presence(pattern, False, 1).local[0]
    z, same_z = (randn(2, N, P).requires_grad_() for _ in range(2))
    there = Presence(valid.repeat(2, 1), valid.repeat(2, 1), torch.arange(len(valid)), None, 0)
    latents = Latents(("a", "b"), {}, {}, z, there, 0, 0)
    found = Simclr(SimclrConfig(temperature=0.1, block_rows=block_rows))(latents)
    expected = dense_losses.nt_xent(same_z, valid, 0.1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    found.backward()
    expected.backward()
    torch.testing.assert_close(z.grad, same_z.grad, atol=1e-12, rtol=0)


def test_derivatives_by_differences() -> None:
    valid = presence("some", False, 1).local[0]

    def both(query: Tensor, key: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        row, column = log_sums(query, key, scale, Compared(valid, valid, 0), Sweep(10))
        return row[valid], column[valid]

    inputs = [x.requires_grad_() for x in (randn(N, 3), randn(N, 3, seed=2), torch.tensor(1.7).double())]
    assert torch.autograd.gradcheck(both, inputs)


def test_temperatures_as_low_as_allowed_neither_overflow_nor_vanish() -> None:
    """At 1/100 the terms of one row differ by up to exp(200), far beyond float32."""
    z = torch.nn.functional.normalize(randn(2, N, P).float(), dim=2).requires_grad_()
    everywhere = torch.ones(2, N, dtype=torch.bool)
    there = Presence(everywhere, everywhere, torch.arange(N), None, 0)
    loss = Contrastive(ContrastiveConfig(temperature=0.01, block_rows=8))(Latents(("a", "b"), {}, {}, z, there, 0, 0))
    expected = dense_losses.contrastive(
        z.detach().double(), everywhere, None, 0.001, torch.tensor(100.0).double(), ring(2)
    )
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())


def test_rows_of_a_block_are_chosen_by_the_size_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    compute = blockwise.block_scores
    monkeypatch.setattr(blockwise, "SCORES_PER_BLOCK", 400)
    monkeypatch.setattr(blockwise, "block_scores", lambda q, *rest: seen.append(len(q)) or compute(q, *rest))
    z, valid = randn(40, P), torch.ones(40, dtype=torch.bool)
    log_sums(z, z, 1.0, Compared(valid, valid, 0))
    assert seen == [10, 10, 10, 10]
    seen.clear()
    log_sums(z, z, 1.0, Compared(valid, valid, 0), Sweep(30))
    assert seen == [30, 10]


@pytest.mark.parametrize(
    ("columns", "free", "total", "rows"),
    [
        (4096, 70, 80, 4096),
        (32_768, 70, 80, 4096),  # more gains nothing
        (262_144, 70, 80, 1024),  # 5.4 GB of an eighth of 80
        (262_144, 4, 80, 256),  # 1.3 GB of half of 4
        (262_144, 20, 24, 512),
        (1 << 20, 70, 80, 256),
        (1 << 20, 0, 80, 16),  # the 64 MiB that a CPU takes
    ],
)
def test_rows_of_a_block_on_a_gpu_follow_its_memory(columns: int, free: int, total: int, rows: int) -> None:
    fewest = blockwise.SCORES_PER_BLOCK // columns
    assert blockwise._rows_in(columns, fewest, free * 10**9, total * 10**9) == rows
    # As much again may be taken by others before blocks change, but for where they would change anyway.
    assert rows == fewest or rows * columns * 20 <= min(total / 8, free / 2) * 10**9


@pytest.mark.parametrize("rows", [1, 2, 16, 64])
def test_what_is_computed_does_not_depend_on_the_device_that_chooses_blocks(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = presence("some", False, 1).local[0]

    def computed() -> list[Tensor]:
        query, key = (randn(N, P, seed=seed).requires_grad_() for seed in (1, 2))
        sums = [x[valid] for x in log_sums(query, key, 2.0, Compared(valid, valid, 0))]
        return [*sums, *torch.autograd.grad(torch.cat(sums).square().sum(), (query, key))]

    whole = computed()
    seen, compute = [], blockwise.block_scores
    monkeypatch.setattr(blockwise, "SCORES_PER_BLOCK", N)
    monkeypatch.setattr(blockwise, "block_scores", lambda q, *rest: seen.append(len(q)) or compute(q, *rest))
    with blockwise.counted_as_on_gpu(8 * 20 * N * (2 * rows - 1)):  # not enough for twice as many
        for found, expected in zip(computed(), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert max(seen) == min(rows, N)
    seen.clear()
    computed()
    assert max(seen) == 1, "the CPU's own again"


def test_block_rows_is_no_part_of_what_is_learned() -> None:
    config = presets.build("contrast_only")
    other = config.changed({"tasks": {"contrastive": {"block_rows": 64}}})
    assert config.identity_digest() == other.identity_digest() and config.differences(other) == {}
    with pytest.raises(ValueError, match=r"tasks\.contrastive\.block_rows: found 0"):
        ContrastiveConfig(block_rows=0)
    with pytest.raises(ValueError, match=r"tasks\.simclr\.block_rows: found -1"):
        SimclrConfig(block_rows=-1)


def test_tensor_float_is_asked_for_inside_the_sweeps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does shows on a GPU; that it is asked for, forward and backward, and taken back, shows here."""
    backend, seen = torch.backends.cuda.matmul, []
    compute = blockwise.block_scores
    monkeypatch.setattr(blockwise, "block_scores", lambda *a: seen.append(backend.fp32_precision) or compute(*a))
    z, valid = randn(8, P).requires_grad_(), torch.ones(8, dtype=torch.bool)
    before = backend.fp32_precision
    for tf32 in (False, True):
        row, _ = log_sums(z, z, 1.0, Compared(valid, valid, 0), Sweep(tf32=tf32))
        row.sum().backward()
    assert seen == [before, before, "tf32", "tf32"] and backend.fp32_precision == before


def test_compilers_may_ask_within_the_sweeps_how_products_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor reads torch's older switch, which raises where only the newer one has been set."""
    seen, compute = [], blockwise.block_scores

    def asked(*arguments: Any) -> Any:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()))
        return compute(*arguments)

    monkeypatch.setattr(blockwise, "block_scores", asked)
    z, valid = randn(8, P).requires_grad_(), torch.ones(8, dtype=torch.bool)
    before = torch.get_float32_matmul_precision()
    for _ in range(2):
        row, _ = log_sums(z, z, 1.0, Compared(valid, valid, 0), Sweep(tf32=True))
        row.sum().backward()
        assert torch.get_float32_matmul_precision() == before and not torch.backends.cuda.matmul.allow_tf32
    assert seen == [(True, "high")] * 4


_SWITCHES = """
import json, os, sys, torch
from conclugen.blockwise import _tf32

switch = torch.backends.cuda.matmul

def read():
    found = [switch.fp32_precision]
    for ask in (lambda: switch.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(ask())
        except RuntimeError:
            found.append("refused")
    return found

for before in json.loads(sys.argv[1]):
    if os.fork() == 0:  # each from torch's own settings
        exec(before)
        first = read()
        try:
            with _tf32(True):
                with _tf32(True):
                    pass
                inside = read()
                raise KeyError
        except KeyError:
            pass
        print(json.dumps([first, inside, read()]), flush=True)
        os._exit(0)
    os.wait()
"""
_SETTINGS = [
    "pass",
    "switch.allow_tf32 = True",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "switch.fp32_precision = 'ieee'",
    "switch.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'tf32'",
]


def test_whatever_was_set_the_sweeps_are_in_tensor_float_32_compilers_may_ask_and_it_is_put_back() -> None:
    """Also where something is raised within."""
    done = subprocess.run([sys.executable, "-c", _SWITCHES, json.dumps(_SETTINGS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(_SETTINGS)
    for setting, (before, inside, after) in zip(_SETTINGS, found, strict=True):
        assert inside == ["tf32", True, "medium" if "medium" in setting else "high"], setting
        assert after == before, setting
    assert [before[0] for before, _, _ in found] == ["none", "tf32", "tf32", "tf32", "ieee", "tf32", "tf32"]


def peak_bytes(sizes: list[int]) -> list[int]:
    """Resident memory that one contrastive loss and its gradient take at their peak, by rows, in a fresh process."""
    code = """
        import sys, torch
        from pathlib import Path
        from conclugen.latents import Latents, Presence
        from conclugen.tasks.contrastive import Contrastive, ContrastiveConfig
        torch.set_num_threads(1)
        def resident(field):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
        for n in [64, *map(int, sys.argv[1:])]:
            z = torch.rand(2, n, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
            there = torch.ones(2, n, dtype=torch.bool)
            latents = Latents(("a", "b"), {}, {}, z, Presence(there, there, torch.arange(n), None, 0), 0, 0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
            before = resident("VmRSS:")
            Contrastive(ContrastiveConfig(block_rows=256))(latents).backward()
            print(resident("VmHWM:") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, sizes)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back and not counted
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [int(line) for line in done.stdout.split()][1:]


def assert_linear(sizes: list[int]) -> None:
    peaks = peak_bytes(sizes)
    print(dict(zip(sizes, peaks, strict=True)))
    for less, more in itertools.pairwise(peaks):
        # Twice the rows: twice the memory, where the whole matrix would take four times as much.
        assert 0 < more < 2.6 * less, f"{sizes}: {peaks}"
    assert peaks[-1] < sizes[-1] ** 2 * 4 / 4, "a quarter of the matrix"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_grows_as_the_batch() -> None:
    assert_linear([4096, 8192])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "sizes",
    [[8192, 16384], pytest.param([16384, 32768, 65536, 131072], marks=pytest.mark.campaign)],
    ids=["16k", "128k"],
)
def test_memory_of_large_batches(sizes: list[int]) -> None:
    assert_linear(sizes)
