"""Shot changes of a clip: cuts, dissolves and fades, from small pictures that are compared with their neighbours.

A cut is a difference that stands out among those around it and lasts: a flash goes back to what was before it, and a
moving camera changes every picture about as much as the next (cf. Boreczky & Rowe 1996). A dissolve is a stretch whose
pictures are blends of what lies before and after it, a fade one that ends in, or comes out of, a picture without
content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

_WIDTH, _HEIGHT = 32, 18  # of the small pictures
# Differences are means over the small picture of the nearest colour among the nine cells around, 0 to 255.
_LEAST = 6.0  # of a cut
_STANDS_OUT = 3.0  # times the mean of the differences around it
_LASTS = 20.0  # that the pictures before and after still differ by, where a flash is brighter than both
_REPEAT = 0.5  # at most, of a picture that is shown again, as where frame rates were converted
_BESIDE = 2.0  # times the differences right before and after it
_AROUND = 6  # pictures on each side that are looked at for that
_FLASH = 0.25  # seconds after which a change that was none has gone back
_FLAT = 4.0  # mean deviation of a picture without content
_BLENDS = (0.5, 0.75, 1.0)  # seconds: half the lengths of dissolves that are looked for
_BLEND_LEAST = 20.0  # difference of what lies before and after a dissolve
_BLEND_REST = 0.2  # of that difference, which may remain between a picture of it and the nearest mixture
_BLEND_CONTENT = 0.6  # of that difference, which light alone may not explain
_BLEND_RATE = 12.0  # pictures a second that are looked at for dissolves


class ShotFinder:
    """Takes the pictures of a clip one after another; `cuts` are the times at which another shot begins."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._pictures: list[np.ndarray] = []
        self._times: list[float] = []

    def add(self, frame: Any, time: float) -> bool:
        """Take the next picture (a PyAV frame); whether it may be the first of a shot, as far as can be told yet."""
        small = self._reformatter.reformat(
            frame, _WIDTH, _HEIGHT, "rgb24", interpolation=Interpolation.AREA, threads=1
        ).to_ndarray()
        self._pictures.append(small)
        self._times.append(time)
        if len(self._pictures) == 1:
            return True
        if _most(*self._pictures[-2:]) < _LEAST:
            return False
        step = float(difference(*self._pictures[-2:]))
        return step >= max(_LEAST, _BESIDE * self._before())

    def _before(self) -> float:
        """The difference between the two pictures before the last one; where they are the same picture, shown again,
        between the two before these."""
        early = self._pictures[-4:-1]
        if len(early) > 1 and _most(*early[-2:]) < _REPEAT:
            early = early[:-1]
        return float(difference(*early[-2:])) if len(early) > 1 else 0.0

    def cuts(self) -> list[float]:
        """Times (seconds, rising) of the first picture of every shot but the first."""
        if len(self._pictures) < 2:
            return []
        times = np.array(self._times)
        return [float(times[number]) for number in shot_changes(np.stack(self._pictures), times)]


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) mean difference of pictures (..., H, W, 3) uint8: each cell's to the most similar of the nine around it, so
    that movement by a cell counts for nothing; the larger of both directions."""
    return np.maximum(_one_way(a, b), _one_way(b, a))


def _most(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) what `difference` is at most: it looks for the most similar of nine cells, this at the one in place."""
    apart = np.maximum(a, b) - np.minimum(a, b)
    colours = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])
    mean: np.ndarray = colours.mean(axis=(-2, -1))
    return mean


