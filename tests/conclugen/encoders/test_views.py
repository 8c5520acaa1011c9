"""Augmented views: seeded by (seed, purpose, key, view), constant over time, within the published ranges."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from conclugen.encoders import views
from conclugen.encoders.views import VIDEO, Draws, augment

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
MEL = RNG.uniform(0.1, 1, (128, 200)).astype(np.float32)
WAVE = RNG.uniform(-0.5, 0.5, 24_000).astype(np.float32)
TEXT = "bin blue at f two now"
INPUTS = {"frames": FRAMES, "mel": MEL, "wave": WAVE, "text": TEXT}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("strength", views.STRENGTHS)
def test_same_arguments_same_view_other_arguments_another(kind: str, strength: str) -> None:
    value = INPUTS[kind]

    def made(**changes: object) -> object:
        arguments = {"seed": 1, "key": "clip", "view": 1, "strength": strength, **changes}
        return augment(kind, value, **arguments)  # type: ignore[arg-type]

    first = made()
    np.testing.assert_array_equal(made(), first)
    if kind == "text":
        assert len({str(made(view=v)) for v in range(1, 30)}) > 5
        assert all(sorted(str(made(view=v))) == sorted(TEXT) for v in range(1, 30))
    else:
        assert isinstance(first, np.ndarray) and isinstance(value, np.ndarray)
        assert first.shape == value.shape and first.dtype == value.dtype
        for changes in ({"seed": 2}, {"key": "other"}, {"view": 2}):
            assert not np.array_equal(made(**changes), first)  # type: ignore[arg-type]


def test_a_view_is_constant_over_time() -> None:
    still = np.repeat(FRAMES[:1], 5, axis=0)
    for view in range(1, 8):
        seen = augment("frames", still, seed=3, key="k", view=view, strength="strong")
        assert (seen == seen[0]).all()


def test_crops_lie_in_the_picture_and_in_the_published_ranges() -> None:
    for strength, ranges in VIDEO.items():
        shares, ratios = [], []
        for number in range(500):
            top, left, rows, columns = views.crop_box(180, 180, Draws(0, "frames", f"{number}", 1), ranges)
            assert top >= 0 and left >= 0 and top + rows <= 180 and left + columns <= 180
            if rows < 180 and columns < 180:
                shares.append(rows * columns / 180**2)
                ratios.append(columns / rows)
        low, high = ranges.scale
        assert low - 0.02 <= min(shares) and max(shares) <= high, strength
        assert ranges.ratio[0] - 0.03 <= min(ratios) and max(ratios) <= ranges.ratio[1] + 0.03


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    first, second = np.array([[d.number(), d.number()] for d in (Draws(5, "frames", f"{i}", 1) for i in range(2000))]).T
    assert kstest(first, "uniform").pvalue > 1e-3 and kstest(second, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08


def test_masks_are_one_band_and_one_stretch_within_the_published_widths() -> None:
    widths = []
    for number in range(200):
        masked = augment("mel", MEL, seed=0, key=f"{number}", view=1)
        rows, columns = (masked == 0).all(axis=1), (masked == 0).all(axis=0)
        for empty in (rows, columns):
            at = np.flatnonzero(empty)
            assert len(at) < 0.35 * len(empty) and (not len(at) or at[-1] - at[0] + 1 == len(at))
        assert np.array_equal(masked[~rows][:, ~columns], MEL[~rows][:, ~columns])
        widths.append(rows.sum() / 128)
    assert 0.08 < np.mean(widths) < 0.17  # half of the mean of the largest width, (.15 + .35) / 2 / 2 = .125


def test_a_masked_sound_lacks_a_band_and_a_stretch() -> None:
    for view in range(1, 50):
        draws = Draws(0, "audio", "sound", view)
        (low, high), (begin, end) = views.masked_band(1000, draws), views.masked_band(151, draws)
        if 100 < low < high - 100 < 800 and end - begin > 15:
            break  # a view that masks enough to be measured
    masked = views.mask_wave(WAVE, Draws(0, "audio", "sound", view))
    quiet = masked[(begin + 4) * 160 : (end - 5) * 160]
    assert np.abs(quiet).max() < 1e-3 < np.abs(masked).max()
    edges = 700 * (10 ** (np.array([low, high]) / 1000 * 2595 * np.log10(1 + 8000 / 700) / 2595) - 1)
    spectrum = np.abs(np.fft.rfft(masked)) ** 2
    at = np.fft.rfftfreq(len(masked), 1 / 16_000)
    inside = (at > edges[0] + 60) & (at < edges[1] - 60)
    assert spectrum[inside].mean() < 0.02 * spectrum[~inside].mean()


def test_blur_is_a_gaussian() -> None:
    x = torch.from_numpy(FRAMES[:1]).permute(0, 3, 1, 2) / 255
    for sigma in (0.4, 1.5):
        expected = gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, 9, 9))
        np.testing.assert_allclose(views.blur(x, sigma).numpy(), expected, atol=1e-4)


def test_hue_turns_about_the_grey_axis() -> None:
    """A third of the circle would exchange the channels; grey stays grey whatever the turn."""

    class Fixed(Draws):
        def number(self, low: float = 0.0, high: float = 1.0) -> float:
            return 1.0 if low > 0 else self.turn

        turn = 1 / 3

    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    turned = views.jitter(x, Fixed(0, "frames", "k", 1))
    torch.testing.assert_close(turned, x[:, [2, 0, 1]], atol=1e-5, rtol=0)
    red = views.jitter(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), Fixed(0, "frames", "k", 1)).flatten().tolist()
    assert abs((colorsys.rgb_to_hsv(*red)[0] - 0.0) % 1.0 - 1 / 3) < 1e-3
    grey = torch.full((1, 3, 2, 2), 0.4)
    for number in range(5):
        out = views.jitter(grey, Draws(0, "frames", f"{number}", 1))
        torch.testing.assert_close(out[:, 0], out[:, 1])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="view is 0"):
        augment("text", TEXT, seed=0, key="k", view=0)
    with pytest.raises(ValueError, match="strength"):
        augment("text", TEXT, seed=0, key="k", view=1, strength="huge")
    assert augment("text", "a", seed=0, key="k", view=1) == "a"


def test_a_mild_view_keeps_the_colours() -> None:
    """It crops and turns alone: one colour stays it, where a strong view would be grey or another."""
    orange = np.broadcast_to(np.array([230, 120, 10], np.uint8), (2, 24, 32, 3))
    for number in range(8):
        np.testing.assert_array_equal(augment("frames", orange, seed=number, key="k", view=1), orange)


def test_a_masked_stretch_is_counted_in_the_columns_of_time() -> None:
    """Of a spectrogram that is longer than it has bands: up to 0.35 of its length, anywhere in it."""
    long = np.ones((16, 400), np.float32)
    starts, widths = [], []
    for number in range(200):
        at = np.flatnonzero((augment("mel", long, seed=0, key=f"{number}", view=1) == 0).all(axis=0))
        if len(at):
            starts.append(at[0] / 400)
            widths.append(len(at) / 400)
    assert 0.08 < np.mean(widths) < 0.17 and max(widths) > 0.2 and max(starts) > 0.8
