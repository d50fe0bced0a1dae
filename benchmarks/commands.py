"""The commands of the package and their configurations, for benchmarks."""

import subprocess
import sys
from typing import Any

from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF


def run_command(name: str, *overrides: str) -> None:
    """Run `python -m rsna_bcd.<name>` to its end; its results go to standard error as well."""
    command = [sys.executable, "-m", f"rsna_bcd.{name}", *overrides]
    subprocess.run(command, check=True, stdout=sys.stderr)


def composed(*overrides: str, command: str = "train") -> Any:
    """The configuration of a command."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, list(overrides))
