"""Finished runs of networks that were never trained, for all that reads a run."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from rsna_bcd._records import select_settings, write_record
from rsna_bcd.models.exporting import Input, network_inputs, random_batch
from rsna_bcd.models.prediction import network_outputs

CROP: dict[str, Any] = {
    "_target_": "rsna_bcd.preparation.crop.CropSettings", "name": "demo", "height": 64, "width": 32,
    "box": "breast", "margin": 0.02, "orient": True, "fit": "pad", "algorithm": 2,
}  # fmt: skip
RECORD = {"crop": CROP, "source": "image", "tta": "hflip", "select": "last"}


def save_run(folder: Path, trained: nn.Module, /, **record: Any) -> Path:
    """Write the files of a fold that `load_run` reads.

    Args:
        folder: of the fold.
        trained: its network.
        record: entries besides `RECORD`; `network` has the arguments of its class.
    """
    kind = type(trained)
    target = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
    arguments = record.pop("network", {})
    write_record(folder / "config.yaml", {**RECORD, "network": {**target, **arguments}, **record})
    (folder / "metrics.json").write_text("{}")
    (folder / "checkpoints").mkdir(exist_ok=True)
    state = {f"network.{name}": values for name, values in trained.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")
    return folder


def spread_network(cfg: DictConfig) -> tuple[Any, tuple[Input, ...]]:
    """Make the network of `train`, and spread its logits: untrained ones predict .5 for all images.

    BatchNorm takes the statistics of a batch that is large enough: a deep network amplifies
    rounding to whole digits. The head is scaled.

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
        network_outputs(network, batch)
        logits = network_outputs(network.eval(), batch)["logit"]
        # Of the quartiles, which a few outliers do not move.
        low, middle, high = logits.quantile(torch.tensor([0.25, 0.5, 0.75]))
        network.head.weight.div_(high - low)
        network.head.bias.copy_((network.head.bias - middle) / (high - low))
    return network, inputs


def save_trained(cfg: DictConfig, network: nn.Module) -> Path:
    """Write the files of a run of `train` that `load_run` reads; return its folder."""
    keys = (
        "name", "fold", "select", "tta", "network", "crop", "views", "metadata", "breast_rule",
        "negatives_per_positive",
    )  # fmt: skip
    dataset = {"name": cfg.dataset.name}
    record = select_settings(cfg, *keys)
    return save_run(Path(cfg.run_dir), network, **record, dataset=dataset, source="dicom")
