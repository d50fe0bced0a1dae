"""What all stages share with Hydra: where `conf/` is, how errors look, how folders are guarded."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsna_bcd.errors import InputError, difference

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in the working tree, inside it once installed from a wheel.
CONF = str(next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir()))

_RANK = "RSNA_BCD_RANKS_OF"  # in the environment of ranks, see `models.ranks`
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


def stage(
    name: str, go_on: str = ""
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn `run(cfg)` into the `main()` of the stage whose root is `conf/<name>.yaml`.

    Input errors, also Hydra's own, become one message on stderr and exit code 1; anything else
    keeps its traceback. A job of a multirun that fails is reported when the others are done. When
    Ctrl-C or SIGTERM stops it, the exit code is 130 or 143, and `go_on` says how to resume.
    """

    def decorate(run: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
            # argparse refuses overrides on both sides of a flag: `experiment=demo -m fold=0,1`.
            sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in _MULTIRUN)
            command = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(run)
            received: list[signal.Signals] = []
            try:
                with _exit_on_signals(received):
                    command()
            except (InputError, CompactHydraException, OmegaConfBaseException) as error:
                # Hydra wraps what a constructor raises into an account of its own.
                ours = isinstance(error.__cause__, InputError)
                sys.exit(f"error: {error.__cause__ if ours else error}")
            except (KeyboardInterrupt, SystemExit) as error:
                if isinstance(error, SystemExit) and not received:
                    raise
                number = received[0] if received else signal.SIGINT
                if _RANK not in os.environ:  # whose parent says it
                    sys.stderr.write(f"Stopped by {number.name}. {go_on}".rstrip() + "\n")
                sys.exit(128 + number)
            except OSError as error:
                if error.errno not in _MENDABLE:
                    raise
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                remedy = "Free some space" if full else "Check paths.data=..."
                sys.exit(f"error: {error}. {remedy}, or choose another paths.output=... {go_on}")

        return main

    return decorate


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
    try:
        unfinished.write_text(OmegaConf.to_yaml(OmegaConf.create(record)), encoding="utf-8")
        unfinished.replace(record_file)
    finally:
        unfinished.unlink(missing_ok=True)
