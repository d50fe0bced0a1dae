"""The settings of a command, composed in this process."""

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rsna_bcd._stage import CONF


def composed(command: str, *overrides: str, **options: Any) -> DictConfig:
    """Compose the settings of a command as its command line would."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, list(overrides), **options)
