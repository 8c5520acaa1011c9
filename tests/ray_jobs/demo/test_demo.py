"""The demo removes what an earlier demo made, and nothing else."""

from pathlib import Path

import pytest

from ray_jobs.demo import clear, main


def test_only_a_folder_of_the_demo_is_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "demo"
    clear(output)
    (output / "runs").mkdir()
    clear(output)
    assert [path.name for path in output.iterdir()] == [".conclugen-demo"]
    assert "removing the last demo" in capsys.readouterr().out
    thesis = tmp_path / "precious" / "thesis"
    thesis.mkdir(parents=True)
    (thesis / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="no demo made"):
        clear(tmp_path / "precious")
    assert main(["--output", str(tmp_path / "precious")]) == 1
    assert "error: --output" in capsys.readouterr().err
    assert (thesis / "a.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_demo_ends_with_a_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "demo")]) == 0
    printed = capfd.readouterr().out
    assert "conclugen demo: 200 steps with 2 workers" in printed
    for line in ("pretrained heads", "the same heads, untrained", "majority class", "MLflow run", "ui --backend-store"):
        assert line in printed
