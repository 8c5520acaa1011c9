"""A command: its options as a frozen dataclass, its names for them, and how it is run.

    COMMAND = Command("ray_jobs.pretrain", PretrainJob, run, short={"epochs": "pretrain.epochs"})

    if __name__ == "__main__":
        sys.exit(COMMAND.main())

Every leaf of the dataclass is an option named after it (`--pretrain.optimizer.lr`; `_` and `-` are alike), or by its
short name. A file given by `--config` holds the same fields. Later files outrank earlier ones, options outrank files.
What does the work imports what it needs only after all of that was read and checked: a wrong option is refused at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conclugen.common import ending, paths, screen, uris
from conclugen.common.atomic import write_text
from conclugen.common.extras import needed_for
from conclugen.common.names import closest, nearest
from conclugen.common.options import schema
from conclugen.common.options.schema import REQUIRED, UNSET, Leaf
from conclugen.common.options.words import OptionsError, Word
from conclugen.common.tables import visible

GOOD, FAILED, WRONG_INPUT, PARTIAL = 0, 1, 2, 3
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*\b(?![.\w-])")
_FORBIDDEN = re.compile(r"\b(class_path|init_args)\b")
_WRONG_FILES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_OWN = ("help", "help_all", "print_config", "config")  # options that every command has
_NOUNS = ("run", "output", "data")  # what has one name in all commands: its dotted names are old
_NO = "--no-"  # a switch that is turned off
_MOST_LISTED, _MOST_MEANT = 20, 3


class JobFailedError(RuntimeError):
    """The input was right and the work did not succeed: one line, and status 1."""


@dataclass(frozen=True)
class Command:
    """One job or command of the project.

    Attributes:
        name: The module behind `python -m`.
        job: Frozen dataclass of its options; the first paragraph of its docstring says what the command does.
        work: Takes the job, does it, and returns an exit status; it imports what it needs.
        short: Option -> dotted field: what the field's option is called. The dotted name works as well.
        shown: Options that `--help` shows; others follow in `--help-all`. None: all.
        was: Old option -> today's; accepted with a note.
        bare: Option that words without an option give, such as the clips of `embed`.
        built: Dotted group -> what builds it from plain data, where that is more than laying it over the defaults (the
            preset of a configuration).
        implied: What is given, by dotted field -> fields that follow from it where they are not given themselves.
        extra: Options of such a group that are not fields, as leaves.
        epilog: Text below the options.
        called: What was typed to run it; none: `python -m` and its name.
    """

    name: str
    job: type
    work: Callable[[Any], int]
    short: Mapping[str, str] = field(default_factory=dict)
    shown: Sequence[str] | None = None
    was: Mapping[str, str] = field(default_factory=dict)
    bare: str | None = None
    built: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda given: {})
    extra: Sequence[Leaf] = ()
    epilog: Callable[[], str] | None = None
    called: str | None = None

    @property
    def prog(self) -> str:
        """What is typed to run it."""
        return self.called or f"python -m {self.name}"

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; returns the exit status: 0 good, 1 failed, 2 wrong input, 3 done in part, 130 interrupted,
        143 terminated."""
        with ending.stoppable():
            try:
                return self._main(sys.argv[1:] if argv is None else argv)
            except KeyboardInterrupt as stop:
                with contextlib.suppress(OSError):
                    print(f"\n{uris.scrub(ending.message(stop))}", file=sys.stderr, flush=True)
                _let_go_of_broken_pipes()
                return ending.status()

    def _main(self, argv: Sequence[str]) -> int:
        job = None
        uris.scrub_output()
        try:
            with ending.interrupt_first(), needed_for(self.prog):
                job = self.parse(argv)
                with screen.watched(quiet=bool(getattr(job, "quiet", False))):
                    return self.work(job)
        except JobFailedError as error:
            return _refuse(error, FAILED)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                _let_go_of_broken_pipes()
            return _refuse(self._named(error, job), WRONG_INPUT if isinstance(error, _WRONG_FILES) else FAILED)
        except ValueError as error:
            if type(error).__module__.partition(".")[0] == "ray":
                raise  # a worker's error, whatever it was there: a fault, which shows its trace
            return _refuse(self.spelt(str(error)), WRONG_INPUT)

    def parse(self, argv: Sequence[str]) -> Any:
        """The job that options and files describe. OptionsError: wrong ones, by name; SystemExit(0): `--help` and
        `--print_config` have printed."""
        line = _CommandLine(self)
        words = line.words(argv)
        if "help" in words or "help_all" in words:
            print(line.help(everything="help_all" in words), end="")
            raise SystemExit(GOOD)
        given: dict[str, Any] = {}
        for path in words.get("config", ()):
            _lay(given, line.read(path))
        _lay(given, line.values(words, given))
        for name, value in given.items():
            schema.refuse_secrets(self.option(name), value)
        if "print_config" in words:
            print(line.template(given), end="")
            raise SystemExit(GOOD)
        return line.build(given, argv)

    def option(self, name: str) -> str:
        """The option of a field, with its dashes."""
        found = next((option for option, target in self.short.items() if target == name), name)
        return f"--{found.replace('_', '-')}"

    def spelt(self, message: str) -> str:
        """A message with the options as this command calls them: one that begins with a field, and what other commands
        call otherwise."""
        message = _OPTION.sub(lambda found: self._called_here(found[0]), message)
        start = re.match(r"([a-z_][\w.]*)(?=: )", message)
        if start is None:
            return message
        names = [leaf.name for leaf in _leaves(self) if f".{leaf.name}".endswith(f".{start[1]}")]
        return self.option(names[0]) + message[start.end() :] if len(names) == 1 else message

    def _called_here(self, option: str) -> str:
        name = _flat(option)
        if name in self.was:
            return f"--{self.was[name]}"
        return self.option(name) if any(leaf.name == name for leaf in _leaves(self)) else option

    def _named(self, error: OSError, job: Any) -> str:
        """The error of a file with the option that named it."""
        said = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        for leaf in _leaves(self):
            value = _field(job, leaf.name)
            if isinstance(value, str | Path) and error.filename is not None and str(value) not in ("", "."):
                with contextlib.suppress(ValueError):  # text that is not a path
                    if Path(str(error.filename)).absolute().is_relative_to(paths.absolute(value, leaf.name)):
                        return f"{self.option(leaf.name)}: {said}"
        return said


