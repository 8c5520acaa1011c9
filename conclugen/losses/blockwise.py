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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from conclugen import distributed
from conclugen.fields import require

# Scores of one block where the configuration names no number of rows: 64 MiB in float32, all of a batch of 4,096.
SCORES_PER_BLOCK = 1 << 24


@dataclass(frozen=True)
class Compared:
    """Which pairs of rows are compared: both valid, not the row itself, and of one group where the row asks for that.

    valid (B,), valid_all (N,): bool. group_all (N,): int64; within_all (N,): bool, the row is compared with its group
    only; both None where all are compared with all. offset: position of this rank's first row among all.
    """

    valid: Tensor
    valid_all: Tensor
    offset: int
    group_all: Tensor | None = None
    within_all: Tensor | None = None

    def local(self, x_N: Tensor) -> Tensor:
        """This rank's part of a value of all rows."""
        return x_N[self.offset : self.offset + len(self.valid)]


def check_block_rows(field: str, value: int | None) -> None:
    require(value is None or value >= 1, field, value, "None or 1 or more rows")


def log_sums(
    query_BP: Tensor,
    key_NP: Tensor,
    scale: Tensor | float,
    compared: Compared,
    *,
    block_rows: int | None = None,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Row and column log-sums of this rank's rows, (B,) each, over all ranks' rows; differentiable in all but
    `compared`.

    block_rows: rows of a block, by default as many as hold SCORES_PER_BLOCK scores; it decides over memory and
    rounding alone. tf32: on a GPU, products of float32 in TensorFloat-32. A row without any candidate gives the lowest
    finite number and a zero gradient, provided that no gradient arrives for it.
    """
    rows = block_rows or max(1, SCORES_PER_BLOCK // len(key_NP))
    scale = scale if isinstance(scale, Tensor) else query_BP.new_full((), scale)
    row_B, column_N = _LogSums.apply(query_BP, key_NP, scale, compared, rows, tf32)
    # Each rank has seen its own queries only; what belongs to a column comes together at the rank that owns it.
    column_WB = distributed.exchange(column_N).view(-1, len(query_BP))
    return row_B, column_WB.logsumexp(0) if len(column_WB) > 1 else column_N


def row_log_sums(
    query_BP: Tensor,
    key_NP: Tensor,
    scale: float,
    compared: Compared,
    *,
    block_rows: int | None = None,
    tf32: bool = False,
) -> Tensor:
    """The row log-sums alone, (B,), for a matrix whose columns are its rows (a view with itself)."""
    rows = block_rows or max(1, SCORES_PER_BLOCK // len(key_NP))
    row_B, _ = _LogSums.apply(query_BP, key_NP, query_BP.new_full((), scale), compared, rows, tf32, False)
    return row_B


def surplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact in float64 as well: torch's own threshold of 20 leaves 2e-9."""
    return functional.softplus(x, threshold=40.0)


def block_scores(
    query_rP: Tensor, key_NP: Tensor, scale: Tensor, own_r: Tensor, valid_r: Tensor, valid_N: Tensor
) -> Tensor:
    """Scores (r, N) of one block; the lowest finite number where a pair is not compared."""
    scores_rN = (query_rP @ key_NP.T) * scale
    lowest = torch.finfo(scores_rN.dtype).min
    # The lowest finite value rather than -inf: a row without any candidate keeps a finite sum, and a zero gradient.
    scores_rN = scores_rN.masked_fill_(~(valid_r.unsqueeze(1) & valid_N), lowest)
    return scores_rN.scatter_(1, own_r.unsqueeze(1), lowest)


def within_group(scores_rN: Tensor, same_rN: Tensor, within: Tensor) -> Tensor:
    """A copy with the lowest finite number where `within` (r, 1) or (N,) asks for one group and it is another."""
    return scores_rN.masked_fill(~same_rN & within, torch.finfo(scores_rN.dtype).min)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BP: Tensor,
        key_NP: Tensor,
        scale: Tensor,
        compared: Compared,
        block_rows: int,
        tf32: bool,
        columns: bool = True,
    ) -> tuple[Tensor, Tensor]:
        row_B = query_BP.new_empty(len(query_BP))
        column_N = query_BP.new_full((len(key_NP),), torch.finfo(query_BP.dtype).min)
        with _tf32(tf32):
            for part, by_row, by_column in _blocks(query_BP, key_NP, scale, compared, block_rows):
                row_B[part] = by_row.logsumexp(1)
                if columns:
                    column_N = torch.logaddexp(column_N, by_column.logsumexp(0))
        ctx.save_for_backward(query_BP, key_NP, scale, row_B, column_N)
        ctx.rest = compared, block_rows, tf32, columns
        return row_B, column_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query_BP, key_NP, scale, row_B, column_N = ctx.saved_tensors
        compared, block_rows, tf32, columns = ctx.rest
        row_gradient_B, column_gradient_N = gradients
        query_gradient_BP, key_gradient_NP = torch.empty_like(query_BP), torch.zeros_like(key_NP)
        scale_gradient = torch.zeros_like(scale)
        with _tf32(tf32):
            for part, by_row, by_column in _blocks(query_BP, key_NP, scale, compared, block_rows):
                weight_rN = (by_row - row_B[part].unsqueeze(1)).exp_().mul_(row_gradient_B[part].unsqueeze(1))
                if columns:
                    weight_rN += (by_column - column_N).exp_().mul_(column_gradient_N)
                if ctx.needs_input_grad[2]:
                    # Where a pair is not compared in either direction its weight is exactly 0, its score finite.
                    scale_gradient += torch.where(weight_rN == 0, 0, weight_rN * _seen(by_row, by_column)).sum() / scale
                query_gradient_BP[part] = weight_rN @ key_NP * scale
                key_gradient_NP.addmm_(weight_rN.T, query_BP[part] * scale)
        return query_gradient_BP, key_gradient_NP, scale_gradient, None, None, None, None


def _seen(by_row: Tensor, by_column: Tensor) -> Tensor:
    """The score itself, from the direction in which the pair is compared."""
    return by_row if by_row is by_column else torch.maximum(by_row, by_column)


def _blocks(
    query_BP: Tensor, key_NP: Tensor, scale: Tensor, compared: Compared, block_rows: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For each block its rows, and its scores (r, N) as its rows and as the columns compare them."""
    group_N, within_N = compared.group_all, compared.within_all
    own_B = torch.arange(len(query_BP), device=query_BP.device) + compared.offset
    for start in range(0, len(query_BP), block_rows):
        part = slice(start, start + block_rows)
        scores_rN = block_scores(query_BP[part], key_NP, scale, own_B[part], compared.valid[part], compared.valid_all)
        if group_N is None or within_N is None:
            yield part, scores_rN, scores_rN
        else:
            same_rN = compared.local(group_N)[part].unsqueeze(1) == group_N
            within_r1 = compared.local(within_N)[part].unsqueeze(1)
            yield part, within_group(scores_rN, same_rN, within_r1), within_group(scores_rN, same_rN, within_N)


@contextmanager
def _tf32(enabled: bool) -> Iterator[None]:
    """Products of float32 on a GPU in TensorFloat-32 (10 bits of mantissa, float32 sums) inside the block."""
    if not enabled:
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
