"""The plain loop beside which a step is measured has the same losses and gradients; a small measurement of both."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.beside import ROOT
from benchmarks.namespaces import Namespaces
from benchmarks.ranks import command, worker
from benchmarks.ranks.peer import Peer
from conclugen import presets
from conclugen.batch import Batch
from conclugen.training.pretrainer import Pretrainer

EARLIER = "c21322d"
WIDTHS = {"video": 12, "audio": 9, "text": 7}


def batch(step: int) -> Batch:
    """Speakers of one to nine rows, so that some have too few others to be compared within."""
    generator = torch.Generator().manual_seed(step)
    rows = 45
    return Batch(
        {m: torch.randn(rows, d, generator=generator, dtype=torch.float64) for m, d in WIDTHS.items()},
        {m: torch.ones(rows, dtype=torch.bool) for m in WIDTHS},
        torch.arange(rows),
        group=torch.repeat_interleave(torch.arange(9), torch.arange(1, 10)),
    )


def weights(pretrainer: Pretrainer) -> dict[str, torch.Tensor]:
    """The model's parameters by the names that the peer gives them."""
    names = (
        (".unit.", "."), ("projection.", ""), ("tasks.clustering.head", "cluster"),
        ("tasks.reconstruction.decoders", "decoders"), (".hidden.", ".0."),
    )  # fmt: skip
    found = {}
    for name, parameter in pretrainer.model.named_parameters():
        own = name
        for old, new in names:
            own = own.replace(old, new)
        found[own.replace(".output.", ".2.") if own.startswith("decoders") else own] = parameter.detach()
    return found


def test_the_plain_loop_has_the_same_losses_and_gradients() -> None:
    config = presets.build(
        "conclugen", "improved", global_batch=45, precision="float64",
        model={"representation_dim": 16, "projection_dim": 8, "reconstruction_hidden_dim": 10, "feature_mask": 0.0},
        tasks={"clustering": {"start_epoch": 0, "clusters": 4, "queue_batches": 2}},
        clip_norm=None,
    )  # fmt: skip
    pretrainer = Pretrainer(config, WIDTHS, 10, {m: ([0.1] * d, [0.5] * d) for m, d in WIDTHS.items()})
    peer = Peer(config, WIDTHS).double()
    for m in WIDTHS:
        getattr(peer, f"mean_{m}").fill_(0.1)
        getattr(peer, f"deviation_{m}").fill_(0.5)
    for step in range(4):  # the queue is full from the third on
        peer.load_state_dict(weights(pretrainer), strict=False)
        assert set(weights(pretrainer)) == {name for name, _ in peer.named_parameters()}
        rows = batch(step)
        loss = peer(rows.features, rows.group)
        peer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in peer.parameters() if p.grad is not None]).norm()
        found = pretrainer.step(rows)
        assert float(found["loss"]) == pytest.approx(loss.item(), rel=1e-9)
        assert float(found["grad_norm"]) == pytest.approx(float(norm), rel=1e-7)


def test_a_table_compares_round_by_round() -> None:
    slow, quick = command.Case("plain DDP"), command.Case("this code")
    slow.rounds = [{"cpu": 0.2, "wall": 1.0, "bytes": 2e6}, {"cpu": 0.4, "wall": 1.0, "bytes": 2e6}]
    quick.rounds = [{"cpu": 0.1, "wall": 1.0, "bytes": 1e6}, {"cpu": 0.4, "wall": 1.0, "bytes": 1e6}]
    assert command.ratios(quick, slow, "cpu") == [0.5, 1.0]
    last = command.table([slow, quick], "cpu").splitlines()[-1]
    assert last == "| this code | 250.0 | 100.0 | 400.0 | 0.75 (0.50 to 1.00) | 1.0 |"


def test_what_makes_no_measurement_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.main(["--rounds", "0"]) == 2
    assert "--rounds: must be at least 1, got 0" in capsys.readouterr().err
    assert command.main(["--beside", "no-such-commit"]) == 2
    assert "--beside no-such-commit" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert command.main(["--rate", "60mbit"]) == 2
    assert "iproute2" in capsys.readouterr().err


def test_machines_of_a_network_have_commands_and_addresses_of_their_own() -> None:
    machines = Namespaces(3)
    assert len({machines.address(i) for i in range(3)}) == 3
    assert machines.command(1, ["true"])[:3] == ["ip", "netns", "exec"] and machines.command(1, ["true"])[-1] == "true"


@pytest.mark.slow
def test_two_ranks_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the state that the page compares with, where the checkout has its history: a name that one of the two
    lacks would end the measurement."""
    words = ["--rows", "16", "--sizes", "32", "16", "16", "--rounds", "2", "--steps", "2"]
    words += ["--widths", "video=9", "text=5"]
    there = subprocess.run(["git", "cat-file", "-e", EARLIER], cwd=ROOT, capture_output=True).returncode == 0
    words += ["--beside", EARLIER] if there else []
    assert command.main([*words, "--json", str(tmp_path / "r.json")]) == 0
    assert "| this code |" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert [len(rounds) for rounds in report["cases"].values()] == [2] * (2 + there)
    assert all(each["cpu"] > 0 and each["wall"] > 0 for rounds in report["cases"].values() for each in rounds)


def test_a_step_has_rows_of_its_own() -> None:
    one, two = worker.batch(WIDTHS, 8, 0, 1), worker.batch(WIDTHS, 8, 1, 1)
    assert one.row.tolist() == list(range(8, 16)) and not torch.equal(one.features["text"], two.features["text"])
