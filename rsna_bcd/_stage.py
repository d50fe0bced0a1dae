"""Shared by all commands: `conf/`, the checks before a job, error messages, signals, exit codes."""

import contextlib
import dataclasses
import errno
import os
import pkgutil
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.core.utils import JobReturn
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsna_bcd._validation import check_arguments, check_settings, list_options, unknown_key
from rsna_bcd.errors import InputError
from rsna_bcd.settings import COMMANDS

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in the working tree, inside it once installed from a wheel.
CONF = str(next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir()))

# Failures of the file system that the user can correct, not bugs: their own text names the path.
_CORRECTABLE = {
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip
_RANK = "RSNA_BCD_RANKS_OF"  # in the environment of ranks, see `models.launch`
_FLAGS_WITH_A_VALUE = {
    "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--cfg", "-c",
    "--package", "-p", "--experimental-rerun",
}  # fmt: skip

# For names that are made of a list, `${joined:${members}}`.
OmegaConf.register_new_resolver("joined", lambda parts: "+".join(map(str, parts)), replace=True)


def main(name: str) -> None:
    """Run the command whose settings are in `conf/<name>.yaml` and on the command line.

    The settings are checked before `rsna_bcd.stages.<name>`, which does the work, is imported; that
    takes seconds. Input errors, including Hydra's, become one message on stderr and exit code 1;
    others keep their traceback. A job of a multirun that fails is reported when the others are
    done. After Ctrl-C or SIGTERM the exit code is 130 or 143.
    """

    def checked(cfg: DictConfig) -> None:
        check(name, cfg)  # again: a job of a sweep may run in another process
        run = pkgutil.resolve_name(f"rsna_bcd.stages.{name}:{name}")
        # The time budget includes the start of Python.
        arguments = (process_start(),) if name == "submit" else ()
        # A sweep reports the errors of its jobs at its end; Hydra would say more about one of a
        # single job than its message.
        single = HydraConfig.get().mode is RunMode.RUN
        with errors_as_messages(name) if single else contextlib.nullcontext():
            run(cfg, *arguments)

    checked.__module__ = f"rsna_bcd.{name}"  # Hydra names the job and its log after it
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(_usage(name))
        return
    configure_process(passive=name == "submit")
    # argparse refuses overrides on both sides of a flag: `experiment=demo -m fold=0,1`.
    sys.argv[1:] = _flags_first(sys.argv[1:])
    # Hydra would continue after a check that failed by a bug.
    warnings.filterwarnings("error", "Callback .* raised", UserWarning)
    command = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(checked)
    received: list[signal.Signals] = []
    try:
        with _exit_on_signals(received), errors_as_messages(name):
            command()
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not received:
            raise
        number = received[0] if received else signal.SIGINT
        if _RANK not in os.environ:  # its parent prints this
            stopped = f"Stopped by {number.name}. {COMMANDS[name].resume_hint}"
            sys.stderr.write(stopped.rstrip() + "\n")
        sys.exit(128 + number)


def configure_process(*, passive: bool = False) -> None:
    """Set the environment variables that libraries read at import.

    With `passive`, OpenMP's waiting threads sleep. While they spin, they take the cores from
    processes that decode: on two busy cores, a network took 0.72 s of a core instead of 0.45 s.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it looks for a newer version at import
    if passive:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def check(name: str, cfg: DictConfig) -> None:
    """Check all settings of a command; words for flags (yes, no, on, off) become booleans.

    Raises:
        InputError: unknown or missing keys, or values of another type: one line for each.
    """
    check_settings(COMMANDS[name], cfg, Path(CONF))
    check_arguments(cfg)


class CheckSettings(Callback):
    """Hydra's callback that checks the settings of all jobs before a folder is made for any.

    It also reports each job of a sweep that fails.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single job."""
        name = str(kwargs["config_name"])
        with errors_as_messages(name):
            check(name, config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Report a job of a sweep that failed: at the end, Hydra names the first of them alone."""
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        try:
            _ = job_return.return_value
        except Exception as error:  # noqa: BLE001  (the sweep raises it, with its traceback)
            name = str(config.hydra.job.config_name)
            message = user_message(error, name) or f"{type(error).__name__}: {error}"
            job, folder = config.hydra.job.num, config.hydra.runtime.output_dir
            sys.stderr.write(f"Job {job} of the sweep failed ({folder}): {message}\n")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the jobs of a sweep, and that no two of them write into the same folder."""
        name = str(kwargs["config_name"])
        launcher = str(config.hydra.launcher._target_)
        with errors_as_messages(name):
            if launcher.endswith(".SlurmLauncher") and shutil.which("srun") is None:
                raise InputError(
                    "hydra/launcher=slurm: there is no srun. Start it on the login node of a "
                    "cluster, or leave hydra/launcher= out."
                )
        sweeper = get_class(config.hydra.sweeper._target_)
        if not hasattr(sweeper, "split_arguments"):
            return  # it chooses the jobs one after the other
        loader = GlobalHydra.instance().config_loader()
        arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        parser = OverridesParser.create(config_loader=loader)
        jobs = sweeper.split_arguments(parser.parse_overrides([*arguments, *task]), None)[0]
        first: dict[tuple[str, ...], Sequence[str]] = {}
        with errors_as_messages(name):
            for job in jobs:
                cfg = loader.load_sweep_config(config, list(job))
                check(name, cfg)
                values = [OmegaConf.select(cfg, key) for key in COMMANDS[name].written]
                written = tuple(str(value) for value in values if value is not None)
                if written and written in first:
                    raise InputError(_collision(written, first[written], job))
                first[written] = job


def _collision(written: Sequence[str], one: Sequence[str], other: Sequence[str]) -> str:
    """Explain that two jobs of a sweep write the same files."""
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if not differing:
        return f"The sweep has a job twice ({' '.join(one)}). Give each value once."
    jobs = " and ".join(" ".join(job) for job in zip(*differing, strict=True))
    key = differing[0][0].partition("=")[0]
    return (
        f"Two jobs of the sweep ({jobs}) write the same, {', '.join(written)}. Give each a name of "
        f"its own, in quotes: 'name=..._{key.replace('.', '_')}${{{key}}}'."
    )


@contextlib.contextmanager
def errors_as_messages(name: str) -> Iterator[None]:
    """End the process with one message if the user can correct the error; else raise it."""
    try:
        yield
    except Exception as error:
        message = user_message(error, name)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def user_message(error: Exception, name: str) -> str | None:
    """The message and remedy for an error that the user can correct; None for other errors."""
    if isinstance(error, OverrideParseException):
        key, is_setting, value = error.override.partition("=")
        if not is_setting:
            return (
                f"{error.override!r} is no setting. Settings are given as key=value: "
                f"python -m rsna_bcd.{name} --help shows them."
            )
        escaped = value.strip("'\"").replace("'", "\\'")
        quoted = f"{key}='{escaped}'"
        is_plain = not set(quoted) & set('"$`!') and "\\\\" not in quoted
        return (
            f"Hydra cannot read {error.override!r}. A value with spaces, commas, brackets, quotes "
            "or = needs two pairs of quotes, for the shell and for Hydra: "
            + (f'"{quoted}"' if is_plain else shlex.quote(quoted))
        )
    if isinstance(error, MissingConfigException) and error.options:
        file, options = str(error.missing_cfg_file), ", ".join(error.options)
        of_timm = " Any network of timm is network.backbone=<name>." if "network/" in file else ""
        return f"There is no {file}. Choose one of {options}.{of_timm}"
    if isinstance(error, ConfigCompositionException):
        return _composition_message(error, name)
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _constructor_message(str(error), error.__cause__, name)
    if isinstance(error, InputError | CompactHydraException | OmegaConfBaseException):
        return str(error)
    if isinstance(error, ValueError | TypeError) and (message := _value_message(error, name)):
        return message
    if isinstance(error, OSError) and error.errno in _CORRECTABLE:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space" if full else "Check paths.data=..."
        hint = COMMANDS[name].resume_hint
        return f"{error}. {remedy}, or choose another paths.output=... {hint}".rstrip()
    return None


def _value_message(error: Exception, name: str) -> str | None:
    """The message for an override that Hydra fails at without naming it; None if there is none."""
    for word in sys.argv[1:]:
        group, is_setting, option = word.partition("=")
        if not is_setting or not (Path(CONF) / group).is_dir():
            continue
        # A group without an option, such as logger=null, network=5 or loss=[1].
        override = OverridesParser.create().parse_override(word)
        value: Any = override.value()
        values = [value]
        if override.is_sweep_override():
            values = value.list if override.is_choice_sweep() else []
        options = [one for v in values for one in (v if isinstance(v, list) else [v])]
        if not all(isinstance(one, str | QuotedString) for one in options):
            is_needed = group in {field.name for field in dataclasses.fields(COMMANDS[name])}
            remedy = list_options(group, Path(CONF)) if is_needed else "leave it out."
            return f"{group}={option or 'null'}: {remedy}"
    if str(error).startswith("invalid literal for int()"):
        for word in sys.argv[1:]:  # a key of a list, such as tta.a=2
            full, is_setting, _ = word.lstrip("+~").partition("=")
            if is_setting:
                key, node = _deepest_node(full, name)
                if key != full and OmegaConf.is_list(node):
                    return _node_message(word, key, node)
    return None


def _composition_message(error: ConfigCompositionException, name: str) -> str:
    """The message for an override that does not fit the chosen options."""
    text, cause = " ".join(str(error).split()), error.__cause__
    if unknown := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        key = unknown[1]
        # Of `trainer={max_epoch:3}`: trainer.max_epoch.
        within = str(getattr(cause, "full_key", ""))
        key = within if within.startswith(f"{key}.") else key
        return f"{key}: {unknown_key(key, _composed(name, error))}"
    if merged := re.match(r"Error merging override (?:~|\+*)([^=]+)", text):
        override = text.removeprefix("Error merging override ")
        return _node_message(override, *_deepest_node(merged[1], name))
    return text


def _node_message(override: str, key: str, node: Any) -> str:
    """The message for an override that does not fit the list or section of its key."""
    if OmegaConf.is_list(node):
        return f"{override}: {key} is a list, {key}=[...]."
    return f"{override}: {key} is a section. Set its keys: {', '.join(map(str, node))}."


def _deepest_node(key: str, name: str) -> tuple[str, Any]:
    """The part of a key that the chosen options have, and the node that is there."""
    node: Any = _composed(name)
    place: list[str] = []
    for part in key.split("."):
        if not OmegaConf.is_dict(node) or part not in node:
            break
        place, node = [*place, part], node[part]
    return ".".join(place), node


def _composed(name: str, error: ConfigCompositionException | None = None) -> DictConfig:
    """The configuration of the chosen options, with the section of an unknown key as it was."""
    GlobalHydra.instance().clear()
    words = [re.fullmatch(r"(\w+)=([\w.-]+)(?:,[\w.,-]+)?", word) for word in sys.argv[1:]]
    # Of a sweep, the first option.
    chosen = [f"{w[1]}={w[2]}" for w in words if w is not None and (Path(CONF) / w[1]).is_dir()]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(name, chosen)
    cause = error.__cause__ if error is not None else None
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
        parent = str(cause.full_key).rpartition(".")[0]
        if not parent:
            return cause.parent_node
        OmegaConf.update(cfg, parent, cause.parent_node, merge=False, force_add=True)
    return cfg


def _constructor_message(text: str, cause: BaseException, name: str) -> str:
    """The message for an error of a constructor, without Hydra's `text` around it."""
    if isinstance(cause, InputError):
        return str(cause)
    target, key = (re.findall(p, text) for p in (r"'([^']+)'", r"full_key: (\S+)"))
    kind = " of ".join([type(cause).__name__, *target[:1]])
    parts = "".join(key[:1]).split(".")
    # `classifier.criterion.loss` refers to the user's `loss`.
    roots = {field.name for field in dataclasses.fields(COMMANDS[name])}
    start = max((i for i, part in enumerate(parts) if part in roots), default=0)
    section = ".".join(parts[start:])
    if not section:
        return f"{cause} ({kind}). Change one of its settings."
    return f"{section}: {cause} ({kind}). Change a key of {section}."


def _usage(name: str) -> str:
    """The text of `--help`: the command's YAML with its comments, and the options of its groups.

    Hydra's own help takes two seconds.
    """
    settings, _, _ = (Path(CONF) / f"{name}.yaml").read_text(encoding="utf-8").partition("\nhydra:")
    lines = []
    for group in re.findall(r"^  - (\w+): ", settings, re.MULTILINE):
        if options := sorted(file.stem for file in (Path(CONF) / group).glob("*.yaml")):
            lines.append(f"  {group}={' | '.join(options)}")
    return (
        f"{settings.rstrip()}\n\n# Options, as group=option:\n" + "\n".join(lines) + "\n\n"
        "# Any key above is set as key=value; --cfg job shows the result, -m key=1,2 sweeps,\n"
        "# --hydra-help lists Hydra's own flags."
    )


def _flags_first(words: Sequence[str]) -> list[str]:
    """Order arguments: Hydra's flags, each with its value, before the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        is_flag = takes_value or (word.startswith("-") and "=" not in word) or word.startswith("--")
        (flags if is_flag else overrides).append(word)
        takes_value = word in _FLAGS_WITH_A_VALUE
    return flags + overrides


@contextlib.contextmanager
def _exit_on_signals(received: list[signal.Signals]) -> Iterator[None]:
    """Raise SystemExit on Ctrl-C and SIGTERM, and append the signal to `received`.

    Lightning would exit with 1 at the first, and with 0 at the second.
    """

    def stop(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell makes background jobs ignore Ctrl-C: they still do.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            _replaced[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        _restore_signals()


_replaced: dict[signal.Signals, Any] = {}  # handlers, while a command runs


def _restore_signals() -> None:
    while _replaced:
        signal.signal(*_replaced.popitem())


os.register_at_fork(after_in_child=_restore_signals)  # worker processes end as usual


def process_start() -> float:
    """When this process began, before Python and its imports, on the clock of `time.monotonic`."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():  # not Linux: now
        return time.monotonic()
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])  # proc(5), starttime
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age
