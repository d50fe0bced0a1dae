"""Saliency: maps of networks that detect brightness are largest at a bright patch."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fabricated_crops import HEIGHT as CROP_HEIGHT
from fabricated_crops import WIDTH as CROP_WIDTH
from fabricated_crops import blank_path, save_crops
from fabricated_networks import TinyBreasts, TinyImages
from fabricated_runs import fabricated_ensemble
from hydra.utils import instantiate
from saved_runs import save_run
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.saliency import Explainer, deepest_layer, saliency_maps
from rsna_bcd.models.aggregators import (
    Aggregator,
    Attention,
    Max,
    MaxProbability,
    Mean,
    MeanProbability,
)
from rsna_bcd.models.bilateral import BilateralClassifier
from rsna_bcd.models.breast import BreastClassifier, SideBySide
from rsna_bcd.models.encoder import Pooling
from rsna_bcd.models.global_local import GlobalLocal
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import Batch, network_outputs, to_input, transform
from rsna_bcd.scoring.ensemble import Member
from rsna_bcd.tables.predictions import OOF_COLUMNS

HEIGHT, WIDTH, CELL = 128, 64, 16
ROW, COLUMN = 5, 2  # of the cell with the patch, of 8 x 4
AGGREGATORS: list[Callable[[int], Aggregator]] = [
    Mean, Max, MeanProbability, MaxProbability, Attention,
]  # fmt: skip
POOLINGS: list[Pooling] = ["avg", "max", "gem"]


class Brightness(nn.Module):
    """A backbone with the brightness of cells of 16 x 16, among finer and coarser ones."""

    feature_info = (
        {"module": "fine", "reduction": 8, "num_chs": 1},
        {"module": "cells", "reduction": 16, "num_chs": 1},
        {"module": "coarse", "reduction": 32, "num_chs": 1},
    )

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.AvgPool2d(8)
        self.cells = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
        self.coarse = nn.AvgPool2d(2)
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        """Give (B, width, h, w)."""
        return self.coarse(self.cells(self.fine(images))).expand(-1, self.width, -1, -1)


def with_brightness(encoder: Any) -> Any:
    """Replace the backbone of an encoder, of pixels as they are."""
    encoder.backbone = Brightness(encoder.width)
    encoder.mean.fill_(0)
    encoder.std.fill_(1)
    return encoder


def brightness_network(kind: Any, *arguments: Any, **settings: Any) -> Any:
    """One of our networks whose logit is -2 and the brightness of its images."""
    torch.manual_seed(0)
    network = with_brightness(kind("test_resnet", *arguments, pretrained=False, **settings))
    with torch.no_grad():
        network.head.weight.fill_(1)
        network.head.bias.fill_(-2)
    return network.eval()


def untrained(backbone: str = "test_resnet", **settings: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(backbone, pretrained=False, **settings).eval()


def dim_images(*shape: int) -> Tensor:
    """Dim tissue (*shape, 1, H, W), uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(20, 60, (*shape, 1, HEIGHT, WIDTH), generator=generator).byte()


def with_patch(images: Tensor) -> Tensor:
    """The same with a bright patch."""
    images = images.clone()
    rows, columns = slice(ROW * CELL, (ROW + 1) * CELL), slice(COLUMN * CELL, (COLUMN + 1) * CELL)
    images[..., rows, columns] = 250
    return images


def largest_cell(saliency: Tensor) -> tuple[int, int]:
    """Row and column."""
    return divmod(int(saliency.argmax()), saliency.shape[-1])


def two_breasts() -> Batch:
    """MLO with the patch, CC, padding, MLO of the other breast; in the second CC has the patch."""
    image = dim_images(2, 4)
    image[0, 0], image[1, 1] = with_patch(image[0, 0]), with_patch(image[1, 1])
    return {
        "image": image,
        "mask": torch.tensor([[True, True, False, True]] * 2),
        "view": torch.tensor([[1, 0, 2, 1]] * 2),
        "other": torch.tensor([[False, False, False, True]] * 2),
    }


