"""Maps of networks that detect brightness are largest at a bright patch; breasts by their fold."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT as CROP_HEIGHT
from fabricated_crops import WIDTH as CROP_WIDTH
from fabricated_crops import blank_path, save_crops
from fabricated_networks import TinyBreasts, TinyImages
from hydra.utils import instantiate
from saved_runs import save_run
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.saliency import Explainer, saliency_maps
from rsna_bcd.models.aggregators import (
    Aggregator,
    Attention,
    Max,
    MaxProbability,
    Mean,
    MeanProbability,
)
from rsna_bcd.models.breast import BreastClassifier, SideBySide
from rsna_bcd.models.encoder import Pooling
from rsna_bcd.models.global_local import GlobalLocal
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import Batch, outputs_of
from rsna_bcd.scoring.ensemble import Ensemble, Member
from rsna_bcd.tables.predictions import OOF_COLUMNS

HEIGHT, WIDTH, CELL = 128, 64, 16
ROW, COLUMN = 5, 2  # of the cell with the patch, of 8 x 4
AGGREGATORS: list[Callable[[int], Aggregator]] = [
    Mean, Max, MeanProbability, MaxProbability, Attention,
]  # fmt: skip


class Brightness(nn.Module):
    """In the place of a backbone: how bright cells of 16 x 16 are, and as often smaller cells."""

    feature_info = (
        {"module": "fine", "reduction": 8},
        {"module": "cells", "reduction": 16},
        {"module": "coarse", "reduction": 32},
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


def looks_for_brightness(network: Any) -> Any:
    """Put it into one of our networks."""
    network.backbone = Brightness(network.width)
    network.mean.fill_(0)
    network.std.fill_(1)
    with torch.no_grad():
        network.head.weight.fill_(1)
        network.head.bias.fill_(-2)
    return network.eval()


def image_network(pooling: Pooling = "avg") -> ImageClassifier:
    network: ImageClassifier = looks_for_brightness(
        ImageClassifier("test_resnet", pretrained=False, pooling=pooling)
    )
    return network


def breast_network(aggregator: Callable[[int], Aggregator]) -> BreastClassifier:
    torch.manual_seed(0)
    network: BreastClassifier = looks_for_brightness(
        BreastClassifier("test_resnet", aggregator, pretrained=False)
    )
    return network


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Dim tissue (*shape, 1, H, W), uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 60, (*shape, 1, HEIGHT, WIDTH), generator=generator).byte()


def planted(images: Tensor) -> Tensor:
    """The same with a bright patch."""
    images = images.clone()
    rows, columns = slice(ROW * CELL, (ROW + 1) * CELL), slice(COLUMN * CELL, (COLUMN + 1) * CELL)
    images[..., rows, columns] = 250
    return images


def largest(one: Tensor) -> tuple[int, int]:
    """Row and column of the largest cell."""
    return divmod(int(one.argmax()), one.shape[-1])


def breasts() -> Batch:
    """MLO with the patch, CC, padding, MLO of the other breast; the other way round in the next."""
    image = pictures(2, 4)
    image[0, 0], image[1, 1] = planted(image[0, 0]), planted(image[1, 1])
    return {
        "image": image,
        "mask": torch.tensor([[True, True, False, True]] * 2),
        "view": torch.tensor([[1, 0, 2, 1]] * 2),
        "other": torch.tensor([[False, False, False, True]] * 2),
    }


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_map_of_an_image_is_largest_at_the_patch(pooling: Pooling) -> None:
    maps = saliency_maps(image_network(pooling), {"image": planted(pictures(3))})
    assert maps.shape == (3, HEIGHT // CELL, WIDTH // CELL)
    assert [largest(one) for one in maps] == [(ROW, COLUMN)] * 3
    assert (maps >= 0).all()


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_map_adds_up_to_the_logit(pooling: Pooling) -> None:
    """Where twice the activations give twice the logit, less the bias (Euler); not of Grad-CAM."""
    network = image_network(pooling)
    images = planted(pictures(2))
    logits = outputs_of(network, {"image": images})["logit"].detach()
    maps = saliency_maps(network, {"image": images})
    assert torch.allclose(maps.sum(dim=(1, 2)) - 2, logits, rtol=1e-5)


def test_map_has_no_negative_values() -> None:
    network = image_network()
    with torch.no_grad():
        network.head.weight.fill_(-1)
    assert (saliency_maps(network, {"image": pictures(1)}) == 0).all()


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("dense", [False, True])
def test_maps_of_a_breast_are_largest_in_the_image_with_the_patch(
    aggregator: Callable[[int], Aggregator], dense: bool
) -> None:
    network = breast_network(aggregator)
    network.dense = dense
    maps = saliency_maps(network, breasts())
    assert maps.shape == (2, 4, HEIGHT // CELL, WIDTH // CELL)
    for breast, place in ((0, 0), (1, 1)):
        assert largest(maps[breast, place]) == (ROW, COLUMN)
        assert maps[breast, place].max() == maps[breast][:2].max()
        assert maps[breast, place].max() > 2 * maps[breast, 1 - place].max()
    assert maps[:, 2].isnan().all()  # padding
    assert maps[:, 3].isnan().all() != network.aggregator.context  # the other breast
    assert not maps[:, :2].isnan().any()


def test_map_agrees_with_gradient_times_pixel() -> None:
    """Through attention, too: the backbone is linear where pixels are positive."""
    network = breast_network(Attention)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(network.head.weight.shape))
    batch = breasts()
    image = batch["image"].float() / 255
    image.requires_grad_()
    outputs_of(network, batch, image)["logit"].sum().backward()
    assert image.grad is not None
    expected = nn.functional.avg_pool2d((image * image.grad).detach()[:, :2, 0], CELL).relu()
    maps = saliency_maps(network, batch)[:, :2]
    assert maps.max() > 0
    assert torch.allclose(maps, expected * CELL**2, rtol=1e-3, atol=1e-4 * float(maps.max()))


def test_map_of_a_late_aggregator_is_of_the_image_alone() -> None:
    network = breast_network(MeanProbability)
    with torch.no_grad():
        network.head.weight.fill_(1e-3)
    batch = breasts()
    maps = saliency_maps(network, batch)
    assert isinstance(network.aggregator, MeanProbability)
    alone = image_network()
    alone.head.load_state_dict(network.head.state_dict())
    assert torch.allclose(maps[0, :2], saliency_maps(alone, {"image": batch["image"][0, :2]}))


def test_maps_of_a_breast_do_not_depend_on_the_batch() -> None:
    network = breast_network(Mean)
    batch = breasts()
    alone = saliency_maps(network, {name: tensor[1:] for name, tensor in batch.items()})
    assert torch.allclose(saliency_maps(network, batch)[1:], alone, equal_nan=True, atol=1e-6)


@pytest.mark.parametrize("width", [WIDTH, WIDTH - 8])  # of two, 7 cells: one lies on the seam
def test_map_of_side_by_side_is_split(width: int) -> None:
    network = looks_for_brightness(SideBySide("test_resnet", pretrained=False))
    batch = breasts()
    batch["image"] = batch["image"][..., :width]
    batch["mask"][1, 0] = False  # the second breast has no MLO
    maps = saliency_maps(network, batch)
    assert maps.shape == (2, 4, HEIGHT // CELL, 4)
    assert largest(maps[0, 0]) == (ROW, COLUMN)
    assert largest(maps[1, 1]) == (ROW, COLUMN)
    assert maps[0, 0].max() > 2 * maps[0, 1].max()
    assert maps[0, 2:].isnan().all()
    assert maps[1, [0, 2, 3]].isnan().all()


def test_map_of_global_local_is_its_saliency() -> None:
    network = GlobalLocal(
        "test_efficientnet", "test_resnet", pretrained=False, patch=32, n_patches=2, downscale=2
    )
    looking = network.global_encoder
    looking.backbone = Brightness(looking.width)  # cells of 32 of the whole image, halved: 64
    looking.mean.fill_(0)
    looking.std.fill_(1)
    with torch.no_grad():
        network.saliency.weight.fill_(1)
        nn.init.constant_(network.saliency.get_parameter("bias"), -3)
    images = planted(pictures(1))
    maps = saliency_maps(network.eval(), {"image": images})
    whole = nn.functional.avg_pool2d(images.float() / 255, 64)[:, 0]
    assert torch.allclose(maps, (looking.width * whole - 3).sigmoid(), atol=1e-5)


def test_map_of_other_networks_is_gradient_times_pixel() -> None:
    network = TinyImages(2).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.weight.view(-1)[: 16 * 8].view(16, 8)[2 * ROW, 2 * COLUMN] = 1
    batch = {"image": pictures(1), "metadata": torch.zeros(1, 2)}
    one = saliency_maps(network, batch)[0]
    assert one.shape == (HEIGHT // CELL, WIDTH // CELL)
    assert largest(one) == (ROW, COLUMN)
    assert (one > 0).sum() == 1
    with torch.no_grad():
        added = outputs_of(network, batch)["logit"] - network.head.bias
    assert one.sum() * CELL**2 == pytest.approx(float(added), rel=1e-5)
    assert saliency_maps(TinyBreasts().eval(), breasts()).shape == (2, 4, 8, 4)


@pytest.mark.parametrize("network", [image_network, lambda: TinyImages(0).eval()])
def test_map_with_tta_is_the_mean(network: Callable[[], Any]) -> None:
    made = network()
    batch = {"image": planted(pictures(1)), "metadata": torch.zeros(1, 0)}
    mirrored = {**batch, "image": batch["image"].flip(-1)}
    plain, of_mirrored = saliency_maps(made, batch), saliency_maps(made, mirrored)
    expected = (plain + of_mirrored.flip(-1)) / 2
    assert torch.allclose(saliency_maps(made, batch, "hflip"), expected, atol=1e-7)


def test_map_leaves_the_network_unchanged() -> None:
    network = ImageClassifier("test_resnet", pretrained=False).eval()
    parameter = next(network.parameters())
    parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    saliency_maps(network, {"image": pictures(2)}, "hflip")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(p.grad is None for p in network.parameters() if p is not parameter)
    assert all(p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize(
    "settings", [{"freeze_backbone": True}, {"grad_checkpointing": True}], ids=str
)
def test_map_ignores_freezing_and_checkpointing(backbone: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = ImageClassifier(backbone, pretrained=False).eval()
    other = ImageClassifier(backbone, pretrained=False, **settings).eval()
    other.load_state_dict(network.state_dict())
    batch = {"image": planted(pictures(2))}
    expected = saliency_maps(network, batch)
    assert expected.max() > 0
    assert torch.equal(saliency_maps(other, batch), expected)
    trained = [p for p in other.backbone.parameters() if p.requires_grad]
    assert bool(trained) != ("freeze_backbone" in settings)
    on = [m for m in other.modules() if getattr(m, "grad_checkpointing", False)]
    assert bool(on) == ("grad_checkpointing" in settings)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_map_does_not_depend_on_the_mode_of_the_caller(mode: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    network = ImageClassifier("test_resnet", pretrained=False).eval()
    expected = saliency_maps(network, {"image": pictures(1)})
    with mode(), torch.autocast("cpu", torch.bfloat16):
        batch = {"image": pictures(1).float() / 255}
        assert torch.equal(saliency_maps(network, batch), expected)


def test_map_refuses_a_network_in_training() -> None:
    with pytest.raises(AssertionError, match="in training"):
        saliency_maps(image_network().train(), {"image": pictures(1)})


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
    """Write a run `tiny` of two folds with networks as initialised."""
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    for fold in (0, 1):
        folder = output / "runs" / "tiny" / f"fold{fold}"
        torch.manual_seed(fold)
        save_run(folder, instantiate(network, pretrained=False), network=network, **settings)
        rows = pd.DataFrame({"patient_id": folds["patient_id"][folds["fold"] == fold]})
        rows = rows.merge(pd.DataFrame({"laterality": ["L", "R"]}), how="cross")
        rows["prediction_id"] = rows["patient_id"] + "_" + rows["laterality"]
        rows = rows.assign(fold=fold, label=0, logit=0.0, probability=0.5, unread=0)
        write_csv(rows[list(OOF_COLUMNS)], folder / "oof.csv")
    return output / "runs" / "tiny"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return save_crops(tmp_path)


def test_explainer_uses_the_fold_that_held_a_breast_out(tmp_path: Path, prepared: Path) -> None:
    run = save_tiny(tmp_path, IMAGES)
    explainer = Explainer(run, prepared)
    folds = pd.read_csv(tmp_path / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    for patient, fold in zip(folds["patient_id"], folds["fold"], strict=True):
        assert explainer.held_out_run(f"{patient}_R").folder == run / f"fold{fold}"
    seen = explainer("3_R")
    table = explainer.images[explainer.images["prediction_id"] == "3_R"]
    assert [image.image_id for image in seen] == table["image_id"].tolist()
    assert [image.view for image in seen] == ["CC", "MLO"]
    network = explainer.held_out_run("3_R").network
    for image, path in zip(seen, table["path"], strict=True):
        crop = read_crop(prepared / path)
        assert np.array_equal(image.crop, crop)
        batch = {"image": torch.from_numpy(crop)[None, None]}
        assert image.saliency is not None
        assert np.array_equal(image.saliency, saliency_maps(network, batch, "hflip")[0].numpy())


def test_explainer_leaves_out_unreadable_images(tmp_path: Path, prepared: Path) -> None:
    blank_path(prepared, 0, 2, 3)  # one of the left breast of patient 0, both of the right one
    explainer = Explainer(save_tiny(tmp_path, IMAGES), prepared)
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
    assert cc.saliency is None  # it was not shown
    shown = [mlo.crop, *([explainer("3_R")[1].crop] if other_breast else [])]
    batch = {
        "image": torch.from_numpy(np.stack(shown))[None, :, None],
        "mask": torch.ones(1, len(shown), dtype=torch.bool),
        "view": torch.ones(1, len(shown), dtype=torch.int64),
        "other": torch.tensor([[False, True]])[:, : len(shown)],
    }
    expected = saliency_maps(explainer.held_out_run("3_L").network, batch, "hflip")[0, 0].numpy()
    assert mlo.saliency is not None
    assert np.array_equal(mlo.saliency, expected)


@pytest.mark.parametrize("network", [IMAGES, BREASTS])
def test_explainer_passes_metadata(tmp_path: Path, prepared: Path, network: dict[str, Any]) -> None:
    run = save_tiny(tmp_path, {**network, "metadata": METADATA}, metadata=METADATA)
    seen = Explainer(run, prepared)("3_L")
    assert all(image.saliency is not None for image in seen)


def test_explainer_refuses_a_breast_without_prediction(tmp_path: Path, prepared: Path) -> None:
    explainer = Explainer(save_tiny(tmp_path, IMAGES), prepared, folds=[0])
    folds = pd.read_csv(tmp_path / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    other = folds["patient_id"][folds["fold"] == 1].iloc[0]
    with pytest.raises(InputError, match=f"no out-of-fold prediction of {other}_L"):
        explainer(f"{other}_L")


def test_explainer_refuses_other_crops(tmp_path: Path, prepared: Path) -> None:
    explainer = Explainer(save_tiny(tmp_path, IMAGES), prepared)
    path = (
        prepared / explainer.images.loc[explainer.images["prediction_id"] == "3_R", "path"].iloc[0]
    )
    cv2.imwrite(str(path), np.zeros((CROP_HEIGHT, 2 * CROP_WIDTH), np.uint8))
    with pytest.raises(InputError, match="64 x 64, and .* was trained on 64 x 32"):
        explainer("3_R")
    (prepared / "train.csv").unlink()
    with pytest.raises(InputError, match="prepare dataset=rsna crop=demo"):
        Explainer(tmp_path / "runs" / "tiny", prepared)


def test_explainer_takes_the_heaviest_member(tmp_path: Path, prepared: Path) -> None:
    run = save_tiny(tmp_path, IMAGES)
    members = tuple(
        Member(name, (0, 1), "rsna", "demo", "mean", "last", weight)
        for name, weight in (("light", 0.5), ("tiny", 2.0), ("late", 2.0))
    )
    ensemble = object.__new__(Ensemble)  # whatever else it holds
    object.__setattr__(ensemble, "members", members)
    explainer = Explainer.for_ensemble(ensemble, tmp_path)
    assert explainer.held_out_run("3_R").folder.parent == run
