"""Errors that the user can mend, as one message without a traceback."""

import contextlib
import dataclasses
import errno
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from rsna_bcd._checks import choices, unknown_key
from rsna_bcd.errors import InputError
from rsna_bcd.settings import COMMANDS

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in the working tree, inside it once installed from a wheel.
CONF = str(next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir()))

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


@contextlib.contextmanager
def errors_as_messages(name: str, go_on: str = "") -> Iterator[None]:
    """End the process with one message where the user can mend it; else let the error pass.

    Args:
        name: of the command.
        go_on: how to resume what a full disk stopped.
    """
    try:
        yield
    except OverrideParseException as error:
        if "=" not in error.override:
            sys.exit(
                f"error: {error.override!r} is no setting. Settings are given as key=value: "
                f"python -m rsna_bcd.{name} --help shows them."
            )
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space" if full else "Check paths.data=..."
        sys.exit(f"error: {error}. {remedy}, or choose another paths.output=... {go_on}".rstrip())


def _unchosen(word: str) -> str | None:
    """The group that an argument leaves without a choice."""
    group, _, choice = word.partition("=")
    return group if choice.lower() in ("null", "") and (Path(CONF) / group).is_dir() else None


def _quoted(override: str) -> str:
    """An override as one types it so that Hydra reads its value as it is."""
    key, _, value = override.partition("=")
    escaped = value.strip("'\"").replace("'", "\\'")
    quoted = f"{key}='{escaped}'"
    is_plain = not set(quoted) & set('"$`!') and "\\\\" not in quoted
    return f'"{quoted}"' if is_plain else shlex.quote(quoted)


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


def usage(name: str) -> str:
    """What `--help` prints: the YAML of a command with its comments, and the options of its groups.

    Hydra's own help takes two seconds.

    Args:
        name: of the command.
    """
    settings, _, _ = (Path(CONF) / f"{name}.yaml").read_text(encoding="utf-8").partition("\nhydra:")
    groups = re.findall(r"^  - (\w+): ", settings, re.MULTILINE)
    options = {
        group: sorted(f.stem for f in (Path(CONF) / group).glob("*.yaml")) for group in groups
    }
    lines = [f"  {group}={' | '.join(names)}" for group, names in options.items() if names]
    return (
        f"{settings.rstrip()}\n\n# Options, as group=option:\n" + "\n".join(lines) + "\n\n"
        "# Any key above is set as key=value; --cfg job shows the result, -m key=1,2 sweeps,\n"
        "# --hydra-help lists Hydra's own flags."
    )
