"""One layer from files and command lines to frozen dataclasses, for every job and command of the project.

Words that mean the same in all of them:

| option | means |
|---|---|
| `--run NAME` | a run (a sweep, an ablation): the same name continues it |
| `--output FOLDER` | where results go; a run has its own folder in it, `<output>/<run>` |
| `--data FOLDER` | the data set that is read (shards of clips or of features; a folder or URL) |
| `--source PATH` | what is converted into shards |
| `--view NAME` | which of a data set's views |
| `--label NAME` | which of its labels |
| `--modalities A,B` | the modalities that are learned |
| `--preset NAME`, `--recipe NAME` | the configuration that single fields are laid over |
| `--epochs N`, `--batch N`, `--workers N`, `--seed N` | length, rows of a global batch, training processes, draws |
| `--overwrite`, `--quiet` | replace what is in the output; no progress lines |
| `--config FILE`, `--print-config` | read the same fields from a file; print them all as one |
| `--help`, `--help-all` | the options that are used most; all of them |

Any other field is an option of its dotted name, such as `--pretrain.optimizer.lr`. `-` and `_` are alike. Lists are
`a,b` (or `[a, b]`, or words after each other), mappings `name=value`, `none` means no value, and a bare `--flag` is
true.

Exit status: 0 good, 1 failed, 2 wrong input or configuration (nothing was done), 3 done in part (what was left out is
named), 130 interrupted, 143 terminated (it prints what is done, and that the same command resumes). Errors are one line
on stderr that begins with `error: `.

It uses the standard library's argparse (help) and PyYAML. A library that builds classes from configuration was
in its place; what it did beyond these two had to be fenced off (it imports what a file names), rewritten (its messages)
or done again (`conclugen.presets` reads the same fields without a command line).
"""

from conclugen.common.options.command import FAILED, GOOD, PARTIAL, WRONG_INPUT, Command, JobFailedError, save
from conclugen.common.options.schema import Leaf, build, to_plain
from conclugen.common.options.words import OptionsError

__all__ = [
    "FAILED",
    "GOOD",
    "PARTIAL",
    "WRONG_INPUT",
    "Command",
    "JobFailedError",
    "Leaf",
    "OptionsError",
    "build",
    "save",
    "to_plain",
]
