"""Heads on stored features: an image is encoded once, and a head is trained within seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rsna_bcd.data.dataset import CropDataset, Crops
from rsna_bcd.data.sampler import ShardSampler
from rsna_bcd.files import atomic_file
from rsna_bcd.imaging.crops import read_crops
from rsna_bcd.models.aggregators import Attention
from rsna_bcd.models.prediction import plain_float32, to_input
from rsna_bcd.tables.views import view_number

_FILE = "features.npz"
_EPOCHS, _BATCH, _RATE, _DROPOUT = 5, 32, 1e-3, 0.2  # conf/experiment/finetune_breast_head.yaml


def extract_features(
    network: Any, data: Any, folder: Path, prepared: Path, device: str
) -> dict[str, Any]:
    """Features of all images of a run, training ones included; stored in its folder.

    Args:
        network: of single images, without metadata.
        data: the run's data module.
        folder: of the run.
        prepared: folder of the crops.
        device: of the network.

    Returns:
        `features` float32 (N, C) in the order of `image_id` (N,); `weight` (C,) and `bias` () of
        the last layer of the network.
    """
    file = folder / _FILE
    if not file.is_file() or file.stat().st_mtime_ns < (folder / "oof.csv").stat().st_mtime_ns:
        images = pd.concat([data.training_images, data.held_out_images], ignore_index=True)
        crops = read_crops(prepared / path for path in images["path"])
        dataset = CropDataset(images, Crops(prepared, None, 0, crops))
        loader = DataLoader(dataset, 64, sampler=ShardSampler(len(images), rank=0, world_size=1))
        features = []
        with torch.inference_mode(), plain_float32(torch.device(device).type):
            for batch in loader:
                encoded = network.encode(to_input(batch["image"].to(device)))
                features.append(encoded.float().cpu().numpy())
        with atomic_file(file) as target:
            np.savez(
                target,
                image_id=images["image_id"].to_numpy(dtype=str),
                features=np.concatenate(features),
                weight=network.head.weight[0].detach().cpu().numpy(),
                bias=network.head.bias[0].detach().cpu().numpy(),
            )
    with np.load(file) as stored:
        return dict(stored)


class _Head(nn.Module):
    """Attention over the images of a breast, then the network's own last layer."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.attention = Attention(len(weight))
        self.dropout = nn.Dropout(_DROPOUT)
        self.last = nn.Linear(len(weight), 1)
        with torch.no_grad():
            self.last.weight.copy_(weight[None])
            self.last.bias.copy_(bias[None])

    def forward(self, bag: dict[str, Tensor]) -> Tensor:
        """Compute logits (B,) of bags of V images: features (B, V, C), and (B, V) each else."""
        pooled = self.attention(bag["features"], bag["mask"], bag["view"], bag["other"])
        logits: Tensor = self.last(self.dropout(pooled))[:, 0]
        return logits


def attention_head(
    stored: dict[str, Any], data: Any, *, other_breast: bool, seed: int
) -> NDArray[np.float64]:
    """Train a head on the training breasts of a run, and predict those that it held out.

    Returns:
        Probabilities, in the order in which the breasts first occur in `data.held_out`.
    """
    torch.manual_seed(seed)
    training = _bags(stored, data.training_images, other_breast)
    held_out = _bags(stored, data.held_out_images, other_breast)
    breasts = data.training_images.drop_duplicates("prediction_id")
    labels = torch.tensor(breasts["label"].to_numpy(np.float32))
    head = _Head(torch.from_numpy(stored["weight"]), torch.tensor(stored["bias"]))
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=0.01)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(labels)).split(_BATCH):
            logits = head({name: tensor[rows] for name, tensor in training.items()})
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head.eval()
    with torch.inference_mode():
        return head(held_out).double().sigmoid().numpy()


def _bags(stored: dict[str, Any], images: pd.DataFrame, other_breast: bool) -> dict[str, Tensor]:
    """The images of each breast side by side, padded; those of the other breast if asked."""
    row = pd.Series(np.arange(len(stored["image_id"])), index=stored["image_id"])
    rows = row.loc[images["image_id"].astype(str)].to_numpy()
    views = images["view"].map(view_number).to_numpy()
    of_patient = images.groupby("patient_id").indices
    of_breast = images.groupby("prediction_id").indices
    breasts = images.drop_duplicates("prediction_id")
    members = []
    for breast, patient in zip(breasts["prediction_id"], breasts["patient_id"], strict=True):
        own = of_breast[breast]
        other = np.setdiff1d(of_patient[patient], own) if other_breast else own[:0]
        members.append((np.concatenate([own, other]), len(own)))
    width = max(len(images_of) for images_of, _ in members)
    shape = (len(members), width)
    bags = {
        "features": torch.zeros(*shape, stored["features"].shape[1]),
        "mask": torch.zeros(shape, dtype=torch.bool),
        "view": torch.zeros(shape, dtype=torch.int64),
        "other": torch.zeros(shape, dtype=torch.bool),
    }
    for at, (images_of, n_own) in enumerate(members):
        n = len(images_of)
        bags["features"][at, :n] = torch.from_numpy(stored["features"][rows[images_of]])
        bags["mask"][at, :n] = True
        bags["view"][at, :n] = torch.from_numpy(views[images_of])
        bags["other"][at, n_own:n] = True
    return bags
