"""Validate a composed configuration: keys and types by the schema, `_target_` by signature."""

import dataclasses
import difflib
import inspect
import json
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import (
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    PydanticUserError,
)

from rsna_bcd.errors import InputError
from rsna_bcd.targets import constructor_parameters

HYDRA = "hydra"  # its own settings, which it checks itself
_LONGEST_NAME = 255  # bytes, of a file name on common file systems
_LONGEST_VALUE, _MOST_NAMES = 60, 8  # shown in a message
_FLAGS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_KINDS = {
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
    "dict_type": "should be a section of keys",
    "dataclass_type": "should be a section of keys",
    "string_too_short": "should not be empty",
    "too_short": "should not be empty",
}
# Errors that no configuration can cause: the annotation wants a Python object.
_OBJECTS = {"is_instance_of", "is_subclass_of", "callable_type", "needs_python_object"}

Problem = tuple[str, str]  # the key and its fault


def _folder_name(name: Any) -> Any:
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise ValueError("should be a name")
    text = str(name)
    control = not text.isprintable()
    if not text.strip() or text in (".", "..") or set(text) & set("/\\") or control:
        raise ValueError("names a folder: not empty, . or .., and without / and \\")
    if len(text.encode()) > _LONGEST_NAME:
        raise ValueError(f"names a folder: at most {_LONGEST_NAME} bytes")
    return name


Name = Annotated[Any, AfterValidator(_folder_name)]


@dataclass(kw_only=True)
class Strict:
    """A section whose keys are all known."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


def missing(remedy: str, existing: str = "") -> Any:
    """Declare a field without a default.

    Args:
        remedy: the setting to type.
        existing: pattern of the files of possible values, below a folder of `paths`:
            `models/ensembles/*/ensemble.json`.
    """
    return field(metadata={"remedy": remedy, "existing": existing})


def check_settings(schema: type, cfg: DictConfig, groups: Path) -> None:
    """Check a configuration against the dataclass of its root.

    Words for flags (yes, no, on, off) become booleans in `cfg`.

    Args:
        schema: the dataclass.
        cfg: composed, not resolved; changed.
        groups: the folder with a subfolder for each group of options.

    Raises:
        InputError: unknown, absent or missing keys, or values of another type: one line for each.
    """
    fields = {f.name: f for f in dataclasses.fields(schema)}
    unknown = [key for key in map(str, cfg) if key not in fields and key != HYDRA]
    problems = [(f"{key}: ", unknown_key(key, cfg)) for key in unknown]
    problems += _absent(cfg, fields, groups)
    if not problems:
        problems += _missing(cfg, schema)
    if not problems:
        problems += _mistyped(cfg, schema)
    if problems:
        raise InputError("\n".join(dict.fromkeys(f"{key}{problem}" for key, problem in problems)))


def unknown_key(key: str, cfg: DictConfig) -> str:
    """The message for an unknown dotted key, with the nearest known one."""
    parent, _, last = key.rpartition(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    while parent and not OmegaConf.is_dict(section):
        parent, _, last = parent.rpartition(".")
        section = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(k) for k in section if k not in (last, HYDRA) and not str(k).startswith("_")]
    near = difflib.get_close_matches(last, known, n=1)
    if near:
        meant = f"{parent}.{near[0]}".lstrip(".")
        return f"there is no such key. Did you mean {meant}?"
    deeper = [name for name in _keys(cfg) if name.rpartition(".")[2] == last and name != key]
    if deeper:
        return f"there is no such key. Did you mean {deeper[0]}?"
    if parent:
        there = "" if "_target_" in section else f"There are {', '.join(known) or 'none'}. "
        return f"there is no such key in {parent}. {there}To add it, say +{key}=..."
    trainer = f"For Lightning's Trainer, say +trainer.{last}=... " if "trainer" in known else ""
    return f"there is no such key. {trainer}There are {', '.join(known)}."


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys, except those behind a reference."""
    for key in cfg if OmegaConf.is_dict(cfg) else ():
        if key != HYDRA:
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
                yield from _keys(cfg[key], f"{prefix}{key}.")


def _absent(cfg: DictConfig, fields: Mapping[str, Any], groups: Path) -> Iterator[Problem]:
    """Deleted keys, and groups without an option."""
    for key in fields:
        if key in cfg or OmegaConf.is_missing(cfg, key) or not _is_required(fields[key]):
            continue
        if (groups / key).is_dir():
            yield f"{key}=null: ", list_options(key, groups)
        else:
            yield f"~{key}: ", "this key cannot be left out."


