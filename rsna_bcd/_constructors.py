"""Whether the sections of a configuration fit the constructors that their `_target_` names."""

import difflib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rsna_bcd._checks import HYDRA, Problem, check_value
from rsna_bcd.errors import InputError


def check_arguments(cfg: DictConfig) -> None:
    """Check every section with a `_target_` against the signature of its constructor.

    Keys that refer to others are left out: the others are checked. Imports the constructors.

    Args:
        cfg: composed, not resolved; words for flags become booleans in it.

    Raises:
        InputError: a constructor that does not exist, an argument that it does not take, or a value
            of another kind.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    raw.pop(HYDRA, None)
    problems = list(_sections(cfg, (), raw))
    if problems:
        raise InputError("\n".join(dict.fromkeys(f"{key}{what}" for key, what in problems)))


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
        parameters = inspect.signature(constructor).parameters
    except (ValueError, TypeError):
        return  # compiled code, or nothing to call
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in raw.items():
        if str(name).startswith("_") or _refers(value):
            continue
        if name not in parameters:
            if not takes_any:
                near = difflib.get_close_matches(str(name), list(parameters), n=1)
                taken = ", ".join(one for one in parameters if one != "self")
                meant = f"Did you mean {key}.{near[0]}?" if near else f"It takes {taken}."
                yield f"{key}.{name}: ", f"{target} has no such argument. {meant}"
            continue
        default = parameters[name].default
        if type(value) is type(default) and value == default:
            continue  # a default may be of another kind than is declared
        kind = _annotation(constructor, parameters[name])
        if kind is not None:
            yield from check_value(cfg, (*path, name), value, kind)


def _refers(value: Any) -> bool:
    """Whether a value is not yet there: it refers to another, is made of a section, or missing."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_refers, value.values()))
    if isinstance(value, list):
        return any(map(_refers, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _annotation(constructor: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter, else the kind of its default; None where there is neither."""
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
