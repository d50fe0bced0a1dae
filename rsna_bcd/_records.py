"""Records of settings beside results, compared with a configuration and the options in `conf/`."""

import dataclasses
import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rsna_bcd._stage import CONF
from rsna_bcd._validation import to_plain
from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import write_file
from rsna_bcd.targets import constructor_parameters, with_current_targets

_VERSION = "rsna_bcd"  # key of a record: the version of this package that wrote it
# The defaults of `prepare`.
_DEFAULT_OPTIONS = {"dataset": "rsna", "crop": "h1024", "folds": "stratified", "paths": "local"}
_PLAIN = r"[A-Za-z_/][A-Za-z0-9_./-]*"  # as a text, Hydra needs no quotes around it,
_KEYWORDS = {"null", "true", "false", "inf", "nan"}  # but for these, in any case


def select_settings(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """The resolved part of `cfg` under `keys`, as plain dicts and lists fit for YAML."""
    return {key: to_plain(cfg[key]) for key in keys}


def recorded_keys(schema: type) -> list[str]:
    """Names of the fields of a command's schema that are part of its record."""
    return [f.name for f in dataclasses.fields(schema) if f.metadata.get("recorded", True)]


def refuse_unrecorded(cfg: DictConfig, root: str, sections: Iterable[str]) -> None:
    """Check that sections (dotted keys) take their settings from root keys, which are recorded.

    Raises:
        InputError: a key of theirs was set, added or deleted, by comparison with the root's YAML.
    """
    yaml = OmegaConf.load(Path(CONF) / f"{root}.yaml")
    for section in sections:
        ours, theirs = (to_plain(OmegaConf.select(c, section), resolve=False) for c in (yaml, cfg))
        for line in difference(ours, theirs, section):
            raise InputError(
                f"{line}: this would not be recorded. Set the key at the root that it refers to."
            )


def check_same_config(
    record_file: Path,
    record: dict[str, Any],
    *,
    overwrite: bool,
    remedy: str = "Choose another name",
    root: str | None = None,
    cfg: DictConfig | None = None,
) -> bool:
    """Check that a folder was made with the settings of this run.

    Args:
        record_file: the `config.yaml` of the folder, present or not.
        record: the settings of this run, plain dicts and lists.
        overwrite: accept a folder made with other settings; the caller makes it from scratch.
        remedy: an alternative; the start of a sentence.
        root: name of the YAML that the settings follow from. Keys that the folder's record lacks,
            because it is older than they are, mean the defaults in it, or those of constructors.
        cfg: the configuration that `record` is from, where the record leaves out a `_target_`.

    Returns:
        Whether the folder holds work made with exactly these settings.

    Raises:
        InputError: other settings and not `overwrite`; the message shows the difference.
    """
    if not record_file.exists():
        return False
    existing = with_current_targets(to_plain(OmegaConf.load(record_file), resolve=False))
    wanted = to_plain(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(record))), resolve=False)
    existing.pop(_VERSION, None)  # another version may resume
    if root is not None:
        existing = with_defaults(existing, wanted, root, cfg)
    if existing == wanted:
        return True
    if overwrite:
        return False
    differing = "\n".join(f"  {line}" for line in difference(existing, wanted))
    raise InputError(
        f"{record_file.parent} was made with other settings (there -> now):\n{differing}\n"
        f"{remedy}, or make it again with overwrite=true."
    )


def write_record(record_file: Path, record: dict[str, Any]) -> None:
    """Write `record` and the version of this package as YAML; the file is whole or absent."""
    noted = {**record, _VERSION: version("rsna_bcd")}
    write_file(record_file, OmegaConf.to_yaml(OmegaConf.create(noted)))


def format_override(value: Any) -> str:
    """Write a value as Hydra reads it on the command line: a text in quotes, unless it is plain."""
    if isinstance(value, list):
        return f"[{','.join(map(format_override, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{format_override(one)}' for key, one in value.items())}}}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        return str(value)
    if re.fullmatch(_PLAIN, value) and value.lower() not in _KEYWORDS:
        return value
    # A backslash stands for itself, unless a quote follows.
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