def list_options(group: str, groups: Path) -> str:
    """List the options of a group, from the folder of all groups."""
    options = sorted(file.stem for file in (groups / group).glob("*.yaml"))
    return f"choose one: {', '.join(f'{group}={option}' for option in options)}."


def _is_required(one: Any) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _missing(cfg: DictConfig, schema: type, prefix: str = "") -> Iterator[Problem]:
    """Keys whose value is ???."""
    for one in dataclasses.fields(schema):
        if OmegaConf.is_missing(cfg, one.name):
            if _is_required(one):
                remedy = one.metadata.get("remedy", f"say {prefix}{one.name}=...")
                there = _existing(cfg, one.metadata.get("existing", ""))
                yield f"{prefix}{one.name} is missing: ", f"{remedy}{there}."
        elif isinstance(one.type, type) and dataclasses.is_dataclass(one.type):
            section = cfg[one.name]
            if isinstance(section, DictConfig):
                yield from _missing(section, one.type, f"{one.name}.")


def _existing(cfg: DictConfig, pattern: str) -> str:
    """The names of possible values, as the end of a message."""
    if not pattern:
        return ""
    key, folder, below = pattern.split("/", 2)
    root = Path(str(cfg.paths[key])) / folder
    names = sorted({file.relative_to(root).parts[0] for file in root.glob(below)})
    if not names:
        return f" (there is none in {root} yet)"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f" (there are {', '.join(names[:_MOST_NAMES])}{more})"


def _mistyped(cfg: DictConfig, schema: type) -> Iterator[Problem]:
    unresolved: dict[str, str] = {}
    wrong: list[Problem] = []
    derived: list[Problem] = []  # of keys that refer to others
    for one in dataclasses.fields(schema):
        if one.name not in cfg:  # absent or missing, and need not be there
            continue
        try:
            value = to_plain(cfg[one.name])
        except InterpolationToMissingValueError:
            continue  # of a key that need not be there: others are reported above
        except OmegaConfBaseException as error:
            first = f"{str(error).splitlines()[0]}."
            unresolved[first] = one.name
            continue
        found = derived if OmegaConf.is_interpolation(cfg, one.name) else wrong
        found += check_value(cfg, (one.name,), value, one.type)
    # Unresolved values often follow from the other problems.
    yield from wrong or derived or ((f"{key}: ", first) for first, key in unresolved.items())


def check_value(
    cfg: DictConfig, path: tuple[str | int, ...], value: Any, kind: Any
) -> list[Problem]:
    """Check the plain value at `path` of `cfg` against an annotation.

    A word for a flag becomes a boolean in `cfg`.
    """
    wrong: dict[tuple[str | int, ...], list[str]] = {}
    for error in _errors(value, kind):
        place, found = _locate(value, error["loc"])
        if error["type"].startswith("missing"):
            place = (*place, error["loc"][-1])
        if error["type"] == "bool_type" and str(found).lower() in _FLAGS:
            _parent(cfg, path + place)[(path + place)[-1]] = _FLAGS[str(found).lower()]
            return check_value(
                cfg, path, to_plain(_parent(cfg, path)[path[-1]] if path else cfg), kind
            )
        wrong.setdefault(place, []).append(_describe(error, path + place, cfg))
    problems: list[Problem] = []
    derived: list[Problem] = []
    for place, reasons in wrong.items():
        if any(other[: len(place)] == place for other in wrong if other != place):
            continue  # another member of a union; the deeper one is closer to it
        _, found = _locate(value, place)
        shown = _shown(found)
        if place == () and type(None) in typing.get_args(kind):
            reasons.append("null")
        first, *others = dict.fromkeys(reasons)
        said = " or ".join([first, *(one.removeprefix("should be ") for one in others)])
        key = ".".join(map(str, path + place))
        has_value = first != "is absent" and not first.startswith("there is no such key")
        subject = f"{key}={shown}: " if has_value else f"{key}: "
        parent, last = _parent(cfg, path + place), (path + place)[-1]
        refers = last in parent and OmegaConf.is_interpolation(parent, last)
        (derived if refers else problems).append(
            (subject, said if said.endswith(("?", ".")) else f"{said}.")
        )
    return problems or derived


def _parent(cfg: Any, path: Sequence[str | int]) -> Any:
    """The container that holds the last key of a path."""
    for part in path[:-1]:
        cfg = cfg[part]
    return cfg


