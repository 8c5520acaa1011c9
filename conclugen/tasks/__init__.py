"""Self-supervised tasks: one file each, found by themselves; `conclugen.tasks.base` says what a task is.

Each file holds the equation and its source, a pure function, the frozen configuration, and a class that owns state and
says what the rest of the project derives from it. Nothing here imports torch before a task is built.
"""

from conclugen.search_space import Range, Searched
from conclugen.tasks.base import Inputs, Task, View, check_block_rows, check_two_modalities, check_weight

__all__ = [
    "Inputs",
    "Range",
    "Searched",
    "Task",
    "View",
    "check_block_rows",
    "check_two_modalities",
    "check_weight",
]
