"""What all stages share with Hydra: where `conf/` is, how errors look, how folders are guarded."""

import contextlib
import fcntl
import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from rsna_bcd._checks import check_settings
from rsna_bcd._constructors import check_arguments
from rsna_bcd._messages import CONF, errors_as_messages, usage
from rsna_bcd._options import completed
from rsna_bcd.errors import InputError, difference
from rsna_bcd.settings import COMMANDS

_RANK = "RSNA_BCD_RANKS_OF"  # in the environment of ranks, see `models.ranks`
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HELP = {"--help", "-h"}
_WITH_A_VALUE = {
    "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--cfg", "-c",
    "--package", "-p", "--experimental-rerun",
}  # fmt: skip
_VERSION = "rsna_bcd"  # key of a record: the version of this package that wrote it

# For names that are made of a list, `${joined:${members}}`.
OmegaConf.register_new_resolver("joined", lambda parts: "+".join(map(str, parts)), replace=True)


class CheckSettings(Callback):
    """Hydra's callback that checks the settings of all jobs before a folder is made for any."""

    def on_run_start(self, config: DictConfig, **how: Any) -> None:
        """Check a single job."""
        name = str(how["config_name"])
        with errors_as_messages(name):
            check(name, config)

    def on_multirun_start(self, config: DictConfig, **how: Any) -> None:
        """Check the jobs of a sweep, and that no two of them write into the same folder."""
        name = str(how["config_name"])
        sweeper = get_class(config.hydra.sweeper._target_)
        if not hasattr(sweeper, "split_arguments"):
            return  # one that chooses the jobs as it goes
        loader = GlobalHydra.instance().config_loader()
        given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        given += task
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(given)
        first: dict[tuple[str, ...], Sequence[str]] = {}
        with errors_as_messages(name):
            for job in sweeper.split_arguments(overrides, None)[0]:
                cfg = loader.load_sweep_config(config, list(job))
                check(name, cfg)
                written = _written(name, cfg)
                if written and written in first:
                    raise InputError(_collision(written, first[written], job))
                first[written] = job


def _written(name: str, cfg: DictConfig) -> tuple[str, ...]:
    """What a job writes, as its command's schema has it; empty for nothing."""
    values = [OmegaConf.select(cfg, key) for key in COMMANDS[name].written]
    return tuple(str(value) for value in values if value is not None)


def _collision(written: Sequence[str], one: Sequence[str], other: Sequence[str]) -> str:
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    if not differing:
        return f"The sweep has a job twice ({' '.join(one)}). Give each value once."
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


def stage(
    name: str, go_on: str = ""
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn `run(cfg)` into the `main()` of the stage whose root is `conf/<name>.yaml`.

    The settings are checked first. Input errors, also Hydra's own, become one message on stderr and
    exit code 1; anything else keeps its traceback. A job of a multirun that fails is reported when
    the others are done. When Ctrl-C or SIGTERM stops it, the exit code is 130 or 143, and `go_on`
    says how to resume.
    """

    def decorate(run: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def checked(cfg: DictConfig) -> None:
            check(name, cfg)  # again: a job of a sweep may run in another process
            run(cfg)

        @functools.wraps(run)
        def main() -> None:
            if _HELP & set(sys.argv[1:]):
                print(usage(name))
                return
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
            # argparse refuses overrides on both sides of a flag: `experiment=demo -m fold=0,1`.
            sys.argv[1:] = _flags_first(sys.argv[1:])
            # Hydra would go on after a check that failed by a bug.
            warnings.filterwarnings("error", "Callback .* raised", UserWarning)
            command = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(checked)
            received: list[signal.Signals] = []
            try:
                with _exit_on_signals(received), errors_as_messages(name, go_on):
                    command()
            except (KeyboardInterrupt, SystemExit) as error:
                if isinstance(error, SystemExit) and not received:
                    raise
                number = received[0] if received else signal.SIGINT
                if _RANK not in os.environ:  # whose parent says it
                    sys.stderr.write(f"Stopped by {number.name}. {go_on}".rstrip() + "\n")
                sys.exit(128 + number)

        return main

    return decorate


def _flags_first(words: Sequence[str]) -> list[str]:
    """Arguments with Hydra's flags, and the values of those that have one, before the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    takes = False
    for word in words:
        is_flag = takes or (word.startswith("-") and "=" not in word) or word.startswith("--")
        (flags if is_flag else overrides).append(word)
        takes = word in _WITH_A_VALUE
    return flags + overrides


@contextmanager
def _exit_on_signals(received: list[signal.Signals]) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end this process as an exception does, and note them.

    Lightning would exit with 1 at the first, and with 0 at the second.
    """

    def stop(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell makes jobs in the background ignore Ctrl-C: they still do.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            _replaced[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        _restore_signals()


_replaced: dict[signal.Signals, Any] = {}


def _restore_signals() -> None:
    while _replaced:
        signal.signal(*_replaced.popitem())


os.register_at_fork(after_in_child=_restore_signals)  # other processes end as they did


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
    root: str | None = None,
    cfg: DictConfig | None = None,
) -> bool:
    """Check that a folder was made with the settings it is now asked for.

    Args:
        record_file: the `config.yaml` of the folder, present or not.
        record: the settings asked for, plain dicts and lists.
        overwrite: accept a folder made with other settings; the caller makes it afresh.
        remedy: what else one can do; the start of a sentence.
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
    existing: Any = OmegaConf.to_container(OmegaConf.load(record_file))
    wanted: Any = OmegaConf.to_container(
        OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(record)))
    )
    existing.pop(_VERSION, None)  # another version may resume
    if root is not None:
        existing = completed(existing, wanted, root, cfg)
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
    """Write `record` and the version of this package as YAML; the file is whole or absent."""
    record_file.parent.mkdir(parents=True, exist_ok=True)
    noted = {**record, _VERSION: version("rsna_bcd")}
    unfinished = record_file.with_name(f"{record_file.name}.part")
    try:
        unfinished.write_text(OmegaConf.to_yaml(OmegaConf.create(noted)), encoding="utf-8")
        unfinished.replace(record_file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Keep other processes out of a folder, until the block or this process ends.

    Args:
        folder: made if it is absent; a file `lock` stays in it.
        remedy: what one can do instead of waiting; the end of a sentence.

    Raises:
        InputError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Opened for writing, as else NFS locks it on this machine only.
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"Another process is at work on {folder}. Wait for it, or {remedy}."
            ) from error
        yield


def process_start() -> float:
    """When this process began, on the clock of `time.monotonic`: before Python, and its imports."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():  # no Linux: from now on
        return time.monotonic()
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])  # proc(5), starttime
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age