def _errors(value: Any, kind: Any) -> list[Any]:
    """Pydantic's errors; none for an annotation that describes no data."""
    try:
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        own = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        adapter = TypeAdapter(kind) if own else TypeAdapter(kind, config=config)
    except (PydanticUserError, PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return []
    try:
        # As JSON, whose kinds are those of YAML: lists are tuples as well, but "1" is no number.
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        return [one for one in errors if one["type"] not in _OBJECTS]
    return []


def _describe(error: Any, path: tuple[str | int, ...], cfg: DictConfig) -> str:
    """The message for one error of Pydantic."""
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return unknown_key(".".join(map(str, path)), cfg)
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return "is absent"
    if error["type"] == "list_type":
        return f"should be a list, {'.'.join(map(str, path))}=[...]"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    message = message.replace("greater than or equal to", "at least").replace("'", "")
    return _KINDS.get(error["type"], message.replace("less than or equal to", "at most"))


def _locate(value: Any, location: Sequence[str | int]) -> tuple[tuple[str | int, ...], Any]:
    """The part of a location inside the value (the rest names union members), and its value."""
    place: list[str | int] = []
    for part in location:
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
            place.append(part)
    return tuple(place), value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def to_plain(value: Any, *, resolve: bool = True) -> Any:
    """A part of a configuration as dicts, lists and values."""
    return OmegaConf.to_container(value, resolve=resolve) if OmegaConf.is_config(value) else value


def check_arguments(cfg: DictConfig) -> None:
    """Check every section with a `_target_` against the signature of its constructor.

    Keys that refer to others are left out: the others are checked. Imports the constructors.

    Args:
        cfg: composed, not resolved; words for flags become booleans in it.

    Raises:
        InputError: a constructor that does not exist, an argument that it does not take, or a value
            of another type.
    """
    raw = to_plain(cfg, resolve=False)
    raw.pop(HYDRA, None)
    problems = list(_sections(cfg, (), raw))
    if problems:
        raise InputError("\n".join(dict.fromkeys(f"{key}{problem}" for key, problem in problems)))


def _sections(cfg: DictConfig, path: tuple[str | int, ...], raw: Any) -> Iterator[Problem]:
    if isinstance(raw, dict):
        target = raw.get("_target_")
        if isinstance(target, str) and "${" not in target:
            yield from _check_constructor(cfg, path, raw, target)
        for name, value in raw.items():
            yield from _sections(cfg, (*path, name), value)
    elif isinstance(raw, list):
        for number, value in enumerate(raw):
            yield from _sections(cfg, (*path, number), value)


def _check_constructor(
    cfg: DictConfig, path: tuple[str | int, ...], raw: dict[Any, Any], target: str
) -> Iterator[Problem]:
    key = ".".join(map(str, path))
    try:
        constructor = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        yield f"{key}._target_={target}: ", f"cannot be imported ({error})."
        return
    try:
        parameters = constructor_parameters(constructor)
    except (ValueError, TypeError):
        return  # compiled code, or nothing to call
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in raw.items():
        if str(name).startswith("_") or _is_unresolved(value):
            continue
        if name not in parameters:
            if not takes_any:
                near = difflib.get_close_matches(str(name), list(parameters), n=1)
                taken = ", ".join(parameters)
                meant = f"Did you mean {key}.{near[0]}?" if near else f"It takes {taken}."
                yield f"{key}.{name}: ", f"{target} has no such argument. {meant}"
            continue
        default = parameters[name].default
        if type(value) is type(default) and value == default:
            continue  # a default may be of another kind than is declared
        kind = _annotation(constructor, parameters[name])
        if kind is not None:
            yield from check_value(cfg, (*path, name), value, kind)


def _is_unresolved(value: Any) -> bool:
    """Whether a value is still a reference, a section to be instantiated, or missing."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_unresolved, value.values()))
    if isinstance(value, list):
        return any(map(_is_unresolved, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _annotation(constructor: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter, else the type of its default; None without either."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is inspect.Parameter.empty:
        if isinstance(default, bool):
            return bool
        return float | None if isinstance(default, int | float) else None
    own = constructor.__init__ if inspect.isclass(constructor) else constructor
    names = vars(sys.modules[own.__module__])
    alone = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(alone, names, include_extras=True)["it"]
    except (NameError, TypeError, AttributeError):
        return None  # names that exist for type checkers only
