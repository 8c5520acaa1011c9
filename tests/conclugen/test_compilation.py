"""The step on an accelerator, as far as it shows without one: one graph a region, and nothing read back."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.compiler.config
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from conclugen import Batch, Pretrainer, compilation, kmeans
from tests.conclugen.runs import WIDTHS, fresh, rows, small_config


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation without a compiler of machine code: graphs are traced, forward and backward, and run as they are."""
    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def learned(name: str = "conclugen", recipe: str = "improved", **overrides: Any) -> Pretrainer:
    tasks = {"contrastive": {"temperature": 0.2, "learn_temperature": True}} if name != "simclr" else {}
    return fresh(small_config(name, recipe, tasks=tasks, **overrides))


@pytest.mark.parametrize(
    ("recipe", "precision", "tolerance", "regions"),
    [("paper", "float64", 1e-9, 5), pytest.param("improved", "bfloat16", 2e-2, 6, marks=pytest.mark.slow)],
)
def test_each_region_is_one_graph_compiled_once(
    traced: None, recipe: str, precision: str, tolerance: float, regions: int
) -> None:
    """Over three epochs, in the second of which clustering becomes active, and with the same results as uncompiled."""
    compiled, eager = (learned("conclugen", recipe, precision=precision, compile=c) for c in (True, False))
    before = compilation.counts()
    for step in range(9):
        found, expected = (p.step(rows(step)) for p in (compiled, eager))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if tolerance < 1e-3 or step == 0:
                torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance, msg=name)
        # Inputs (where they are standardised), representations, projection, reconstruction, and a block of
        # similarities, forward and backward.
        assert compilation.counts().since(before) == compilation.Counts(graphs=regions, breaks=0, recompiles=0)
    assert "loss/clustering" in found
    tensors = compiled.state()[0]
    assert tensors.keys() == eager.state()[0].keys()
    if tolerance < 1e-3:
        for name, value in eager.state()[0].items():
            torch.testing.assert_close(tensors[name], value, atol=tolerance, rtol=0, msg=name)


def test_compiled_simclr(traced: None) -> None:
    widths = {"video_3d": 6}
    pair = [
        Pretrainer(small_config("simclr", "paper", precision="float64", compile=c), widths, 3) for c in (True, False)
    ]
    for step in range(2):
        losses = [p.step(rows(step, widths=widths))["loss"] for p in pair]
        torch.testing.assert_close(*losses, atol=1e-10, rtol=0)


def test_compiling_is_no_part_of_what_is_learned() -> None:
    config = small_config()
    assert config.differences(small_config(compile=True)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "steps", "tolerance"), [("float64", 5, 1e-9), ("float32", 1, 1e-5)])
def test_compiled_to_machine_code(precision: str, steps: int, tolerance: float) -> None:
    """In single precision for one step: AdamW divides a gradient that is rounding noise by its own size, so that its
    parameter takes a whole step this way or that, and losses after it differ by percents."""
    torch._dynamo.reset()
    compiled, eager = (learned(compile=c, precision=precision) for c in (True, False))
    for step in range(steps):
        found, expected = (p.step(rows(step)) for p in (compiled, eager))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance, msg=name)


def test_code_that_was_compiled_for_other_buffers_is_not_taken_from_torch_s_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cache on disk outlives an upgrade. What a version had left there that let a backward pass hand its buffers on
    made a compiled step's gradients 2,600 times too long, without a word."""
    monkeypatch.setattr(torch.compiler.config, "cache_key_tag", "mine")
    assert compilation.options() == compilation.options()
    assert torch._functorch.config.donated_buffer is False
    assert torch.compiler.config.cache_key_tag == "mine conclugen: buffers are kept"


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without values, as an accelerator's are to the host until it waits: to ask for a value is an error.

    Left out are the two questions that are asked on purpose: on a CPU, whether k-means may stop; everywhere, every so
    many steps, whether all losses were finite.
    """
    monkeypatch.setattr(kmeans, "_READABLE", frozenset())
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # would swap fake parameters for real ones
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.parametrize(
    ("recipe", "precision", "options"),
    [
        ("paper", "float32", {}),
        pytest.param("improved", "bfloat16", {}, marks=pytest.mark.slow),
        pytest.param("paper", "bfloat16", {"micro_batch": 5}, marks=pytest.mark.slow),
        pytest.param("improved", "float32", {"micro_batch": 5}, marks=pytest.mark.slow),
        pytest.param("improved", "bfloat16", {"tasks": {"weighting": "uncertainty"}}, marks=pytest.mark.slow),
    ],
)
def test_a_step_asks_for_no_value(unreadable: None, recipe: str, precision: str, options: dict[str, Any]) -> None:
    config = small_config("conclugen", recipe, model={"standardize": False}, precision=precision, **options)
    pretrainer = Pretrainer(config, WIDTHS, 3)
    pretrainer._check_every = 1000
    for step in range(5):
        metrics = pretrainer.step(rows(step))
    assert "loss/clustering" in metrics
    with pytest.raises(DataDependentOutputException):  # the check itself: what it looks for, it finds
        pretrainer.check_finite()


def test_k_means_that_stops_when_it_may_would_be_noticed(unreadable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_READABLE", frozenset({"cpu"}))
    config = small_config("conclugen", "paper", tasks={"clustering": {"start_epoch": 0}})
    with pytest.raises(DataDependentOutputException):
        Pretrainer(config, WIDTHS, 3).step(rows())


class _Crossings(TorchDispatchMode):
    """Notes every operation that takes from one device and gives on another: each makes the host wait, or could."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there = {x.device.type for x in (*args, result) if isinstance(x, torch.Tensor)}
        self.found += [str(func)] if len(there) > 1 else []
        return result


@pytest.mark.parametrize("recipe", ["paper", "improved"])
def test_a_forward_pass_stays_on_its_device(unreadable: None, recipe: str) -> None:
    """On a GPU that is only pretended, so that it shows everywhere; its autograd can't be pretended."""
    config = small_config("conclugen", recipe, model={"standardize": False}, tasks={"clustering": {"start_epoch": 0}})
    with torch.device("cuda"):
        pretrainer = Pretrainer(config, WIDTHS, 3, device="cuda")
    batch = Batch.of(rows(), "cuda")
    with _Crossings() as crossings:
        shares = pretrainer.model.train()(batch, 0, 0)
        assert crossings.found == []
        next(iter(shares.values())).to("cpu")
        assert len(crossings.found) == 1
    assert {share.device.type for share in shares.values()} == {"cuda"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: what waits for one can't be seen")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_waits_for_no_gpu(compiled: bool) -> None:
    config = small_config("conclugen", "paper", precision="bfloat16", compile=compiled)
    pretrainer = Pretrainer(config, WIDTHS, 3, device="cuda")
    for step in range(6):
        pretrainer.step(rows(step))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(6, 12):
            pretrainer.step(rows(step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
