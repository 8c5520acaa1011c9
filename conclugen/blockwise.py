"""Log-sums of exponentials over the rows and columns of a matrix of scores of which only blocks of rows ever exist.

With q_i the queries of this rank, k_j the keys of all ranks and s the inverse temperature, one sweep gives

    row_i = log sum_j exp(s q_i . k_j)        column_j = log sum_i exp(s q_i . k_j)

over the pairs that are compared, i's own column left out: the positive is a term of its own in a loss, and so are its
margin and its gradient. The backward pass computes each block again instead of keeping it. Memory then grows with the
number of keys, not with its square, and since rows and columns share every block, the matrix is multiplied out four
times in all (once forward, three times backward) where two dense cross-entropies need six.
The running sums are those of Milakov & Gimelshein 2018 (arXiv 1805.02867), merged here by log-add-exp.

Shape suffixes: B rows of this rank, N rows of all ranks, P projection, r rows of a block.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from conclugen import compilation, distributed

# Scores of one block where the configuration names no number of rows: 64 MiB in float32, all of a batch of 4,096.
SCORES_PER_BLOCK = 1 << 24
# On a GPU: the share of its memory that a block may take, of what is free at most half; the bytes that a score takes
# with all that is computed of it; and the rows beyond which a block gains nothing.
_MEMORY_SHARE, _BYTES_A_SCORE, _MOST_ROWS = 8, 20, 4096


@dataclass(frozen=True)
class Compared:
    """Which pairs of rows are compared: both valid, not the row itself, and of one group where the row asks for that.

    valid (B,), valid_all (N,): bool. group_all (N,): int64; within_all (N,): bool, the row is compared with its group
    only; both None where all are compared with all. corpus_all: (N,) int64, rows of different corpora are not compared;
    None: they are. offset: position of this rank's first row among all.
    """

    valid: Tensor
    valid_all: Tensor
    offset: int
    group_all: Tensor | None = None
    within_all: Tensor | None = None
    corpus_all: Tensor | None = None

    def local(self, x_N: Tensor) -> Tensor:
        """This rank's part of a value of all rows."""
        return x_N[self.offset : self.offset + len(self.valid)]


@dataclass(frozen=True)
class Sweep:
    """The order of the blocks; it affects memory, speed and rounding only.

    block_rows: rows of a block; None: `default_rows`. tf32: on a GPU, products of float32 in TensorFloat-32. compiled:
    each block's arithmetic by torch.compile.
    """

    block_rows: int | None = None
    tf32: bool = False
    compiled: bool = False