class _CommandLine:
    """What a command understands: the names of its options, and how words and files become its job."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.leaves = {leaf.name: leaf for leaf in _leaves(command)}
        self.groups = {name: optional for name, _, optional in schema.groups(command.job)}
        self.names = {name: name for name in (*self.leaves, *_OWN)} | {_flat(s): t for s, t in command.short.items()}
        self.former = {leaf.was: leaf.name for leaf in self.leaves.values() if leaf.was is not None}
        self._noted: set[str] = set()

    def words(self, argv: Sequence[str]) -> dict[str, list[str]]:
        """Field -> its words, in the order given; `bare` words go to the field that takes them."""
        given: dict[str, list[str]] = {}
        bare: list[str] = []
        rest = list(argv)
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                bare, rest = bare + rest, []
            elif not argument.startswith("--"):
                bare.append(argument)
            else:
                name, words = self._option(argument, rest)
                if len(words) > 1 and not rest and not bare and self._lacks_its_word(argv):
                    bare.append(words.pop())
                given.setdefault(name, []).extend(words)
        if bare:
            field_ = self.names.get(self.command.bare or "")
            if field_ is None or not (len(bare) == 1 or schema.is_list(self.leaves[field_].hint)):
                raise OptionsError(f"unexpected word {bare[-1]!r}; options begin with --, and --help lists them")
            given.setdefault(field_, []).extend(bare)
        return given

    def _lacks_its_word(self, argv: Sequence[str]) -> bool:
        """Whether the one value that the command takes without an option is given by none either: behind a list, the
        line's last word is meant then."""
        field_ = self.names.get(self.command.bare or "")
        options = (_flat(argument.partition("=")[0]) for argument in argv if argument.startswith("--"))
        return field_ is not None and all(self.names.get(option) != field_ for option in options)

    def _option(self, argument: str, rest: list[str]) -> tuple[str, list[str]]:
        """The field that an option names, and its words, which are taken off `rest`."""
        if found := _FORBIDDEN.search(argument):
            raise OptionsError(f"{argument!r}: {found[1]} names code to import, which is refused; remove it")
        option, equals, value = argument.partition("=")
        name, key = self._resolve(option)
        leaf = self.leaves.get(name)
        if name in _OWN and name != "config":
            return name, []
        if equals:
            words = [value]
        elif leaf is not None and key == _NO:
            return name, ["false"]
        elif leaf is not None and schema.is_switch(leaf.hint):
            words = [rest.pop(0)] if rest and _fits(leaf, rest[0]) else ["true"]
        elif not rest or rest[0].startswith("--"):
            raise OptionsError(f"{option}: expected a value behind it; one that begins with -- as {option}=VALUE")
        else:
            words = [rest.pop(0)]
            if leaf is not None and schema.is_list(leaf.hint) and not self._many_bare() and key is None:
                while rest and not rest[0].startswith("--"):
                    words.append(rest.pop(0))
        for word in words:
            if found := _FORBIDDEN.search(word):
                raise OptionsError(f"{option} {word!r}: {found[1]} names code to import, which is refused; remove it")
        return name, words if key is None else [f"{key}={word}" for word in words]

    def _many_bare(self) -> bool:
        """Whether any number of words may come without an option: then a list takes one word, `a,b`."""
        field_ = self.names.get(self.command.bare or "")
        return field_ is not None and schema.is_list(self.leaves[field_].hint)

    def _resolve(self, option: str) -> tuple[str, str | None]:
        """(field, key of a mapping field that the option names too). Old names are noted, unknown ones refused."""
        name = _flat(option)
        old = next((o for o in self.command.was if f"{name}.".startswith(f"{o}.")), None)
        if old is not None:
            self._note(f"--{old}", f"--{self.command.was[old]}")
            option = f"--{self.command.was[old]}{option[len('--' + old) :]}"
            name = _flat(option)
        if name in self.former:
            self._note(option, self.command.option(self.former[name]))
            name = self.former[name]
        if name in self.names:
            field_ = self.names[name]
            today = self.command.option(field_)
            if _flat(today) in _NOUNS and _flat(today) != name:
                self._note(option, today)
            return field_, None
        if name in self.groups:
            return name, None
        for prefix in sorted((n for n in self.names if name.startswith(f"{n}.")), key=len, reverse=True):
            leaf = self.leaves.get(self.names[prefix])
            if leaf is not None and schema.is_mapping(leaf.hint):
                return leaf.name, option.removeprefix("--")[len(prefix) + 1 :]
        switch = self.leaves.get(self.names.get(name.removeprefix("no_"), ""))
        if name.startswith("no_") and switch is not None and schema.is_switch(switch.hint):
            return switch.name, _NO
        raise OptionsError(f"unknown option {option}{self._suggestion(name)}")

    def _note(self, old: str, today: str) -> None:
        if old not in self._noted:
            self._noted.add(old)
            print(
                f"note: {old} is called {today} now; the old name will be removed in the next version", file=sys.stderr
            )

    def _suggestion(self, name: str) -> str:
        options = {_flat(self.command.option(leaf)): self.command.option(leaf) for leaf in self.leaves}
        options |= {leaf: self.command.option(leaf) for leaf in self.leaves}
        for close in (
            [o for o in options if o.startswith(name)],
            [o for o in options if o.endswith(f".{name}")],
            [n for n in [closest(name, options)] if n is not None],
        ):
            meant = list(dict.fromkeys(options[o] for o in close))
            if 0 < len(meant) <= _MOST_MEANT:
                return f"; did you mean {' or '.join(meant)}?"
        return "; --help-all lists the options"

    # ------------------------------------------------------------------ values

    def values(self, words: Mapping[str, list[str]], given: Mapping[str, Any]) -> dict[str, Any]:
        """Field -> value, of the words of each; single keys of a mapping add to what is `given`, or to its default."""
        found: dict[str, Any] = {}
        for name, texts in words.items():
            option = self.command.option(name)
            if name in self.groups:
                found[name] = self._switched(name, texts[-1])
            elif name in self.leaves:
                leaf = self.leaves[name]
                value: Any = Word(texts[-1])
                if schema.is_mapping(leaf.hint):
                    value = self._entries(leaf, texts, given.get(name, leaf.default), option)
                elif leaf.whole and not (len(texts) == 1 and texts[0].startswith("[")):
                    value = [Word(text) for text in texts]
                elif schema.is_list(leaf.hint) and len(texts) > 1:
                    value = [item for text in texts for item in schema.convert(leaf.hint, Word(text), option)]
                found[name] = schema.convert(leaf.hint, value, option)
        return found

    def _entries(self, leaf: Leaf, texts: list[str], value: Any, option: str) -> Any:
        """Pairs over those of `value`, each name once; `{...}` and what is not a pair stand for the whole."""
        seen: set[str] = set()
        for text in texts:
            more = schema.convert(leaf.hint, Word(text), option)
            if not isinstance(more, Mapping) or text.startswith("{"):
                value = more
                continue
            for name in more:
                if name in seen:
                    raise OptionsError(f"{option} {name} is given twice")
            seen |= set(more)
            value = {**(value if isinstance(value, Mapping) else {}), **more}
        return value

    def _switched(self, group: str, text: str) -> Any:
        """`null` for a group that may be left out, `true` for one of default values."""
        if not self.groups[group]:
            first = next(name for name in self.leaves if name.startswith(f"{group}."))
            raise OptionsError(
                f"--{group} is a group of fields and takes no value; give them by themselves, such as "
                f"{self.command.option(first)}, or in a file by --config"
            )
        if text.lower() in ("none", "null"):
            return None
        if text not in ("true", "{}"):
            raise OptionsError(
                f"--{group} {text}: takes only null (left out) or true (with its defaults); set its fields by "
                f"--{group}.FIELD"
            )
        return {}

    def read(self, path: str) -> dict[str, Any]:
        """Field -> value, of a file; each value checked by its type."""
        from conclugen.common.options import strict_yaml

        found: dict[str, Any] = {}
        for name, value in self._fields(path, strict_yaml.load(path), ""):
            leaf = self.leaves.get(name)
            if leaf is not None and leaf.line_only:
                raise OptionsError(
                    f"{path}: {name}: names code to import, which files may not; remove it, and give "
                    f"{self.command.option(name)} on the command line"
                )
            if leaf is not None and schema.is_list(leaf.hint) and isinstance(value, str):
                value = Word(value)
            _lay(found, {name: value if leaf is None else schema.convert(leaf.hint, value, f"{path}: {name}")})
        return found

    def _fields(self, path: str, content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in content.items():
            name = f"{prefix}{key}"
            if not prefix and _flat(name) in self.command.was:
                self._note(f"{path}: {name}", self.command.was[_flat(name)])
                name = self.command.was[_flat(name)]
            if name in self.former:
                self._note(f"{path}: {name}", self.former[name])
                name = self.former[name]
            if not prefix and _flat(name) in self.names and not (name in self.groups and isinstance(value, Mapping)):
                name = self.names[_flat(name)]
            if isinstance(value, str) and value == UNSET:
                continue
            if name in self.leaves:
                yield name, value
            elif name not in self.groups:
                if isinstance(value, Mapping) and any(name.startswith(f"{group}.") for group in self.command.built):
                    yield name, value  # what builds the group may know of names that are not installed here
                    continue
                siblings = [n.removeprefix(prefix) for n in self._inside(prefix)]
                allowed = (
                    f"allowed: {', '.join(siblings)}" if len(siblings) <= _MOST_LISTED else "--help-all lists them"
                )
                raise OptionsError(f"{path}: unknown field {name!r}{nearest(key, siblings)}; {allowed}")
            elif (value is None and self.groups[name]) or value == {}:
                yield name, value
            elif isinstance(value, Mapping):
                yield from self._fields(path, value, f"{name}.")
            else:
                raise OptionsError(f"{path}: {name}: found {value!r}, expected a mapping of fields")

    def _inside(self, prefix: str) -> list[str]:
        """The fields and groups right under a prefix."""
        under = (n for n in (*self.leaves, *self.groups) if n.startswith(prefix))
        return sorted({n for n in under if "." not in n.removeprefix(prefix)})

    # ------------------------------------------------------------------ the job

    def build(self, given: Mapping[str, Any], argv: Sequence[str] = ()) -> Any:
        """The job. OptionsError: all the fields that must be given and are not, or a value that does not serve."""
        missing = [
            f"{self.command.option(leaf.name)} {leaf.metavar}"
            for leaf in self._required(given)
            if leaf.name not in given
        ]
        if missing:
            typed = " ".join([self.command.prog, shlex.join(argv), *missing])
            raise OptionsError(f"missing: {', '.join(missing)}; give it as in {typed}, or in a file by --config")
        tree = _nested({**self.command.implied(given), **given})
        try:
            for group, builder in self.command.built.items():
                _put(tree, group, builder(_get(tree, group) or {}))
            return schema.build(self.command.job, tree)
        except ValueError as error:
            raise OptionsError(self.command.spelt(str(error))) from error

    def _required(self, given: Mapping[str, Any] | None = None) -> list[Leaf]:
        """The fields that must be given, beside those that are."""
        built = tuple(f"{group}." for group in self.command.built)
        off = tuple(f"{group}." for group, optional in self.groups.items() if optional)
        return [
            leaf
            for leaf in self.leaves.values()
            if leaf.default is REQUIRED
            and not leaf.name.startswith((*built, *off))
            and (leaf.unless is None or (given or {}).get(leaf.unless) is None)
        ]

    def resolved(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Leaf -> plain value, and group -> None where it is off; REQUIRED stands for what must yet be given."""
        tree = _nested({**self.command.implied(given), **given})
        built: dict[str, Any] = {}
        for group, builder in self.command.built.items():
            _put(built, group, schema.to_plain(builder(_get(tree, group) or {})))
        found: dict[str, Any] = {}
        for name in (*self.groups, *self.leaves):
            value = _get(built, name, _get(tree, name, self._default(name)))
            if name in self.leaves:
                found[name] = value
            elif value is None:
                found[name] = None
        return found

    def _default(self, name: str) -> Any:
        """The default of a leaf; of a group None where it is off by default."""
        if name in self.leaves:
            return self.leaves[name].default
        parent, _, last = name.rpartition(".")
        cls = next((cls for group, cls, _ in schema.groups(self.command.job) if group == parent), self.command.job)
        return next(schema.default_of(f) for f in dataclasses.fields(cls) if f.name == last)

    def template(self, given: Mapping[str, Any]) -> str:
        """The whole job as YAML, each field with its description, as `--config` reads it."""
        from conclugen.common.options import strict_yaml

        values, defaults = self.resolved(given), self.resolved({})
        about = {name: _first_line(cls) for name, cls, _ in schema.groups(self.command.job)}
        lines = [f"# Options of {self.command.prog}; what says {UNSET} must be given."]
        written: set[str] = set()
        for name, leaf in self.leaves.items():
            if leaf.line_only:
                continue
            path = name.split(".")
            groups = [".".join(path[:n]) for n in range(1, len(path))]
            for group in groups:
                if group not in written:
                    written.add(group)
                    indent, last = "  " * group.count("."), group.rpartition(".")[2]
                    lines += _commented(about[group], indent)
                    lines.append(f"{indent}{last}:" + (" null" if group in values else ""))
            if any(group in values for group in groups):
                continue
            indent, value = "  " * len(groups), values[name]
            lines += _commented(_described(leaf, defaults[name]), indent)
            lines.append(
                f"{indent}{path[-1]}: {UNSET if value is REQUIRED else strict_yaml.inline(schema.to_plain(value))}"
            )
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------ help

    def help(self, everything: bool) -> str:
        """Text of `--help`, or of `--help-all`, with the defaults of the preset that is the default."""
        command = self.command
        shown = None if everything or command.shown is None else [self.names[_flat(name)] for name in command.shown]
        required = [] if shown is None else [leaf.name for leaf in self._required() if leaf.name not in shown]
        parser = argparse.ArgumentParser(
            prog=command.prog,
            usage=self._usage(),
            description=_paragraphs(command.job),
            epilog=command.epilog() if command.epilog is not None else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=30, width=_width()
            ),
            add_help=False,
        )
        values = self.resolved({})
        titles: dict[str, argparse._ArgumentGroup] = {}
        every = sorted(self.leaves, key=lambda name: "." in name)  # those of no group first
        for name in (*required, *shown) if shown is not None else every:
            leaf, group = self.leaves[name], name.rpartition(".")[0] if shown is None else ""
            if group not in titles:
                about = {n: _first_line(cls) for n, cls, _ in schema.groups(command.job)}
                titles[group] = parser.add_argument_group(group or "options", about.get(group))
            metavar = None if leaf.hint is bool else leaf.metavar
            _listed(titles[group], command.option(name), metavar, _described(leaf, values[name]))
        rest = parser.add_argument_group("of every command")
        for option, metavar, text in (
            ("--config", "FILE", "YAML or JSON file with any of these; of several files the later counts"),
            ("--print-config", None, "print all options as such a file, and exit"),
            ("--help", None, "print the options that are used most, and exit"),
            ("--help-all", None, "print all options, in groups, and exit"),
        ):
            _listed(rest, option, metavar, text)
        return parser.format_help()

    def _usage(self) -> str:
        parts = [self.command.prog]
        bare = self.leaves.get(self.names.get(self.command.bare or "", ""))
        if bare is not None:
            parts.append(f"{bare.metavar} ..." if schema.is_list(bare.hint) else bare.metavar)
        parts += [f"{self.command.option(leaf.name)} {leaf.metavar}" for leaf in self._required() if leaf is not bare]
        return " ".join([*parts, "[options]"]).replace("%", "%%")


def _leaves(command: Command) -> list[Leaf]:
    found = list(schema.leaves(command.job))
    for leaf in command.extra:  # at the head of its group
        group = leaf.name.rpartition(".")[0] + "."
        found.insert(next((i for i, other in enumerate(found) if other.name.startswith(group)), 0), leaf)
    return found


def _let_go_of_broken_pipes() -> None:
    """Whoever read the output may have been stopped first; Python would fail to write the rest, with status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def _refuse(message: object, status: int) -> int:
    print(f"error: {visible(uris.scrub(message))}", file=sys.stderr)
    return status


def _flat(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _listed(group: argparse._ArgumentGroup, option: str, metavar: str | None, text: str) -> None:
    more: dict[str, Any] = {"metavar": metavar} if metavar is not None else {"action": "store_true"}
    group.add_argument(option, help=text.replace("%", "%%"), **more)


def _fits(leaf: Leaf, word: str) -> bool:
    try:
        schema.convert(leaf.hint, Word(word), leaf.name)
    except OptionsError:
        return False
    return True


def _lay(flat: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Lay fields over fields. A group that is switched takes its fields along, a field switches its group on."""
    for name, value in more.items():
        for other in [
            n for n in flat if n.startswith(f"{name}.") or (name.startswith(f"{n}.") and flat[n] in (None, {}))
        ]:
            del flat[other]
        flat[name] = value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        _put(tree, name, value)
    return tree


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
    tree[last] = value


def _get(tree: Any, name: str, default: Any = None) -> Any:
    """A value of a nested mapping; the default where its group is not there."""
    for part in name.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def _field(job: Any, name: str) -> Any:
    for part in name.split("."):
        job = getattr(job, part, None)
    return job


def _commented(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 116, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _described(leaf: Leaf, value: Any) -> str:
    """The field's description, with its default."""
    return f"{leaf.help} ({'required' if value is REQUIRED else f'default: {_shown(value)}'})".lstrip()


def _shown(value: Any) -> str:
    """A value as a command line takes it."""
    value = schema.to_plain(value)
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "[]"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_shown(item)}" for key, item in value.items()) or "{}"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def _first_line(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _paragraphs(cls: type) -> str:
    """The docstring before `Attributes:`."""
    return inspect.cleandoc((cls.__doc__ or "").partition("Attributes:")[0]).strip()


def _width() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, 120)


def save(job: Any, path: str | Path) -> None:
    """Write a job as JSON (`.json`) or else as YAML, both of which `--config` reads; without the fields that only a
    command line may give."""
    from conclugen.common.options import strict_yaml

    plain, path = schema.to_plain(job), Path(path)
    for leaf in schema.leaves(type(job)):
        if leaf.line_only:
            *groups, last = leaf.name.split(".")
            part = plain
            for group in groups:
                part = part.get(group) or {}
            part.pop(last, None)
    text = json.dumps(plain, indent=2) + "\n" if path.suffix == ".json" else strict_yaml.dump(plain)
    write_text(path, text)