def _one_way(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = a.astype(np.int16)
    edges = [(0, 0)] * (b.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
    y = np.pad(b.astype(np.int16), edges, mode="edge")
    height, width = a.shape[-3:-1]
    least: np.ndarray | None = None
    for down in range(3):
        for right in range(3):
            there = np.abs(x - y[..., down : down + height, right : right + width, :]).max(axis=-1)
            least = there if least is None else np.minimum(least, there)
    assert least is not None
    mean: np.ndarray = least.mean(axis=(-2, -1))
    return mean


def shot_changes(pictures: np.ndarray, times: np.ndarray) -> list[int]:
    """Numbers of the pictures that begin another shot. pictures: (N, H, W, 3) uint8; times: (N,) seconds, rising."""
    flat = _contrast(pictures) < _FLAT
    cuts = _cuts(pictures, times)
    return sorted({*cuts, *_dissolves(pictures, times, cuts, flat), *_fades(pictures, times, flat)})


def _cuts(pictures: np.ndarray, times: np.ndarray) -> list[int]:
    steps = _most(pictures[1:], pictures[:-1])
    # The difference itself where it can matter: of what may be a cut, and of the steps around it.
    likely = np.flatnonzero(steps >= _LEAST)
    near = (likely[:, None] + np.arange(-_AROUND - 1, _AROUND + 2)).reshape(-1)
    exact = np.unique(near[(near >= 0) & (near < len(steps))])
    steps[exact] = difference(pictures[exact + 1], pictures[exact])
    cuts = []
    for step in np.flatnonzero(steps >= _LEAST).tolist():
        before, after = step, step + 1
        if step + 1 < len(steps) and steps[step + 1] >= _LEAST and _mixed(pictures, step):
            after = step + 2  # the picture between is half of either shot
        elif step and steps[step - 1] >= _LEAST and _mixed(pictures, step - 1):
            continue
        height = float(difference(pictures[before], pictures[after]))
        around = np.concatenate([steps[max(0, before - _AROUND) : before], steps[after : after + _AROUND]])
        around = around[around >= _REPEAT]  # pictures shown again stand still, and every other step would stand out
        beside = steps[max(0, before - 1) : before].tolist() + steps[after : after + 1].tolist()
        if height < _STANDS_OUT * around.sum() / max(len(around), 1) or height < _BESIDE * max(beside, default=0.0):
            continue
        lasting = difference(pictures[before], pictures[after : _until(times, after, _FLASH)]).min()
        arisen = difference(pictures[_since(times, before, _FLASH) : before + 1], pictures[after]).min()
        if (
            min(lasting, arisen) < max(_LEAST, min(height / 2, _LASTS))
            or _relit(pictures[before], pictures[after]) < _LEAST
        ):
            continue
        cuts.append(after)
    return cuts


def _mixed(pictures: np.ndarray, first: int) -> bool:
    """Whether the picture after `first` is a mixture of those beside it, as where frame rates were converted."""
    if difference(pictures[first], pictures[first + 2]) < _BLEND_LEAST:
        return False
    share, rest = _mixture(*_coarse(pictures[first : first + 3]))
    return 0.1 <= share <= 0.9 and rest <= _BLEND_REST


def _dissolves(pictures: np.ndarray, times: np.ndarray, cuts: Sequence[int], flat: np.ndarray) -> list[int]:
    """The middles of blends from one shot to the next, where the blend holds no cut and no picture without content."""
    wanted = np.arange(times[0], times[-1], 1 / _BLEND_RATE)
    grid = np.unique(np.searchsorted(times, wanted))
    if len(grid) < 5:
        return []
    x = _coarse(pictures[grid])
    # Numbers of the stretches between cuts: a blend lies within one.
    stretch = np.searchsorted(np.array(sorted(cuts)), grid, "right") if cuts else np.zeros(len(grid), int)
    empty = np.concatenate([[0], np.cumsum(flat)])
    found: dict[int, float] = {}
    for half in _BLENDS:
        for middle in range(2, len(grid) - 2):
            at = times[grid[middle]]
            first = int(np.searchsorted(times[grid], at - half, "left"))
            last = int(np.searchsorted(times[grid], at + half, "right")) - 1
            if times[grid[last]] - times[grid[first]] < 1.6 * half or min(middle - first, last - middle) < 2:
                continue
            if stretch[first] != stretch[last] or empty[grid[last] + 1] - empty[grid[first]]:
                continue
            strength = _blend(pictures[grid], x, first, middle, last)
            if strength > found.get(middle, 0.0):
                found[middle] = strength
    # Of neighbouring middles, which are of one dissolve, the clearest.
    chosen: list[int] = []
    for middle in sorted(found, key=lambda number: -found[number]):
        number = int(grid[middle])
        if all(abs(times[number] - times[other]) > _BLENDS[-1] for other in chosen):
            chosen.append(number)
    return chosen


def _blend(pictures: np.ndarray, x: np.ndarray, first: int, middle: int, last: int) -> float:
    """How far apart two shots are of which the pictures between are blends, 0 where they are none. x: the pictures,
    coarser."""
    a, b = x[first], x[last]
    apart = float(np.abs(a - b).mean())
    if apart < _BLEND_LEAST:
        return 0.0
    share, rest = _mixture(a, x[middle], b)
    if not 0.25 <= share <= 0.75 or rest > _BLEND_REST:
        return 0.0
    early, rest_early = _mixture(a, x[(first + middle) // 2], b)
    late, rest_late = _mixture(a, x[(middle + last + 1) // 2], b)
    if max(rest_early, rest_late) > _BLEND_REST or not late - 0.05 <= share <= early + 0.05:
        return 0.0
    change = float(difference(pictures[first], pictures[last]))
    content = _relit(pictures[first], pictures[last])
    return apart if content >= max(_BLEND_LEAST, _BLEND_CONTENT * change) else 0.0


def _coarse(pictures: np.ndarray) -> np.ndarray:
    """(N, H / 2, W / 2, 3) float32 means of four cells, in which slow movement within a dissolve hardly shows."""
    halves = pictures.reshape(len(pictures), _HEIGHT // 2, 2, _WIDTH // 2, 2, 3)
    means: np.ndarray = halves.mean(axis=(2, 4), dtype=np.float32)
    return means


def _mixture(a: np.ndarray, picture: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The share of `a` in the mixture of a and b that is nearest to the picture, and the mean difference that is left,
    as a share of that between a and b."""
    whole = a - b
    share = float(((picture - b) * whole).sum() / max(float((whole * whole).sum()), 1e-9))
    return share, float(np.abs(picture - b - share * whole).mean() / max(float(np.abs(whole).mean()), 1e-9))


def _fades(pictures: np.ndarray, times: np.ndarray, flat: np.ndarray) -> list[int]:
    """Where pictures without content begin and end, unless they are a flash's. flat: (N,) bool, which those are."""
    faint = _contrast(pictures) < 4 * _FLAT
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(np.int8)))
    found: list[int] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        inside = [start, stop] if stop < len(times) else [start]
        if stop < len(times) and start and times[stop] - times[start] <= _FLASH:
            before, after = start - 1, stop
            if faint[before] or faint[after]:  # a fade's: what it comes from lies further off
                before, after = _since(times, before, 2 * _FLASH), _until(times, after, 2 * _FLASH) - 1
            if _relit(pictures[before], pictures[after]) < _LEAST:
                continue
        found += [number for number in inside if number]
    return found


def _contrast(pictures: np.ndarray) -> np.ndarray:
    """(N,) mean deviation of the cells of each picture."""
    deviation: np.ndarray = pictures.reshape(len(pictures), -1, 3).std(axis=1).mean(axis=1)
    return deviation


def _relit(a: np.ndarray, b: np.ndarray) -> float:
    """Difference of two pictures that is left where light alone (a gain and an offset for all of it) is made equal;
    the larger of both directions, for anything can be dimmed to nothing."""
    return max(_relit_one_way(a, b), _relit_one_way(b, a))


def _relit_one_way(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    x0, y0 = x - x.mean(), y - y.mean()
    gain = max(0.0, float((x0 * y0).sum() / max((x0 * x0).sum(), 1e-9)))
    lit = np.clip(np.rint(gain * x0 + y.mean()), 0, 255).astype(np.uint8)
    return float(difference(lit, b))


def _until(times: np.ndarray, number: int, seconds: float) -> int:
    """One more than the number of the last picture at most so much later."""
    return int(np.searchsorted(times, times[number] + seconds, "right"))


def _since(times: np.ndarray, number: int, seconds: float) -> int:
    """The number of the first picture at most so much earlier."""
    return int(np.searchsorted(times, times[number] - seconds, "left"))
