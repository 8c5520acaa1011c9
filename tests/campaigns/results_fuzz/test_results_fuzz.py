"""A slice of the campaign: some cases of every kind of damage (`python -m tests.campaigns.results_fuzz` runs many)."""

import socket
from pathlib import Path

import pytest

from tests.campaigns.results_fuzz import campaign
from tests.campaigns.results_fuzz.campaign import KINDS, case


@pytest.mark.parametrize(
    "numbers",
    [range(len(KINDS)), pytest.param(range(len(KINDS), 6 * len(KINDS)), marks=pytest.mark.slow)],
    ids=["of a run", "more"],
)
def test_hostile_results_folders_are_read_or_refused_in_a_line(numbers: range, tmp_path: Path) -> None:
    defects = [result for n in numbers if (result := case(20, n, tmp_path / str(n))).outcome == "defect"]
    assert not defects


@pytest.mark.parametrize("made", campaign.MAKERS)
def test_whole_folders_are_read(made: str, tmp_path: Path) -> None:
    """By every reader: one that refused them all would withstand anything."""
    folder = tmp_path / "results" / made
    campaign.MAKERS[made](folder)
    for reader in campaign.READERS[made].items():
        assert campaign._read(reader, folder, campaign.MEMORY) == "read", reader[0]


def test_the_judge_sees_what_it_is_there_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that writes outside, one that connects, and one that raises what is no refusal."""

    def outside(folder: Path) -> None:
        (folder.parent.parent / "outside" / "new").write_text("x")

    def connects(_: Path) -> None:
        socket.create_connection(("127.0.0.1", 9))

    def fails(_: Path) -> None:
        raise KeyError("x")

    for reader in (outside, connects, fails):
        monkeypatch.setitem(campaign.READERS, "run", {"reader": reader})
        assert case(0, 0, tmp_path / "case").outcome == "defect", reader