@pytest.mark.parametrize("pooling", POOLINGS)
def test_saliency_maps_are_largest_at_the_patch_and_add_up_to_the_logit(pooling: Pooling) -> None:
    """They add up where twice the activations give twice the logit, less the bias (Euler)."""
    network = brightness_network(ImageClassifier, pooling=pooling)
    batch = {"image": with_patch(dim_images(3))}
    maps = saliency_maps(network, batch)
    assert maps.shape == (3, HEIGHT // CELL, WIDTH // CELL)
    assert [largest_cell(one) for one in maps] == [(ROW, COLUMN)] * 3
    assert (maps >= 0).all()
    logits = network_outputs(network, batch)["logit"].detach()
    assert torch.allclose(maps.sum(dim=(1, 2)) - 2, logits, rtol=1e-5)
    with torch.no_grad():
        network.head.weight.neg_()
    assert (saliency_maps(network, batch) == 0).all()


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("kind", [BreastClassifier, BilateralClassifier])
@pytest.mark.parametrize("dense", [False, True])
def test_saliency_maps_of_a_breast_are_largest_in_the_image_with_the_patch(
    aggregator: Callable[[int], Aggregator], kind: type[BreastClassifier], dense: bool
) -> None:
    network = brightness_network(kind, aggregator)
    network.dense = dense
    batch = two_breasts()
    maps = saliency_maps(network, batch)
    assert maps.shape == (2, 4, HEIGHT // CELL, WIDTH // CELL)
    for breast, place in ((0, 0), (1, 1)):
        assert largest_cell(maps[breast, place]) == (ROW, COLUMN)
        assert maps[breast, place].max() == maps[breast][:2].max()
        assert maps[breast, place].max() > 2 * maps[breast, 1 - place].max()
    assert maps[:, 2].isnan().all()  # padding
    sees_other = network.aggregator.context or kind is BilateralClassifier
    assert maps[:, 3].isnan().all() != sees_other
    assert not maps[:, :2].isnan().any()
    alone = saliency_maps(network, {name: tensor[1:] for name, tensor in batch.items()})
    assert torch.allclose(maps[1:], alone, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_saliency_maps_agree_with_gradient_times_pixel() -> None:
    """Through attention, too: the backbone is linear where pixels are positive."""
    network = brightness_network(BreastClassifier, Attention)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(network.head.weight.shape))
    batch = two_breasts()
    image = batch["image"].float() / 255
    image.requires_grad_()
    network_outputs(network, batch, image)["logit"].sum().backward()
    assert image.grad is not None
    expected = nn.functional.avg_pool2d((image * image.grad).detach()[:, :2, 0], CELL).relu()
    maps = saliency_maps(network, batch)[:, :2]
    assert maps.max() > 0
    assert torch.allclose(maps, expected * CELL**2, rtol=1e-3, atol=1e-4 * float(maps.max()))


def test_saliency_maps_of_a_late_aggregator_are_those_of_single_images() -> None:
    network = brightness_network(BreastClassifier, MeanProbability)
    with torch.no_grad():
        network.head.weight.fill_(1e-3)
    batch = two_breasts()
    maps = saliency_maps(network, batch)
    assert isinstance(network.aggregator, MeanProbability)
    alone = brightness_network(ImageClassifier)
    alone.head.load_state_dict(network.head.state_dict())
    assert torch.allclose(maps[0, :2], saliency_maps(alone, {"image": batch["image"][0, :2]}))


@pytest.mark.parametrize("width", [WIDTH, WIDTH - 8])  # of two, 7 cells: one lies on the seam
def test_saliency_maps_of_side_by_side_are_split(width: int) -> None:
    network = brightness_network(SideBySide)
    batch = two_breasts()
    batch["image"] = batch["image"][..., :width]
    batch["mask"][1, 0] = False  # the second breast has no MLO
    maps = saliency_maps(network, batch)
    assert maps.shape == (2, 4, HEIGHT // CELL, 4)
    assert largest_cell(maps[0, 0]) == largest_cell(maps[1, 1]) == (ROW, COLUMN)
    assert maps[0, 0].max() > 2 * maps[0, 1].max()
    assert maps[0, 2:].isnan().all()
    assert maps[1, [0, 2, 3]].isnan().all()


def test_saliency_maps_of_global_local_are_its_own() -> None:
    network = GlobalLocal(
        "test_efficientnet", "test_resnet", pretrained=False, patch=32, n_patches=2, downscale=2
    )
    encoder = with_brightness(network.global_encoder)  # cells of 32 of the halved image: 64
    with torch.no_grad():
        network.saliency.weight.fill_(1)
        nn.init.constant_(network.saliency.get_parameter("bias"), -3)
    images = with_patch(dim_images(1))
    maps = saliency_maps(network.eval(), {"image": images})
    mean = nn.functional.avg_pool2d(images.float() / 255, 64)[:, 0]
    assert torch.allclose(maps, (encoder.width * mean - 3).sigmoid(), atol=1e-5)


def test_saliency_maps_of_other_networks_are_gradient_times_pixel() -> None:
    network = TinyImages(2).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.weight.view(-1)[: 16 * 8].view(16, 8)[2 * ROW, 2 * COLUMN] = 1
    batch = {"image": dim_images(1), "metadata": torch.zeros(1, 2)}
    (one,) = saliency_maps(network, batch)
    assert one.shape == (HEIGHT // CELL, WIDTH // CELL)
    assert largest_cell(one) == (ROW, COLUMN)
    assert (one > 0).sum() == 1
    with torch.no_grad():
        added = network_outputs(network, batch)["logit"] - network.head.bias
    assert one.sum() * CELL**2 == pytest.approx(float(added), rel=1e-5)
    assert saliency_maps(TinyBreasts().eval(), two_breasts()).shape == (2, 4, 8, 4)


@pytest.mark.parametrize("network", [untrained, lambda: TinyImages(0).eval()])
@pytest.mark.parametrize("tta", [["hflip"], ["scale_1.25", "both"]], ids=str)
def test_saliency_maps_with_tta_are_the_mean(network: Callable[[], Any], tta: list[str]) -> None:
    made = network()
    batch = {"image": to_input(with_patch(dim_images(1))), "metadata": torch.zeros(1, 0)}
    maps = [saliency_maps(made, batch)]
    for name in tta:
        transformed = saliency_maps(made, {**batch, "image": transform(batch["image"], name)})
        maps.append(transform(transformed, name, back=True))
    expected = torch.stack(maps).mean(dim=0)
    assert torch.allclose(saliency_maps(made, batch, tta), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["vflip", "shift_0.25_0.125", "shift_-0.25_0", "scale_0.75"])
def test_saliency_maps_of_transforms_are_transformed_back(name: str) -> None:
    network, image = brightness_network(ImageClassifier), with_patch(dim_images(1))
    (one,) = saliency_maps(network, {"image": image}, [name])
    assert largest_cell(one) == (ROW, COLUMN)


def test_saliency_maps_leave_the_network_unchanged() -> None:
    network = untrained()
    parameter = next(network.parameters())
    parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    saliency_maps(network, {"image": dim_images(2)}, ["hflip"])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(p.grad is None for p in network.parameters() if p is not parameter)
    assert all(p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize(
    "settings", [{"freeze_backbone": True}, {"grad_checkpointing": True}], ids=str
)
def test_saliency_maps_ignore_freezing_and_checkpointing(
    backbone: str, settings: dict[str, Any]
) -> None:
    network, other = untrained(backbone), untrained(backbone, **settings)
    batch = {"image": with_patch(dim_images(2))}
    expected = saliency_maps(network, batch)
    assert expected.max() > 0
    assert torch.equal(saliency_maps(other, batch), expected)
    trained = [p for p in other.backbone.parameters() if p.requires_grad]
    assert bool(trained) != ("freeze_backbone" in settings)
    on = [m for m in other.modules() if getattr(m, "grad_checkpointing", False)]
    assert bool(on) == ("grad_checkpointing" in settings)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_saliency_maps_do_not_depend_on_the_mode_of_the_caller(mode: Callable[[], Any]) -> None:
    network = untrained()
    expected = saliency_maps(network, {"image": dim_images(1)})
    with mode(), torch.autocast("cpu", torch.bfloat16):
        batch = {"image": dim_images(1).float() / 255}
        assert torch.equal(saliency_maps(network, batch), expected)


IMAGES = {"_target_": "rsna_bcd.models.network.ImageClassifier", "backbone": "test_resnet"}
TRANSFORMER = {
    "_target_": "rsna_bcd.models.aggregators.Transformer", "_partial_": True,
    "width": 16, "depth": 1, "heads": 2,
}  # fmt: skip
BREASTS = {
    "_target_": "rsna_bcd.models.breast.BreastClassifier", "backbone": "test_resnet",
    "aggregator": TRANSFORMER,
}  # fmt: skip
METADATA = {"_target_": "rsna_bcd.tables.metadata.Metadata", "columns": ["site_id"]}


def save_tiny(output: Path, network: dict[str, Any], **settings: Any) -> Path:
    """Write crops, and a run `tiny` of two folds with networks as initialised."""
    save_crops(output)
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    for fold in (0, 1):
        folder = output / "runs" / "tiny" / f"fold{fold}"
        torch.manual_seed(fold)
        save_run(folder, instantiate(network, pretrained=False), network=network, **settings)
        rows = folds.loc[folds["fold"] == fold, ["patient_id"]]
        rows = rows.merge(pd.DataFrame({"laterality": ["L", "R"]}), how="cross")
        rows["prediction_id"] = rows["patient_id"] + "_" + rows["laterality"]
        rows = rows.assign(fold=fold, label=0, logit=0.0, probability=0.5, unread=0)
        write_csv(rows[list(OOF_COLUMNS)], folder / "oof.csv")
    return output / "runs" / "tiny"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return tmp_path / "prepared" / "rsna" / "demo"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_tiny(tmp_path, IMAGES)


@pytest.mark.parametrize("backbone", ["test_vit", "test_mambaout", "test_maxvit"])
def test_saliency_maps_of_transformers_cover_the_image(backbone: str) -> None:
    """Of the tokens of patches, of channels that are last; padding is removed."""
    size = (HEIGHT - 6, WIDTH)
    network = untrained(backbone, image_size=size)
    images = torch.rand(2, 1, *size)
    maps = saliency_maps(network, {"image": images})
    assert maps.shape == (2, HEIGHT // CELL, WIDTH // CELL)
    assert (maps >= 0).all()
    assert maps.amax() > 0
    if backbone == "test_vit":  # after its map there are the mean and a linear layer alone
        features = network.feature_map(images).detach()
        weight = network.head.weight.detach()[..., None, None]
        expected = (features * weight / features[0, 0].numel()).sum(dim=1).relu()
        assert torch.allclose(maps, expected, atol=1e-6)


def test_layer_is_looked_for_once_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    network = untrained(grad_checkpointing=True)
    passes: list[int] = []
    feature_map = network.feature_map

    def counted(image: Tensor) -> Tensor:
        passes.append(len(image))
        return feature_map(image)

    monkeypatch.setattr(network, "feature_map", counted)
    first, second = (deepest_layer(network, (HEIGHT, WIDTH)) for _ in range(2))
    assert first == second
    assert first[0] is not network.last_map
    assert passes == [1]
    deepest_layer(network, (WIDTH, WIDTH))
    assert passes == [1, 1]


class Lists(nn.Sequential):
    """A layer that gives several maps, as those of HRNet."""

    def forward(self, images: Tensor) -> Any:
        """Give a list."""
        return [super().forward(images)]


class LastChannels(nn.Module):
    """A layer with channels last inside a network that gives them first, as of SAM."""

    def forward(self, images: Tensor) -> Tensor:
        """Give (B, h, w, C)."""
        return F.avg_pool2d(images, 16).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("layer", "after", "size"),
    [
        (Lists(nn.AvgPool2d(16)), lambda maps: F.avg_pool2d(maps[0], 2), 32),
        (LastChannels(), lambda maps: F.avg_pool2d(maps.permute(0, 3, 1, 2), 2), 16),
    ],
    ids=["list", "channels last"],
)
def test_saliency_maps_of_layers_that_are_no_plain_map(
    layer: nn.Module, after: Callable[[Any], Tensor], size: int
) -> None:
    network = brightness_network(ImageClassifier, pooling="avg")
    network.backbone.cells = layer

    def forward(images: Tensor) -> Tensor:
        maps: Tensor = after(network.backbone.cells(images))
        return maps.expand(-1, network.width, -1, -1)

    network.backbone.forward = forward
    images = torch.rand(2, 1, HEIGHT, WIDTH)
    maps = saliency_maps(network, {"image": images})
    assert maps.shape == (2, HEIGHT // size, WIDTH // size)
    logits = network(images)["logit"].detach()
    assert torch.allclose(maps.sum(dim=(1, 2)), logits + 2, atol=1e-4)


def test_explainer_uses_the_fold_that_held_a_breast_out(
    run: Path, tmp_path: Path, prepared: Path
) -> None:
    explainer = Explainer(run, prepared)
    folds = pd.read_csv(tmp_path / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    for patient, fold in zip(folds["patient_id"], folds["fold"], strict=True):
        assert explainer.held_out_run(f"{patient}_R").folder == run / f"fold{fold}"
    explained = explainer("3_R")
    table = explainer.images[explainer.images["prediction_id"] == "3_R"]
    assert [image.image_id for image in explained] == table["image_id"].tolist()
    assert [image.view for image in explained] == ["CC", "MLO"]
    network = explainer.held_out_run("3_R").network
    for image, path in zip(explained, table["path"], strict=True):
        crop = read_crop(prepared / path)
        assert np.array_equal(image.crop, crop)
        batch = {"image": torch.from_numpy(crop)[None, None]}
        assert image.saliency is not None
        assert np.array_equal(image.saliency, saliency_maps(network, batch, ["hflip"])[0].numpy())


def test_explainer_leaves_out_unreadable_images(run: Path, prepared: Path) -> None:
    blank_path(prepared, 0, 2, 3)  # one of the left breast of patient 0, both of the right one
    explainer = Explainer(run, prepared)
    assert [image.image_id for image in explainer("0_L")] == ["1"]
    assert explainer("0_R") == []


@pytest.mark.parametrize("other_breast", [False, True])
def test_explainer_takes_a_breast_as_a_whole(
    tmp_path: Path, prepared: Path, other_breast: bool
) -> None:
    views = {
        "_target_": "rsna_bcd.tables.views.Views", "policy": "one_per_view", "order": ["MLO"],
        "other_breast": other_breast,
    }  # fmt: skip
    explainer = Explainer(save_tiny(tmp_path, BREASTS, views=views), prepared)
    cc, mlo = explainer("3_L")
    assert cc.saliency is None  # the network does not take it
    shown = [mlo.crop, *([explainer("3_R")[1].crop] if other_breast else [])]
    batch = {
        "image": torch.from_numpy(np.stack(shown))[None, :, None],
        "mask": torch.ones(1, len(shown), dtype=torch.bool),
        "view": torch.ones(1, len(shown), dtype=torch.int64),
        "other": torch.tensor([[False, True]])[:, : len(shown)],
    }
    expected = saliency_maps(explainer.held_out_run("3_L").network, batch, ["hflip"])[0, 0].numpy()
    assert mlo.saliency is not None
    assert np.array_equal(mlo.saliency, expected)


@pytest.mark.parametrize("network", [IMAGES, BREASTS])
def test_explainer_passes_metadata(tmp_path: Path, prepared: Path, network: dict[str, Any]) -> None:
    run = save_tiny(tmp_path, {**network, "metadata": METADATA}, metadata=METADATA)
    assert all(image.saliency is not None for image in Explainer(run, prepared)("3_L"))


def test_explainer_refuses_other_breasts_and_crops(run: Path, prepared: Path) -> None:
    absent = pd.read_csv(run / "fold1" / "oof.csv")["prediction_id"][0]
    with pytest.raises(InputError, match=f"no out-of-fold prediction of {absent}"):
        Explainer(run, prepared, folds=[0])(absent)
    explainer = Explainer(run, prepared)
    rows = explainer.images[explainer.images["prediction_id"] == "3_R"]
    other_size = np.zeros((CROP_HEIGHT, 2 * CROP_WIDTH), np.uint8)
    cv2.imwrite(str(prepared / rows["path"].iloc[0]), other_size)
    with pytest.raises(InputError, match="64 x 64, and .* was trained on 64 x 32"):
        explainer("3_R")
    (prepared / "train.csv").unlink()
    with pytest.raises(InputError, match="prepare dataset=rsna crop=demo"):
        Explainer(run, prepared)


def test_explainer_takes_the_first_member_of_largest_weight(run: Path, tmp_path: Path) -> None:
    members = tuple(
        Member(name, (0, 1), "rsna", "demo", "mean", "last", weight)
        for name, weight in (("light", 0.5), ("tiny", 2.0), ("late", 2.0))
    )
    ensemble = fabricated_ensemble(members, threshold=0.5, prior=0.1)
    explainer = Explainer.for_ensemble(ensemble, tmp_path)
    assert explainer.held_out_run("3_R").folder.parent == run
