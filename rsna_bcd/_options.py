"""Options as they are in `conf/`: how a configuration differs from them, and how one types that."""

import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rsna_bcd._messages import CONF

# What `prepare` takes where nothing else is chosen.
_USUAL = {"dataset": "rsna", "crop": "h1024", "folds": "stratified", "paths": "local"}
_PLAIN = r"[A-Za-z_/][A-Za-z0-9_./-]*"  # as a text, Hydra needs no quotes around it,
_KEYWORDS = {"null", "true", "false", "inf", "nan"}  # but for these, in any case


def hydra_text(value: Any) -> str:
    """Write a value as Hydra reads it on the command line: a text in quotes, unless it is plain."""
    if isinstance(value, list):
        return f"[{','.join(map(hydra_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{hydra_text(one)}' for key, one in value.items())}}}"
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
    """Say how to make the crops and folds that a configuration of `train` asks for.

    Args:
        cfg: composed, not resolved.
        made: the record of the folder of crops, if there is one: how it was begun.
    """
    words = ["python", "-m", "rsna_bcd.prepare"]
    for group, usual in _USUAL.items():
        option = chosen(group, cfg) or usual
        if option != usual or group == "crop":
            words.append(f"{group}={option}")
        words += _overrides(group, option_of(group, option), _container(cfg[group]))
    ours = {"prepared_dir", "folds_csv"}
    usual_train, usual_prepare = _root("train"), _root("prepare")
    words += _overrides("", {k: usual_train[k] for k in ours}, {k: _raw(cfg, k) for k in ours})
    kept = {key: made[key] for key in ("source", "decoders", "png") if key in made}
    words += _overrides("", {key: usual_prepare[key] for key in kept}, kept)
    return shlex.join(words)


def chosen(group: str, cfg: DictConfig) -> str | None:
    """The option of a group that a configuration has; None where that is not known.

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
    """What to type to come from one value to another."""
    if prefix == "folds.assign":
        return  # which `train` refuses
    if isinstance(usual, dict) and isinstance(value, dict):
        for key, one in value.items():
            name = f"{prefix}.{key}".lstrip(".")
            if key in usual:
                yield from _overrides(name, usual[key], one)
            else:
                yield f"+{name}={hydra_text(one)}"
        yield from (f"~{prefix}.{key}" for key in usual if key not in value)
    elif usual != value:
        yield f"{prefix}={hydra_text(value)}"


def option_of(group: str, option: str | None) -> dict[str, Any]:
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
                    found = OmegaConf.merge(found, OmegaConf.create(option_of(group, base)))
            found = OmegaConf.merge(found, own)
            break
    return _container(found)


def _sources() -> list[Path]:
    """Folders that configurations come from."""
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


def completed(
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
    """What a key that is not there may mean: by its YAML, by its constructor; else nothing."""
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
        option = option_of(path, chosen(path, cfg)) if "." not in path else {}
        found.append(option.get(path, option).get(key, "${"))
    if isinstance(target, str):
        parameter = inspect.signature(pkgutil.resolve_name(target)).parameters.get(key)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            found.append(list(default) if isinstance(default, tuple) else default)
    known = [one for one in found if not (isinstance(one, str) and one.startswith("${"))]
    return known or [None, {}, []]