def prepare_command(cfg: DictConfig, made: Mapping[str, Any]) -> str:
    """The command that makes the crops and folds of a `train` configuration.

    `made` is the record of the folder of crops; empty if there is none.
    """
    words = ["python", "-m", "rsna_bcd.prepare"]
    for group, usual in _DEFAULT_OPTIONS.items():
        option = selected_option(group, cfg) or usual
        if option != usual or group == "crop":
            words.append(f"{group}={option}")
        words += _overrides(group, load_option(group, option), to_plain(cfg[group], resolve=False))
    raw = to_plain(cfg, resolve=False)
    own = {key: raw[key] for key in ("prepared_dir", "folds_csv")}
    kept = {key: made[key] for key in ("source", "decoders", "png") if key in made}
    for root, values in (("train", own), ("prepare", kept)):
        defaults = _root(root)
        words += _overrides("", {key: defaults[key] for key in values}, values)
    return shlex.join(words)


def selected_option(group: str, cfg: DictConfig) -> str | None:
    """The selected option of a group; None if it is unknown."""
    if HydraConfig.initialized():
        option = HydraConfig.get().runtime.choices.get(group)
        if option is not None:
            return str(option)
    name = {"crop": "crop.name", "dataset": "dataset.name", "folds": "folds.strategy"}.get(group)
    option = "local" if name is None else str(OmegaConf.select(cfg, name))
    return option if (Path(CONF) / group / f"{option}.yaml").is_file() else None


def _overrides(prefix: str, usual: Any, value: Any) -> Iterator[str]:
    """The overrides that change one value into another."""
    if prefix == "folds.assign":
        return  # which `train` refuses
    if isinstance(usual, dict) and isinstance(value, dict):
        for key, one in value.items():
            name = f"{prefix}.{key}".lstrip(".")
            if key in usual:
                yield from _overrides(name, usual[key], one)
            else:
                yield f"+{name}={format_override(one)}"
        yield from (f"~{prefix}.{key}" for key in usual if key not in value)
    elif usual != value:
        yield f"{prefix}={format_override(value)}"


def load_option(group: str, option: str | None) -> dict[str, Any]:
    """The content of an option's YAML and of those that it is made of; empty if there is none."""
    found: Any = OmegaConf.create()
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    for folder in (*(Path(one.path) for one in sources if one.schema == "file"), Path(CONF)):
        file = folder / group / f"{option}.yaml"
        if file.is_file():
            own = OmegaConf.load(file)
            assert isinstance(own, DictConfig)
            for base in own.pop("defaults", []):
                if isinstance(base, str) and base != "_self_":
                    found = OmegaConf.merge(found, OmegaConf.create(load_option(group, base)))
            found = OmegaConf.merge(found, own)
            break
    return dict(to_plain(found, resolve=False))


def _root(name: str) -> dict[str, Any]:
    return dict(to_plain(OmegaConf.load(Path(CONF) / f"{name}.yaml"), resolve=False))


# Keys whose absence from an older record does not mean today's default.
_BEFORE = {"crop.algorithm": 1}


def with_defaults(
    existing: Mapping[str, Any], wanted: Mapping[str, Any], root: str, cfg: DictConfig | None = None
) -> dict[str, Any]:
    """Give a record the defaults of keys that it lacks: it is older than they are.

    Args:
        existing: the record.
        wanted: the same of a configuration: only its keys are filled in.
        root: name of the YAML that both follow from.
        cfg: the configuration, if `wanted` leaves out a `_target_`.
    """
    yaml = _root(root)

    def complete(existing: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> dict:
        filled = dict(existing)
        for key, value in wanted.items():
            if key not in existing:
                if value in _defaults(path, key, wanted, yaml, cfg):
                    filled[key] = value
            elif isinstance(existing[key], dict) and isinstance(value, dict):
                filled[key] = complete(existing[key], value, f"{path}.{key}".lstrip("."))
        return filled

    return complete(existing, wanted, "")


def _defaults(
    path: str, key: str, section: Mapping[str, Any], yaml: Any, cfg: DictConfig | None
) -> list[Any]:
    """Possible meanings of an absent key: the default of its YAML or of its constructor."""
    name = f"{path}.{key}".lstrip(".")
    if name in _BEFORE:
        return [_BEFORE[name]]
    for part in name.split("."):
        yaml = yaml.get(part, "${") if isinstance(yaml, dict) else "${"
    found = [yaml]
    target = section.get("_target_")
    if path and cfg is not None:
        target = target or OmegaConf.select(cfg, f"{path}._target_")
        option = load_option(path, selected_option(path, cfg)) if "." not in path else {}
        found.append(option.get(path, option).get(key, "${"))
    if isinstance(target, str):
        parameter = constructor_parameters(pkgutil.resolve_name(target)).get(key)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            found.append(list(default) if isinstance(default, tuple) else default)
    known = [one for one in found if not (isinstance(one, str) and one.startswith("${"))]
    return known or [None, {}, []]
