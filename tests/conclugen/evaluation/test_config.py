"""Settings load at once: a command line that is refused has waited for no library of learning."""

import subprocess
import sys


def test_settings_load_the_standard_library_alone() -> None:
    heavy = ("torch", "numpy", "sklearn", "scipy", "ray", "mlflow", "pandas", "matplotlib")
    code = (
        "import sys, conclugen.evaluation.config as c; c.ComparisonConfig(); c.JudgingConfig(); c.MeasureConfig();"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_judge_loads_scikit_learn_scipy_and_torch_where_they_are_used() -> None:
    code = "import sys, conclugen.evaluation.judge;print(sorted({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
