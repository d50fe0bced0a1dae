"""What all stages share with Hydra: where `conf/` is, how errors look, how folders are guarded."""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsna_bcd._checks import check_settings, choices, unknown_key
from rsna_bcd._constructors import check_arguments
from rsna_bcd.errors import InputError, difference
from rsna_bcd.settings import COMMANDS

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in the working tree, inside it once installed from a wheel.
CONF = str(next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir()))

_INTERRUPTED = 128 + signal.SIGINT  # what shells report
_MULTIRUN = ("-m", "--multirun")
# Failures of the file system that the user mends, not bugs: their own text names the path.
_MENDABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
}


# For names that are made of a list, `${joined:${members}}`.
OmegaConf.register_new_resolver("joined", lambda parts: "+".join(map(str, parts)), replace=True)


class CheckSettings:
    """Hydra's callback that checks the settings of all jobs before a folder is made for any."""

    def on_run_start(self, config: DictConfig, config_name: str | None, **_: Any) -> None:
        """Check a single job."""
        with _errors_as_messages(str(config_name)):
            check(str(config_name), config)

    def on_multirun_start(self, config: DictConfig, config_name: str | None, **_: Any) -> None:
        """Check the jobs of a sweep, and that no two of them write into the same folder."""
        sweeper = get_class(config.hydra.sweeper._target_)
        if not hasattr(sweeper, "split_arguments"):
            return  # one that chooses the jobs as it goes
        loader = GlobalHydra.instance().config_loader()
        given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        given += OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(given)
        first: dict[tuple[str, ...], Sequence[str]] = {}
        with _errors_as_messages(str(config_name)):
            for job in sweeper.split_arguments(overrides, None)[0]:
                cfg = loader.load_sweep_config(config, list(job))
                check(str(config_name), cfg)
                written = _written(str(config_name), cfg)
                if written and written in first:
                    raise InputError(_collision(written, first[written], job))
                first[written] = job


def _written(name: str, cfg: DictConfig) -> tuple[str, ...]:
    """What a job writes, as its command's schema has it; empty for nothing."""
    values = [OmegaConf.select(cfg, key) for key in COMMANDS[name].written]
    return tuple(str(value) for value in values if value is not None)


def _collision(written: Sequence[str], one: Sequence[str], other: Sequence[str]) -> str:
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    jobs = " and ".join(" ".join(job) for job in zip(*differing, strict=True))
    key = differing[0][0].partition("=")[0]
    return (
        f"Two jobs of the sweep ({jobs}) write the same, {', '.join(written)}. Give each a name of "
        f"its own, in quotes: 'name=..._{key.replace('.', '_')}${{{key}}}'."
    )


def check(name: str, cfg: DictConfig) -> None:
    """Check all settings of a command; words for flags (yes, no, on, off) become booleans.

    Args:
        name: of the command.
        cfg: composed; `hydra` may be in it.

    Raises:
        InputError: unknown or missing keys, or values of another kind; a line for each.
    """
    check_settings(COMMANDS[name], cfg, Path(CONF))
    check_arguments(cfg)


@contextlib.contextmanager
def _errors_as_messages(name: str) -> Iterator[None]:
    """End the process with one message where the user can mend it; else let the error pass."""
    try:
        yield
    except OverrideParseException as error:
        sys.exit(
            f"error: Hydra cannot read {error.override!r}. A value with spaces, commas, brackets, "
            "quotes or = needs two pairs of quotes, for the shell and for Hydra: "
            f"{_quoted(error.override)}"
        )
    except ConfigCompositionException as error:
        sys.exit(f"error: {_composition(error, name)}")
    except ValueError as error:  # Hydra's, of a group without a choice: logger=null
        group = next(filter(None, map(_unchosen, sys.argv[1:])), None)
        if not str(error).startswith("Config group override must be") or group is None:
            raise
        is_needed = group in {one.name for one in dataclasses.fields(COMMANDS[name])}
        remedy = choices(group, Path(CONF)) if is_needed else "leave it out."
        sys.exit(f"error: {group}=null: {remedy}")
    except (InputError, CompactHydraException, OmegaConfBaseException) as error:
        # Hydra wraps what a constructor raises into an account of its own.
        ours = isinstance(error.__cause__, InputError)
        sys.exit(f"error: {error.__cause__ if ours else error}")
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        sys.exit(f"error: {error}. Check paths.data=..., or choose another paths.output=...")


