"""Maps of networks made by hand, which look for brightness: the planted patch is where they are."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fabricated_networks import TinyBreasts, TinyImages
from torch import Tensor, nn

from rsna_bcd.inference.saliency import saliency_maps
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
def test_the_map_of_an_image_is_largest_at_the_patch(pooling: Pooling) -> None:
    maps = saliency_maps(image_network(pooling), {"image": planted(pictures(3))})
    assert maps.shape == (3, HEIGHT // CELL, WIDTH // CELL)
    assert [largest(one) for one in maps] == [(ROW, COLUMN)] * 3
    assert (maps >= 0).all()


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
def test_cells_add_up_to_the_logit(pooling: Pooling) -> None:
    """Where twice the activations give twice the logit, less the bias (Euler); not of Grad-CAM."""
    network = image_network(pooling)
    images = planted(pictures(2))
    logits = outputs_of(network, {"image": images})["logit"].detach()
    maps = saliency_maps(network, {"image": images})
    assert torch.allclose(maps.sum(dim=(1, 2)) - 2, logits, rtol=1e-5)


def test_what_speaks_against_cancer_is_cut_off() -> None:
    network = image_network()
    with torch.no_grad():
        network.head.weight.fill_(-1)
    assert (saliency_maps(network, {"image": pictures(1)}) == 0).all()


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("dense", [False, True])
def test_the_maps_of_a_breast_are_largest_in_the_image_with_the_patch(
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


def test_a_cell_adds_what_its_pixels_add() -> None:
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


def test_an_image_of_a_late_network_has_the_map_of_its_own_logit() -> None:
    network = breast_network(MeanProbability)
    with torch.no_grad():
        network.head.weight.fill_(1e-3)
    batch = breasts()
    maps = saliency_maps(network, batch)
    assert isinstance(network.aggregator, MeanProbability)
    alone = image_network()
    alone.head.load_state_dict(network.head.state_dict())
    assert torch.allclose(maps[0, :2], saliency_maps(alone, {"image": batch["image"][0, :2]}))


def test_a_breast_has_its_maps_in_whatever_batch() -> None:
    network = breast_network(Mean)
    batch = breasts()
    alone = saliency_maps(network, {name: tensor[1:] for name, tensor in batch.items()})
    assert torch.allclose(saliency_maps(network, batch)[1:], alone, equal_nan=True, atol=1e-6)


@pytest.mark.parametrize("width", [WIDTH, WIDTH - 8])  # of two, 7 cells: one lies on the seam
def test_the_map_of_two_images_side_by_side_goes_back_to_each(width: int) -> None:
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


def test_a_network_with_a_map_of_its_own_shows_that() -> None:
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


def test_networks_of_others_show_what_their_pixels_add() -> None:
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
def test_mirroring_is_averaged(network: Callable[[], Any]) -> None:
    made = network()
    batch = {"image": planted(pictures(1)), "metadata": torch.zeros(1, 0)}
    mirrored = {**batch, "image": batch["image"].flip(-1)}
    plain, of_mirrored = saliency_maps(made, batch), saliency_maps(made, mirrored)
    expected = (plain + of_mirrored.flip(-1)) / 2
    assert torch.allclose(saliency_maps(made, batch, "hflip"), expected, atol=1e-7)


def test_nothing_is_left_in_the_network() -> None:
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
def test_how_it_is_trained_does_not_matter(backbone: str, settings: dict[str, Any]) -> None:
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
def test_who_asks_does_not_matter(mode: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    network = ImageClassifier("test_resnet", pretrained=False).eval()
    expected = saliency_maps(network, {"image": pictures(1)})
    with mode(), torch.autocast("cpu", torch.bfloat16):
        batch = {"image": pictures(1).float() / 255}
        assert torch.equal(saliency_maps(network, batch), expected)


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(AssertionError, match="in training"):
        saliency_maps(image_network().train(), {"image": pictures(1)})
