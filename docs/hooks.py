"""Pages made from the code: every command with its options, configuration, Python, and file formats.

mkdocs makes those of `reference/` when it builds the site. `docs/configuration.md` is in the repository, to be read
without it: `python -m docs.hooks` writes it again (`make site` does), and a test says when it is stale.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from conclugen.common import commands
from conclugen.common.options import Command, schema
from conclugen.common.options.command import _CommandLine, _leaves, _shown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def commands_page() -> str:
    """Of each command what it does, and all its options."""
    lines = ["# Commands", "", "Made from the code. `conclugen NAME` and `python -m MODULE` are the same.", ""]
    found = {name: commands.load(name) for name in commands.registered().entries}
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {_cell(_first(one.job))} |" for name, one in found.items()]
    for name, command in found.items():
        lines += ["", f"## {name}", "", f"`python -m {_module(name)}`", "", *_about(command.job), ""]
        lines += ["| option | what it is | default |", "|---|---|---|"]
        lines += [
            f"| `{command.option(leaf.name)}` | {_cell(leaf.help)} | {_default(leaf.default)} |"
            for leaf in _leaves(command)
            if leaf.name.count(".") == 0 or leaf.name in command.short.values()
        ]
        groups = sorted({leaf.name.partition(".")[0] for leaf in _leaves(command) if "." in leaf.name})
        if groups:
            known = ", ".join(f"`--{group}.*`" for group in groups)
            lines += [
                "",
                f"Single fields: {known}; [configuration](../configuration.md), or `conclugen {name} --help-all`.",
            ]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Every field of the configurations that commands share."""
    lines = [
        "<!-- Made from the code by `python -m docs.hooks`: change the docstrings of the fields, not this page. -->",
        "",
        "# Configuration",
        "",
        "Every field is an option (`--pretrain.optimizer.lr 1e-3`) and a line of YAML (`--config run.yaml`; "
        "`--print-config` prints a whole file). Options outrank files, later files earlier ones.",
    ]
    for name in ("pretrain", "evaluate", "sweep", "ablate"):
        command = commands.load(name)
        lines += ["", f"## {name}"]
        groups: dict[str, list[str]] = {}
        defaults = _CommandLine(command).resolved({})
        for leaf in _leaves(command):
            if group := leaf.name.rpartition(".")[0]:
                row = f"| `{leaf.name}` | {_cell(leaf.help)} | {_default(defaults[leaf.name])} |"
                groups.setdefault(group, []).append(row)
        for group, rows in groups.items():
            lines += ["", f"### {name}: {group}", "", "| field | what it is | default |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """What `import conclugen` offers, with signatures."""
    import conclugen
    from conclugen import export, presets
    from conclugen.tasks import registry

    lines = ["# Python", "", "The core needs torch and numpy, knows no Ray, and is typed."]
    for title, found in (
        ("conclugen.load", conclugen.load),
        ("conclugen.Embedder", export.Embedder),
        ("conclugen.Pretrainer", conclugen.Pretrainer),
        ("conclugen.presets.build", presets.build),
        ("conclugen.Batch", conclugen.Batch),
        ("conclugen.standardize.fit", conclugen.standardize.fit),
    ):
        lines += ["", f"## {title}", "", "```python", f"{title}{_signature(found)}", "```", "", *_about(found)]
        if inspect.isclass(found):
            for name, member in vars(found).items():
                if not name.startswith("_") and callable(member) and member.__doc__:
                    lines += ["", f"### {title}.{name}", "", "```python", f"{name}{_signature(member)}", "```", ""]
                    lines += _about(member)
    lines += ["", "## Tasks", "", "| task | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(_first(task))} |" for name, task in registry.registered().items()]
    lines += ["", "## Presets", "", ", ".join(f"`{name}`" for name in presets.PRESETS) + "."]
    return "\n".join(lines) + "\n"


def formats_page() -> str:
    """What is on the disk: shards, indexes, manifests, models and checkpoints, from the modules that write them."""
    from conclugen import export
    from conclugen.training import checkpoint
    from shards.clips import reader as clips
    from shards.format import index, layout, manifest
    from shards.planning import view

    lines = ["# File formats", "", "From the modules that write them. Nothing of it is executed when it is read."]
    for title, module in (
        ("Shards", layout),
        ("Index of a shard", index),
        ("Manifest", manifest),
        ("Views", view),
        ("Clip shards", clips),
        ("Exported models", export),
        ("Checkpoints", checkpoint),
    ):
        lines += ["", f"## {title}", "", f"`{module.__name__}`", "", *_about(module)]
    table = manifest._TABLE
    lines += ["", "## Columns of `manifest.parquet`", "", "| column | type |", "|---|---|"]
    lines += [f"| `{field.name}` | {field.type} |" for field in table]
    lines += ["", "## Versions", "", "| file | schema | version |", "|---|---|---|"]
    lines.append(f"| `{manifest.MANIFEST_NAME}` | conclugen.shards | {manifest.FORMAT} |")
    for module in (export, checkpoint):
        lines.append(f"| `{module.DOCUMENT}` | {module.SCHEMA} | {module.VERSION} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
    "reference/file-formats.md": formats_page,
}


CONFIGURATION = Path(__file__).with_name("configuration.md")


def _module(name: str) -> str:
    command: Command = commands.load(name)
    return command.name


def _signature(found: Any) -> str:
    """As one would write it: without the modules of names, and arrays by their short name."""
    text = re.sub(r"<factory>|<object object at 0x\w+>", "...", str(inspect.signature(found)))
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text).replace("typing.", "")
    return re.sub(r"numpy\.ndarray\[tuple\[Any, \.\.\.\], numpy\.dtype\[([\w.]+)\]\]", r"NDArray[\1]", text)


def _first(found: Any) -> str:
    return " ".join((inspect.getdoc(found) or "").partition("\n\n")[0].split())


def _about(found: Any) -> list[str]:
    """A docstring as paragraphs: sections of fields become lists, and examples stay as they are."""
    text = inspect.getdoc(found) or ""
    if dataclasses.is_dataclass(found) and isinstance(found, type):
        text = text.partition("Attributes:")[0]
    return list(_paragraphs(text))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if all(line.startswith("    ") for line in paragraph.splitlines()):
            yield from ("", paragraph, "")
            continue
        head, *fields = re.split(r"\n(?=    \w[\w, *]*: )", paragraph)
        if fields and head.rstrip().endswith(":"):
            yield from ("", f"**{head.strip()[:-1]}**", "")
            for field in fields:
                name, _, about = " ".join(field.split()).partition(": ")
                yield f"- `{name}`: {_escaped(about)}"
            yield ""
        else:
            yield from ("", _escaped(" ".join(paragraph.split())), "")


def _default(value: Any) -> str:
    shown = " ".join(_shown(value).split()).replace("|", "\\|")
    return "required" if value is schema.REQUIRED else f"`{shown}`"


def _escaped(text: str) -> str:
    """Text of a docstring, in which brackets and stars mean themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\[\]<>*_])", r"\\\1", part) for part in parts)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration_page(), "utf-8")