def _unchosen(word: str) -> str | None:
    """The group that an argument leaves without a choice."""
    group, _, choice = word.partition("=")
    return group if choice.lower() in ("null", "") and (Path(CONF) / group).is_dir() else None


def _quoted(override: str) -> str:
    """An override as one types it so that Hydra reads its value as it is."""
    key, _, value = override.partition("=")
    escaped = value.strip("'\"").replace("'", "\\'")
    quoted = f"{key}='{escaped}'"
    return shlex.quote(quoted) if set(quoted) & set('"$`\\!') else f'"{quoted}"'


def _composition(error: ConfigCompositionException, name: str) -> str:
    """What is wrong with an override, and the key that may be meant."""
    if isinstance(error, MissingConfigException) and error.options:
        return f"There is no {error.missing_cfg_file}. Choose one of {', '.join(error.options)}."
    said = " ".join(str(error).split())
    unknown = re.match(r"Could not (?:override|delete from config\.) '([^']+)'", said)
    if unknown is None:
        return said
    key = unknown[1]
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(name)
    return f"{key}: {unknown_key(key, cfg)}"


def stage(
    name: str, go_on: str = ""
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn `run(cfg)` into the `main()` of the stage whose root is `conf/<name>.yaml`.

    The settings are checked first. Input errors, also Hydra's own, become one message on stderr and
    exit code 1; anything else keeps its traceback. A job of a multirun that fails is reported when
    the others are done. When the user stops it (Ctrl-C), `go_on` says how to go on.
    """

    def decorate(run: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def checked(cfg: DictConfig) -> None:
            check(name, cfg)  # again: a job of a sweep may run in another process
            run(cfg)

        @functools.wraps(run)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
            # argparse refuses overrides on both sides of a flag: `experiment=demo -m fold=0,1`.
            sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in _MULTIRUN)
            command = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(checked)
            try:
                with _errors_as_messages(name):
                    command()
            except KeyboardInterrupt:
                sys.stderr.write(f"Stopped. {go_on}\n")
                sys.exit(_INTERRUPTED)

        return main

    return decorate


def record_of(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """The resolved part of `cfg` under `keys`, as plain dicts and lists fit for YAML."""
    return {
        key: OmegaConf.to_container(cfg[key], resolve=True)
        if OmegaConf.is_config(cfg[key])
        else cfg[key]
        for key in keys
    }


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


def settle(
    record_file: Path,
    record: dict[str, Any],
    *,
    overwrite: bool,
    remedy: str = "Choose another name",
) -> bool:
    """Check that a folder was made with the settings it is now asked for.

    Args:
        record_file: the `config.yaml` of the folder, present or not.
        record: the settings asked for, plain dicts and lists.
        overwrite: accept a folder made with other settings; the caller makes it afresh.
        remedy: what else one can do; the start of a sentence.

    Returns:
        Whether the folder holds work made with exactly these settings.

    Raises:
        InputError: other settings and not `overwrite`; the message shows the difference.
    """
    if not record_file.exists():
        return False
    existing = OmegaConf.to_container(OmegaConf.load(record_file))
    wanted = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(record))))
    if existing == wanted:
        return True
    if overwrite:
        return False
    differing = "\n".join(f"  {line}" for line in difference(existing, wanted))
    raise InputError(
        f"{record_file.parent} was made with other settings (there -> now):\n{differing}\n"
        f"{remedy}, or make it afresh with overwrite=true."
    )


def write_record(record_file: Path, record: dict[str, Any]) -> None:
    """Write `record` as YAML; the file is either whole or absent."""
    record_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record_file.with_name(f"{record_file.name}.part")
    unfinished.write_text(OmegaConf.to_yaml(OmegaConf.create(record)), encoding="utf-8")
    unfinished.replace(record_file)
