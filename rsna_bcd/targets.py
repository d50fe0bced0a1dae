"""Objects of `_target_`: the arguments they take, and where those of earlier versions are now."""

import inspect
import typing
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# Old dotted path -> new one. Records on disk live longer than modules: entries stay.
OLD_TARGETS: dict[str, str] = {
    "rsna_bcd.tables.images.map_rsna": "rsna_bcd.tables.datasets.map_rsna",
    "rsna_bcd.tables.generic.map_generic": "rsna_bcd.tables.datasets.map_generic",
    "rsna_bcd.models.optimizers.Rates": "rsna_bcd.models.optim.ParameterGroups",
    "rsna_bcd.models.schedules.one_cycle": "rsna_bcd.models.optim.one_cycle",
    "rsna_bcd.models.schedules.warmup_cosine": "rsna_bcd.models.optim.warmup_cosine",
}

OLD_TTA: dict[str, list[str]] = {"none": [], "hflip": ["hflip"]}  # it was one of two names


def read_record(file: Path) -> dict[str, Any]:
    """Read a saved `config.yaml` as plain values, as this version would write it."""
    record: dict[str, Any] = with_current_targets(OmegaConf.to_container(OmegaConf.load(file)))
    return record


def with_current_targets(record: Any) -> Any:
    """Copy a saved record.

    Each `_target_` in it, at any depth, is where the object is now; `tta` is a list.
    """
    if isinstance(record, list):
        return [with_current_targets(value) for value in record]
    if not isinstance(record, dict):
        return record
    current = {key: with_current_targets(value) for key, value in record.items()}
    target = current.get("_target_")
    if isinstance(target, str):
        current["_target_"] = OLD_TARGETS.get(target, target)
    if isinstance(current.get("tta"), str):
        current["tta"] = OLD_TTA.get(current["tta"], current["tta"])
    return current


def constructor_parameters(constructor: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor by name, those of a `**name: Unpack[...]` one by one.

    Theirs have the defaults of a base class, to which they are passed on.

    Raises:
        ValueError: it is compiled code.
        TypeError: it cannot be called.
    """
    found = dict(inspect.signature(constructor).parameters)
    for name, parameter in list(found.items()):
        if typing.get_origin(parameter.annotation) is typing.Unpack:
            del found[name]
            (keys,) = typing.get_args(parameter.annotation)
            bases = getattr(constructor, "__mro__", ())[1:-1]
            inherited = [inspect.signature(base.__init__).parameters for base in bases]
            for key, kind in typing.get_type_hints(keys, include_extras=True).items():
                defaults = [one[key].default for one in inherited if key in one]
                found[key] = inspect.Parameter(
                    key, inspect.Parameter.KEYWORD_ONLY, annotation=kind,
                    default=defaults[0] if defaults else inspect.Parameter.empty,
                )  # fmt: skip
    return found


def takes_argument(constructor: Any, name: str) -> bool:
    """Whether a constructor takes an argument, if only to pass it on to a base class."""
    parameters = constructor_parameters(constructor)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for base in getattr(constructor, "__mro__", ())[1:-1]:
            parameters |= inspect.signature(base.__init__).parameters
    return name in parameters
