"""Configuration is read in a second, so it imports no torch: a wrong flag is refused before anything is loaded."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_configurations_and_tasks_need_no_torch() -> None:
    """Every built-in task included: its file is imported, and what it says of itself is asked."""
    found = modules_after(
        "from conclugen import config, presets\n"
        "from conclugen.tasks import registry\n"
        "built = [presets.build(name, recipe) for name in presets.PRESETS for recipe in config.RECIPES]\n"
        "widths = dict.fromkeys(('video', 'audio', 'text', 'video_3d'), 8)\n"
        "for run in built:\n"
        "    run.check_serves(widths), run.identity_digest(), run.to_dict()\n"
        "    for name, task in run.tasks.active.items():\n"
        "        assert registry.get(name).flops(task, run, widths) > 0\n"
        "        assert config.PretrainConfig.from_dict(run.to_dict()) == run"
    )
    assert "conclugen" in found
    assert not {"torch", "numpy", "ray", "mlflow"} & found


def test_evaluation_and_its_protocols_are_read_without_numpy() -> None:
    """Every protocol's file is imported for its options."""
    found = modules_after(
        "from ray_jobs.evaluate import COMMAND\n"
        "from conclugen.evaluation.protocols import registry\n"
        "COMMAND.parse(['--run', 'r', '--label', 'l', '--data', '/d', '--protocol', ','.join(registry.registered())])"
    )
    assert "conclugen" in found and not {"torch", "numpy", "ray", "mlflow", "sklearn"} & found


def test_this_check_sees_what_is_imported() -> None:
    """By a library that takes a tenth of a second; torch itself by `test_lazy_package.py`."""
    assert "numpy" in modules_after("from conclugen import config\nimport numpy")
