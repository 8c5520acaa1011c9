"""One layer from YAML files and the command line to the frozen dataclass of a job.

    @dataclass(frozen=True)
    class PretrainJob:
        pretrain: PretrainConfig
        data: DataConfig
        run: RunConfig

    job = parse(PretrainJob, argv, description=__doc__)

gives `--config FILE` (YAML, may be repeated), one flag for each leaf (`--run.name`, `--pretrain.optimizer.lr`), and,
because `PretrainJob` holds a `PretrainConfig`, `--preset` and `--recipe`. Precedence: preset < files in order < flags.

jsonargparse sees leaves only (numbers, text, lists, mappings, choices), never a class: nothing that a configuration
says can make it import anything. Files and flags that try (`class_path`) are refused before it is asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from conclugen import PretrainConfig, presets
from conclugen.common.names import closest
from conclugen.config import RECIPES
from ray_jobs import strict_yaml
from ray_jobs.job_fields import Leaf, dataclass_of, default_of, groups_of, hints_of, is_mapping, is_optional, leaves_of
from ray_jobs.strict_yaml import FORBIDDEN_KEYS, ConfigurationError

Job = TypeVar("Job")
DEFAULT_PRESET, DEFAULT_RECIPE = "conclugen", "improved"


def parse(
    job_type: type[Job],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    prog: str | None = None,
) -> Job:
    """The job that files and flags describe.

    Args:
        job_type: frozen dataclass; nested dataclasses become groups, other fields become flags. A field that is an
            optional dataclass can be switched off by `null`.
        argv: arguments; None: those of the program, and an error then ends the program with a message (status 2).
        description: for `--help`.
        prog: the command that `--help` shows, such as `python -m ray_jobs.pretrain`.

    Raises: ConfigurationError (a ValueError) naming file or flag, field, what was found and what is allowed.
    """
    if argv is not None:
        return _parse(job_type, list(argv), description, prog)
    try:
        return _parse(job_type, sys.argv[1:], description, prog)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def to_yaml(job: Any) -> str:
    """A job as YAML that `--config` reads back to an equal job."""
    return strict_yaml.dump(to_plain(job))


def to_plain(value: Any) -> Any:
    """A configuration as nested dicts, lists and scalars."""
    if isinstance(value, PretrainConfig):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def save(job: Any, path: str | Path) -> None:
    """Write a job as JSON (`.json`) or else as YAML; both are read by `--config`."""
    path = Path(path)
    text = json.dumps(to_plain(job), indent=2) + "\n" if path.suffix == ".json" else to_yaml(job)
    path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------- reading


def _parse(job_type: type[Job], argv: list[str], description: str | None, prog: str | None) -> Job:
    for argument in argv:
        for word in FORBIDDEN_KEYS:
            if re.search(rf"\b{word}\b", argument):
                raise ConfigurationError(f"{argument!r}: {word} names code to import, which is refused; remove it")
    leaves = dict(leaves_of(job_type))
    optional_groups = {name for name, hint in groups_of(job_type) if is_optional(hint)}
    preset_field = next((name for name, hint in hints_of(job_type).items() if hint is PretrainConfig), None)
    parser = _parser(leaves, description, prog, preset_field)

    # jsonargparse has a --print_config of its own, which knows of no preset: the flag never gets there.
    print_config = "--print_config" in argv
    switched_off, rest = _take_switches([a for a in argv if a != "--print_config"], optional_groups)
    _check_flags(rest, parser, leaves)
    given = _run(lambda: parser.parse_args(rest, defaults=False))
    options = {name: given.pop(name) for name in ("config", "preset", "recipe") if name in given}

    overrides: dict[str, Any] = {}
    for path in options.get("config", []):
        overrides = _merge(overrides, _read(path, job_type, leaves, parser, preset_field), leaves)
    flags = {argument.partition("=")[0].removeprefix("--") for argument in rest}
    whole = {name: leaf for name, leaf in leaves.items() if name in flags}
    for name, leaf in leaves.items():
        if is_mapping(leaf.hint) and any(flag.startswith(f"{name}.") for flag in flags):
            overrides = _merge(_nested(name, leaf.default), overrides, leaves)  # a single key adds to the default
    overrides = _merge(overrides, switched_off, leaves)
    overrides = _merge(overrides, given, whole)

    if preset_field is not None:
        chosen = {name: options[name] for name in ("preset", "recipe") if name in options}
        overrides[preset_field] = {**overrides.get(preset_field, {}), **chosen}
    try:
        job = _construct(job_type, overrides, "", None)
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if print_config:
        print(to_yaml(job), end="")
        raise SystemExit(0)
    return typing.cast(Job, job)


def _parser(
    leaves: Mapping[str, Leaf], description: str | None, prog: str | None, preset_field: str | None
) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description=description,
        exit_on_error=False,
        default_env=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="YAML file with any of the fields below")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and exit")
    if preset_field is not None:
        names = ", ".join([*presets.PRESETS, *presets.ALIASES])
        parser.add_argument("--preset", type=str, default=DEFAULT_PRESET, help=f"base of {preset_field}: {names}")
        parser.add_argument("--recipe", type=str, default=DEFAULT_RECIPE, help=f"its formulae: {', '.join(RECIPES)}")
    for name, leaf in leaves.items():
        parser.add_argument(f"--{name}", type=leaf.hint, default=leaf.default, help=leaf.help or " ")
    return parser


def _read(
    path: str, job_type: type, leaves: Mapping[str, Leaf], parser: ArgumentParser, preset_field: str | None
) -> dict[str, Any]:
    """The fields of a file, each value checked and converted by its type."""
    content = strict_yaml.load(path)
    chosen = {name: content.pop(name) for name in ("preset", "recipe") if preset_field and name in content}
    nulls: dict[str, Any] = {}
    values = _check_names(path, content, job_type, "", leaves, nulls)
    read = _run(lambda: parser.parse_object(values, defaults=False), f"{path}: ")
    if preset_field is not None and chosen:
        read = _merge(read, {preset_field: chosen}, leaves)
    return _merge(read, nulls, leaves)


def _check_names(
    path: str, content: Any, cls: type, prefix: str, leaves: Mapping[str, Leaf], nulls: dict[str, Any]
) -> dict[str, Any]:
    """Refuse unknown names; take groups that are switched off by null out into `nulls`."""
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{path}: {prefix.rstrip('.')}: found {content!r}, expected a mapping of fields")
    hints = hints_of(cls)
    kept = {}
    for name, value in content.items():
        dotted = f"{prefix}{name}"
        if name not in hints:
            raise ConfigurationError(f"{path}: unknown field {dotted!r}; {_allowed(str(name), hints)}")
        inner = dataclass_of(hints[name])
        if inner is None:
            kept[name] = value
        elif is_optional(hints[name]) and (value is None or value == {}):
            nulls.update(_merge(nulls, _nested(dotted, value), leaves))
        else:
            kept[name] = _check_names(path, value, inner, f"{dotted}.", leaves, nulls)
    return kept


def _check_flags(argv: Sequence[str], parser: ArgumentParser, leaves: Mapping[str, Leaf]) -> None:
    known = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
    for argument in argv:
        if not argument.startswith("--"):
            continue
        name = argument.removeprefix("--").partition("=")[0].removesuffix("+")
        inside_mapping = any(name.startswith(f"{leaf}.") and is_mapping(leaves[leaf].hint) for leaf in leaves)
        if name not in known and not inside_mapping:
            inside = sorted(leaf for leaf in leaves if leaf.startswith(f"{name}."))
            if inside:
                raise ConfigurationError(
                    f"--{name} is a group of fields and takes no value; give them by themselves, "
                    f"such as --{inside[0]}, or in a file by --config"
                )
            siblings = [option for option in known if option.rpartition(".")[0] == name.rpartition(".")[0]]
            raise ConfigurationError(f"unknown flag '--{name}'; {_allowed(name, known, siblings)}")


def _take_switches(argv: Sequence[str], groups: set[str]) -> tuple[dict[str, Any], list[str]]:
    """`--tasks.NAME null` or `{}` for an optional group, which has no flag of its own in the parser."""
    switched_off: dict[str, Any] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in groups:
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if value not in ("null", "{}"):
            raise ConfigurationError(
                f"--{name} {value}: a group takes only null (leave it out) and {{}} (its defaults); set its fields by "
                f"--{name}.FIELD"
            )
        switched_off = _merge(switched_off, _nested(name, None if value == "null" else {}), {})
    return switched_off, rest


def _run(call: typing.Callable[[], Any], where: str = "") -> dict[str, Any]:
    try:
        result: dict[str, Any] = call().as_dict()
    except argparse.ArgumentError as error:
        message = " ".join(re.sub(r"<class '([\w.]+)'>", r"\1", str(error)).replace("Parser key ", "").split())
        raise ConfigurationError(f"{where}{message}") from error
    return result


# ---------------------------------------------------------------------- building


def _construct(cls: type, overrides: Mapping[str, Any], path: str, base: Any) -> Any:
    """An object of a dataclass: `base` (or the defaults) with the fields that are overridden."""
    if cls is PretrainConfig:
        return _construct_pretrain(overrides)
    values = {}
    for field in dataclasses.fields(cls):
        hint, dotted = hints_of(cls)[field.name], f"{path}{field.name}"
        inner = dataclass_of(hint)
        current = getattr(base, field.name) if base is not None else default_of(field)
        if inner is not None and isinstance(overrides.get(field.name), Mapping):
            values[field.name] = _construct(
                inner, overrides[field.name], f"{dotted}.", None if current is dataclasses.MISSING else current
            )
        elif field.name in overrides:
            values[field.name] = overrides[field.name]
        elif current is not dataclasses.MISSING:
            values[field.name] = current
        elif inner is not None:
            values[field.name] = _construct(inner, {}, f"{dotted}.", None)
        else:
            raise ConfigurationError(f"{dotted}: missing; give --{dotted}, or set it in a file given by --config")
    return cls(**values)


def _construct_pretrain(overrides: Mapping[str, Any]) -> PretrainConfig:
    """Preset and recipe, then the single fields over them. A saved configuration names all fields: those that say what
    the preset says anyway (a task that it does not run is null) are no overrides."""
    rest = dict(overrides)
    name, recipe = rest.pop("preset", DEFAULT_PRESET), rest.pop("recipe", DEFAULT_RECIPE)
    base = to_plain(presets.build(name, recipe))
    if isinstance(rest.get("tasks"), Mapping):
        rest["tasks"] = {
            task: value
            for task, value in rest["tasks"].items()
            if not (value is None and base["tasks"].get(task) is None)
        }
    return presets.build(name, recipe, **rest)


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], replaced: Mapping[str, Any], path: str = ""
) -> dict[str, Any]:
    """`over` laid over `base`; mappings are merged, those named in `replaced` (fields that are mappings) replaced."""
    merged = dict(base)
    for name, value in over.items():
        dotted = f"{path}{name}"
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping) and dotted not in replaced:
            merged[name] = _merge(merged[name], value, replaced, f"{dotted}.")
        else:
            merged[name] = value
    return merged


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _allowed(name: str, names: typing.Iterable[str], listed: typing.Iterable[str] | None = None) -> str:
    """The nearest of `names`, and all of `listed` (those names, if not given) where they are not too many."""
    close = closest(name, sorted(names))
    shown = sorted(names if listed is None else listed)
    allowed = f"allowed: {', '.join(shown)}" if 0 < len(shown) <= 20 else "--help lists those there are"
    return f"did you mean {close!r}? {allowed}" if close else allowed