def default_rows(columns: int, device: torch.device) -> int:
    """Rows of a block over so many columns, where the configuration names no number.

    A CPU takes as many as have SCORES_PER_BLOCK scores: the fewer, the more of them stay in its cache. A GPU takes as
    many as its memory lets it, up to 4,096: each block reads and writes the gradients of all keys, which with 64 rows
    over 262,144 columns is most of what it does. Their number is a power of two of the memory that there is; what is
    free counts only where it is little, and is asked for once, so that blocks stay the same from step to step.
    """
    fewest = max(1, SCORES_PER_BLOCK // columns)
    if _counted_memory is not None:
        return _rows_in(columns, fewest, _counted_memory, _counted_memory)
    return fewest if device.type != "cuda" else _rows_on(columns, fewest, device)


@functools.lru_cache(maxsize=256)
def _rows_on(columns: int, fewest: int, device: torch.device) -> int:
    if not torch.cuda.is_available():  # a pretended one, by which a step is looked at where there is none
        return fewest
    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch hands it out again
    return _rows_in(columns, fewest, free + kept, total)


def _rows_in(columns: int, fewest: int, free: int, total: int) -> int:
    rows = min(total // _MEMORY_SHARE, free // 2) // (_BYTES_A_SCORE * columns)
    return max(fewest, min(_MOST_ROWS, 1 << max(0, rows.bit_length() - 1)))


_counted_memory: int | None = None


@contextmanager
def counted_as_on_gpu(memory: int) -> Iterator[None]:
    """Within it blocks are those of a GPU with so many bytes, whatever the device: to count a step without one."""
    global _counted_memory
    before, _counted_memory = _counted_memory, memory
    try:
        yield
    finally:
        _counted_memory = before


def log_sums(
    query_BP: Tensor, key_NP: Tensor, scale: Tensor | float, compared: Compared, sweep: Sweep | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column log-sums of this rank's rows, (B,) each, over all ranks' rows; differentiable in all but
    `compared`.

    A row without any candidate gives the lowest finite number and a zero gradient, provided that no gradient arrives
    for it.
    """
    row_B, column_N = own_log_sums(query_BP, key_NP, scale, compared, sweep)
    return row_B, merge_columns([column_N])[0]


def own_log_sums(
    query_BP: Tensor, key_NP: Tensor, scale: Tensor | float, compared: Compared, sweep: Sweep | None = None
) -> tuple[Tensor, Tensor]:
    """`log_sums` of what this rank alone has seen: rows (B,) over all keys, columns (N,) over its own queries."""
    scale = scale if isinstance(scale, Tensor) else query_BP.new_full((), scale)
    row_B, column_N = _LogSums.apply(query_BP, key_NP, scale, compared, sweep or Sweep(), True)
    return row_B, column_N


def merge_columns(columns: Sequence[Tensor]) -> list[Tensor]:
    """Column log-sums (N,) over each rank's own queries to those (B,) of this rank's columns over all queries; those of
    several matrices travel together."""
    world = distributed.world_size()
    if world == 1:
        return list(columns)
    # What belongs to a column comes together at the rank that owns it.
    column_WBM = distributed.exchange(torch.stack(list(columns), dim=1)).unflatten(0, (world, -1))
    return list(column_WBM.logsumexp(0).unbind(1))


def row_log_sums(
    query_BP: Tensor, key_NP: Tensor, scale: float, compared: Compared, sweep: Sweep | None = None
) -> Tensor:
    """The row log-sums alone, (B,), for a matrix whose columns are its rows (a view with itself)."""
    row_B, _ = _LogSums.apply(query_BP, key_NP, query_BP.new_full((), scale), compared, sweep or Sweep(), False)
    return row_B


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact in float64 as well: torch's own threshold of 20 leaves 2e-9."""
    return functional.softplus(x, threshold=40.0)


def block_scores(
    query_rP: Tensor,
    key_NP: Tensor,
    scale: Tensor,
    own_r: Tensor,
    valid_r: Tensor,
    valid_N: Tensor,
    group_r: Tensor | None = None,
    group_N: Tensor | None = None,
    within_r: Tensor | None = None,
    within_N: Tensor | None = None,
    corpus_r: Tensor | None = None,
    corpus_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores (r, N) of one block as its rows and as the columns compare them; the lowest finite number where they do
    not."""
    scores_rN = (query_rP @ key_NP.T) * scale
    # The lowest finite value rather than -inf: a row without any candidate keeps a finite sum, and a zero gradient.
    lowest = torch.finfo(scores_rN.dtype).min
    scores_rN = scores_rN.masked_fill_(~(valid_r.unsqueeze(1) & valid_N), lowest)
    if corpus_r is not None and corpus_N is not None:
        scores_rN = scores_rN.masked_fill_(corpus_r.unsqueeze(1) != corpus_N, lowest)
    scores_rN = scores_rN.scatter_(1, own_r.unsqueeze(1), lowest)
    if group_r is None or group_N is None or within_r is None or within_N is None:
        return scores_rN, scores_rN
    other_rN = group_r.unsqueeze(1) != group_N
    by_row = scores_rN.masked_fill(other_rN & within_r.unsqueeze(1), lowest)
    return by_row, scores_rN.masked_fill_(other_rN & within_N, lowest)


def block_log_sums(columns: bool, column_N: Tensor, *block: Tensor | None) -> tuple[Tensor, Tensor]:
    """Row log-sums (r,) of a block, and `column_N` with the block's part added."""
    by_row, by_column = block_scores(*block)  # type: ignore[arg-type]
    return by_row.logsumexp(1), torch.logaddexp(column_N, by_column.logsumexp(0)) if columns else column_N


def block_gradients(
    columns: bool,
    scaled: bool,
    row_r: Tensor,
    column_N: Tensor,
    row_gradient_r: Tensor,
    column_gradient_N: Tensor,
    *block: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a block gives to the gradients of its queries (r, P), of the keys (N, P) and of the scale (0 unless
    `scaled`)."""
    query_rP, key_NP, scale = block[:3]
    assert query_rP is not None and key_NP is not None and scale is not None
    by_row, by_column = block_scores(*block)  # type: ignore[arg-type]
    weight_rN = (by_row - row_r.unsqueeze(1)).exp() * row_gradient_r.unsqueeze(1)
    if columns:
        weight_rN = weight_rN + (by_column - column_N).exp() * column_gradient_N
    scale_gradient = torch.zeros_like(scale)
    if scaled:
        # The score itself is in the direction in which the pair is compared; in neither, the weight is exactly 0.
        scores_rN = torch.where(weight_rN == 0, 0, torch.maximum(by_row, by_column))
        scale_gradient = (weight_rN * scores_rN).sum() / scale
    return (weight_rN @ key_NP) * scale, weight_rN.T @ (query_rP * scale), scale_gradient


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BP: Tensor, key_NP: Tensor, scale: Tensor, compared: Compared, sweep: Sweep, columns: bool
    ) -> tuple[Tensor, Tensor]:
        row_B = query_BP.new_empty(len(query_BP))
        column_N = query_BP.new_full((len(key_NP),), torch.finfo(query_BP.dtype).min)
        compute = compilation.compiled(block_log_sums) if sweep.compiled else block_log_sums
        with _tf32(sweep.tf32):
            for part, block in _blocks(query_BP, key_NP, scale, compared, sweep):
                row_B[part], column_N = compute(columns, column_N, *block)
        ctx.save_for_backward(query_BP, key_NP, scale, row_B, column_N)
        ctx.rest = compared, sweep, columns
        return row_B, column_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BP, key_NP, scale, row_B, column_N = ctx.saved_tensors
        compared, sweep, columns = ctx.rest
        row_gradient_B, column_gradient_N = gradients
        query_gradient_BP, key_gradient_NP = torch.empty_like(query_BP), torch.zeros_like(key_NP)
        scale_gradient = torch.zeros_like(scale)
        compute = compilation.compiled(block_gradients) if sweep.compiled else block_gradients
        scaled = ctx.needs_input_grad[2]
        with _tf32(sweep.tf32):
            for part, block in _blocks(query_BP, key_NP, scale, compared, sweep):
                of_query, of_keys, of_scale = compute(
                    columns, scaled, row_B[part], column_N, row_gradient_B[part], column_gradient_N, *block
                )
                query_gradient_BP[part] = of_query
                key_gradient_NP += of_keys
                scale_gradient += of_scale
        return query_gradient_BP, key_gradient_NP, scale_gradient, None, None, None


def _blocks(
    query_BP: Tensor, key_NP: Tensor, scale: Tensor, compared: Compared, sweep: Sweep
) -> Iterator[tuple[slice, tuple[Tensor | None, ...]]]:
    """For each block its rows and the arguments of `block_scores`."""
    group_N, within_N = compared.group_all, compared.within_all
    own_B = torch.arange(len(query_BP), device=query_BP.device) + compared.offset
    rows = sweep.block_rows or default_rows(len(key_NP), key_NP.device)
    for start in range(0, len(query_BP), rows):
        part = slice(start, start + rows)
        block = (query_BP[part], key_NP, scale, own_B[part], compared.valid[part], compared.valid_all)
        own: tuple[Tensor | None, ...] = ()
        if group_N is not None and within_N is not None:
            own = compared.local(group_N)[part], group_N, compared.local(within_N)[part], within_N
        if compared.corpus_all is not None:
            own = (*(own or (None,) * 4), compared.local(compared.corpus_all)[part], compared.corpus_all)
        yield part, (*block, *own)


@contextmanager
def _tf32(enabled: bool) -> Iterator[None]:
    """Products of float32 on a GPU in TensorFloat-32 (10 bits of mantissa, float32 sums) inside the block."""
    if not enabled:
        yield
        return
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    # torch has two switches for this, and reading the older raises where they do not agree, as where it is set by the
    # newer alone. Inductor's search for the fastest kernel reads it, so here both say the same.
    older: bool | None = None
    with suppress(RuntimeError):  # whoever runs us has used the newer one
        older = switch.allow_tf32
    if older and before == "tf32":  # also by torch.set_float32_matmul_precision("medium"), which would be lost
        yield
        return
    switch.allow_tf32 = True
    try:
        yield
    finally:
        switch.allow_tf32 = bool(older)
        switch.fp32_precision = before
