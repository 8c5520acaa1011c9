"""Largest memory that a piece of work takes, and the name of the processor it runs on."""

import ctypes
import platform
from pathlib import Path
from types import TracebackType

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """`with Peak(device) as peak: ...`; then `peak.bytes` is the largest amount taken besides what was held before.

    On a GPU by torch's own account; on Linux by the resident set, after the C library's allocator has handed back what
    it kept of earlier work and the high-water mark is reset; elsewhere 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes, self._before = device, 0, 0

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif _CLEAR.exists():
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim is not None:
                trim(0)
            _CLEAR.write_text("5", encoding="ascii")
            self._before = _resident("VmRSS:")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        elif _CLEAR.exists():
            self.bytes = max(0, _resident("VmHWM:") - self._before)


def give_back_what_is_freed() -> None:
    """From now on every freed block of 64 kB or more leaves the resident set, at the price of speed (glibc; elsewhere
    nothing). Without it a peak also shows what the allocator keeps for later."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(-3, 65536)  # M_MMAP_THRESHOLD


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
