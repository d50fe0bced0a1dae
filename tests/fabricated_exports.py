"""Networks to export: never trained, but with something to say about what they see."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from rsna_bcd._records import select_settings, write_record
from rsna_bcd.models.exporting import Input, network_inputs, random_batch
from rsna_bcd.models.prediction import outputs_of


def lively(cfg: DictConfig) -> tuple[Any, tuple[Input, ...]]:
    """Make the network of `train`, and let its logits spread: as it comes, it says .5 of all.

    BatchNorm takes the statistics of what it is shown (enough, or a deep network makes of rounding
    whole digits), the head is scaled.

    Returns:
        The network, in eval mode, and its inputs.
    """
    torch.manual_seed(0)
    network = instantiate(cfg.network).train()
    width = instantiate(cfg.metadata).width if cfg.metadata else 0
    inputs = network_inputs(network, cfg.crop.height, cfg.crop.width, width)
    batch = random_batch(inputs, 24, 2, torch.Generator().manual_seed(1))
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        outputs_of(network, batch)
        logits = outputs_of(network.eval(), batch)["logit"]
        # Of the quartiles: where a few images are far from all others, these are to spread as well.
        low, middle, high = logits.quantile(torch.tensor([0.25, 0.5, 0.75]))
        network.head.weight.div_(high - low)
        network.head.bias.copy_((network.head.bias - middle) / (high - low))
    return network, inputs


def save_network(cfg: DictConfig, network: torch.nn.Module) -> Path:
    """Write what `load_run` reads of a run of `train`.

    Returns:
        The run's folder.
    """
    folder = Path(cfg.run_dir)
    (folder / "checkpoints").mkdir(parents=True)
    state = {f"network.{name}": values for name, values in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")
    keys = (
        "name", "fold", "select", "tta", "network", "crop", "views", "metadata", "breast_rule",
        "negatives_per_positive",
    )  # fmt: skip
    record = select_settings(cfg, *keys)
    record |= {"dataset": {"name": cfg.dataset.name}, "source": "dicom"}
    write_record(folder / "config.yaml", record)
    (folder / "metrics.json").write_text("{}")
    return folder
