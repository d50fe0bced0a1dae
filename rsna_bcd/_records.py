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
from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import write_file
from rsna_bcd.targets import with_current_targets

_VERSION = "rsna_bcd"  # key of a record: the version of this package that wrote it
# The defaults of `prepare`.
_DEFAULT_OPTIONS = {"dataset": "rsna", "crop": "h1024", "folds": "stratified", "paths": "local"}
_PLAIN = r"[A-Za-z_/][A-Za-z0-9_./-]*"  # as a text, Hydra needs no quotes around it,
_KEYWORDS = {"null", "true", "false", "inf", "nan"}  # but for these, in any case


def select_settings(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """The resolved part of `cfg` under `keys`, as plain dicts and lists fit for YAML."""
    return {
        key: OmegaConf.to_container(cfg[key], resolve=True)
        if OmegaConf.is_config(cfg[key])
        else cfg[key]
        for key in keys
    }


def recorded_keys(schema: type) -> list[str]:
    """Names of the fields of a command's schema that are part of its record."""
    return [f.name for f in dataclasses.fields(schema) if f.metadata.get("recorded", True)]


def refuse_detours(cfg: DictConfig, root: str, sections: Iterable[str]) -> None:
    """Check that sections take their settings from the keys of the root, which are recorded.

    Args:
        cfg: composed, not resolved.
        root: name of its YAML, which says what the sections consist of.
        sections: dotted keys.

    Raises:
        InputError: something in them was set, added or deleted.
    """
    ours = OmegaConf.load(Path(CONF) / f"{root}.yaml")
    for section in sections:
        meant, found = (
            OmegaConf.to_container(part) if OmegaConf.is_config(part) else part
            for part in (OmegaConf.select(ours, section), OmegaConf.select(cfg, section))
        )
        for line in difference(meant, found, section):
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
    existing = with_current_targets(OmegaConf.to_container(OmegaConf.load(record_file)))
    wanted: Any = OmegaConf.to_container(
        OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(record)))
    )
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

    Args:
        cfg: composed, not resolved.
        made: the record of the folder of crops; empty if there is none.
    """
    words = ["python", "-m", "rsna_bcd.prepare"]
    for group, usual in _DEFAULT_OPTIONS.items():
        option = selected_option(group, cfg) or usual
        if option != usual or group == "crop":
            words.append(f"{group}={option}")
        words += _overrides(group, load_option(group, option), _container(cfg[group]))
    ours = {"prepared_dir", "folds_csv"}
    usual_train, usual_prepare = _root("train"), _root("prepare")
    words += _overrides("", {k: usual_train[k] for k in ours}, {k: _raw(cfg, k) for k in ours})
    kept = {key: made[key] for key in ("source", "decoders", "png") if key in made}
    words += _overrides("", {key: usual_prepare[key] for key in kept}, kept)
    return shlex.join(words)


def selected_option(group: str, cfg: DictConfig) -> str | None:
    """The selected option of a group; None if it is unknown.

    Args:
        group: of options.
        cfg: composed.
    """
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
    """The content of an option's YAML and of those that it is made of; empty if there is none.

    Args:
        group: of options.
        option: its name.
    """
    found: Any = OmegaConf.create()
    for folder in _sources():
        file = folder / group / f"{option}.yaml"
        if file.is_file():
            own = OmegaConf.load(file)
            assert isinstance(own, DictConfig)
            for base in own.pop("defaults", []):
                if isinstance(base, str) and base != "_self_":
                    found = OmegaConf.merge(found, OmegaConf.create(load_option(group, base)))
            found = OmegaConf.merge(found, own)
            break
    return _container(found)


def _sources() -> list[Path]:
    """The folders of configuration files."""
    if not HydraConfig.initialized():
        return [Path(CONF)]
    sources = HydraConfig.get().runtime.config_sources
    return [Path(one.path) for one in sources if one.schema == "file"] + [Path(CONF)]


def _root(name: str) -> dict[str, Any]:
    return _container(OmegaConf.load(Path(CONF) / f"{name}.yaml"))


def _container(cfg: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _raw(cfg: DictConfig, key: str) -> Any:
    return _container(cfg)[key]


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
    return _completed(existing, wanted, _root(root), "", cfg)


def _completed(
    existing: Mapping[str, Any],
    wanted: Mapping[str, Any],
    root: dict[str, Any],
    path: str,
    cfg: DictConfig | None,
) -> dict[str, Any]:
    filled = dict(existing)
    for key, value in wanted.items():
        name = f"{path}.{key}".lstrip(".")
        if key not in existing:
            if value in _defaults(name, key, wanted, root, path, cfg):
                filled[key] = value
        elif isinstance(existing[key], dict) and isinstance(value, dict):
            filled[key] = _completed(existing[key], value, root, name, cfg)
    return filled


def _defaults(
    name: str,
    key: str,
    section: Mapping[str, Any],
    root: dict[str, Any],
    path: str,
    cfg: DictConfig | None,
) -> list[Any]:
    """Possible meanings of an absent key: the default of its YAML or of its constructor."""
    if name in _BEFORE:
        return [_BEFORE[name]]
    found = []
    yaml: Any = root
    for part in name.split("."):
        yaml = yaml.get(part, "${") if isinstance(yaml, dict) else "${"
    found.append(yaml)
    target = section.get("_target_")
    if path and cfg is not None:
        target = target or OmegaConf.select(cfg, f"{path}._target_")
        option = load_option(path, selected_option(path, cfg)) if "." not in path else {}
        found.append(option.get(path, option).get(key, "${"))
    if isinstance(target, str):
        parameter = inspect.signature(pkgutil.resolve_name(target)).parameters.get(key)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            found.append(list(default) if isinstance(default, tuple) else default)
    known = [one for one in found if not (isinstance(one, str) and one.startswith("${"))]
    return known or [None, {}, []]
