"""Counter-based random numbers: each draw is a pure function of (seed, purpose, step, row, column).

Nothing in this package touches an ambient generator, so a draw is the same on CPU and GPU, for any number of workers
and after a restart. The mixing function is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, OOPSLA, figure 16).
"""

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
# Numbers that a CPU mixes at a time: 256 KiB, which stay in its cache through a dozen passes.
_BLOCK = 1 << 15


def uniform(seed: int, purpose: str, step: int, row: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in [0, 1), shape (B, n), on the device of `row`.

    seed, step: any integers; purpose: names the use, so that two uses never share draws; row: (B,) int64 global row
    numbers (any integers, -1 included); n: draws per row. float64 has 53 random bits, float32 the first 24 of them.
    Raises ValueError for a row that is not a vector of int64.
    """
    return draws(key(seed, purpose, step), row, n, dtype)


def key(seed: int, purpose: str, step: int) -> int:
    """What `draws` needs to know of (seed, purpose, step), as a signed 64-bit integer."""
    return _signed(_mix_int(_mix_int(_mix_int(seed & _MASK) ^ _purpose_key(purpose)) ^ (step & _MASK)))


def draws(key: int | Tensor, row: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """`uniform` at a key, which may be a 0-d int64 tensor: what is compiled then is the same at every step."""
    if row.dtype != torch.int64 or row.dim() != 1:
        raise ValueError(f"row: found {row.dtype} of shape {tuple(row.shape)}, expected int64 of shape (B,)")
    row_key_B1 = _mix(row ^ key).unsqueeze(1)
    counter_N = torch.arange(1, n + 1, dtype=torch.int64, device=row.device) * _signed(_GOLDEN)
    if torch.compiler.is_compiling():  # which makes one pass of it all
        return _fractions(_mix(row_key_B1 + counter_N), dtype)
    drawn_BN = torch.empty(len(row), n, dtype=dtype, device=row.device)
    # Not a fake tensor, on which a step is counted as on a GPU.
    on_cpu = row.device.type == "cpu" and type(row) is Tensor
    rows = max(1, _BLOCK // max(1, n)) if on_cpu else max(1, len(row))
    for start in range(0, len(row), rows):
        part = slice(start, start + rows)
        drawn_BN[part] = _fractions(_mix_(row_key_B1[part] + counter_N), dtype)
    return drawn_BN


def order(seed: int, purpose: str, step: int, row: int, n: int) -> list[int]:
    """The numbers below n in the order of `uniform` of this row, in Python integers: where a list is wanted, and
    tensors that may hold nothing will not do."""
    start = _mix_int((row ^ key(seed, purpose, step)) & _MASK)
    draws = [_mix_int((start + i * _GOLDEN) & _MASK) >> 11 for i in range(1, n + 1)]
    return sorted(range(n), key=draws.__getitem__)


def _fractions(bits_BN: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in [0, 1) of the first bits."""
    if dtype == torch.float64:
        return _shift_right(bits_BN, 11).to(torch.float64) * 2.0**-53
    return (_shift_right(bits_BN, 40).to(torch.float32) * 2.0**-24).to(dtype)


def _purpose_key(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def _mix_int(x: int) -> int:
    """SplitMix64's next value after state `x`, in Python integers modulo 2**64."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MULTIPLIER_1) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIER_2) & _MASK
    return x ^ (x >> 31)


def _mix(x: Tensor) -> Tensor:
    """The same in int64 tensors, whose products and sums wrap modulo 2**64."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIER_2)
    return x ^ _shift_right(x, 31)


def _mix_(x: Tensor) -> Tensor:
    """`_mix` in place."""
    x += _signed(_GOLDEN)
    x ^= _shift_right(x, 30)
    x *= _signed(_MULTIPLIER_1)
    x ^= _shift_right(x, 27)
    x *= _signed(_MULTIPLIER_2)
    x ^= _shift_right(x, 31)
    return x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copies of the sign bit are cleared."""
    shifted = x >> bits
    shifted &= (1 << (64 - bits)) - 1
    return shifted


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
