"""Both breasts compared in space."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rsna_bcd.models.aggregators import Mean
from rsna_bcd.models.bilateral import BilateralClassifier, align
from rsna_bcd.models.breast import BreastClassifier
from rsna_bcd.models.prediction import Batch, network_outputs

TINY = "test_resnet"


@pytest.fixture
def batch() -> Batch:
    """CC and MLO of both breasts; a breast without the other one's MLO; one alone."""
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    return {
        "image": torch.rand(3, 4, 1, 64, 64) * mask[..., None, None, None],
        "mask": mask,
        "view": torch.tensor([[0, 1, 0, 1]] * 3),
        "other": torch.tensor([[0, 0, 1, 1]] * 3).bool(),
    }


@pytest.fixture
def network() -> BilateralClassifier:
    """A network that has learned to compare."""
    torch.manual_seed(0)
    network = BilateralClassifier(TINY, Mean, pretrained=False).eval()
    torch.nn.init.normal_(network.asymmetry.weight)
    return network


def logits(network: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return network_outputs(network, batch)["logit"]


def test_bilateral_begins_as_the_network_of_the_breast_alone(
    network: BilateralClassifier, batch: Batch
) -> None:
    torch.nn.init.zeros_(network.asymmetry.weight)
    alone = BreastClassifier(TINY, Mean, pretrained=False).eval()
    alone.load_state_dict(network.state_dict(), strict=False)
    assert torch.allclose(logits(network, batch), logits(alone, batch), atol=1e-6)


def test_bilateral_compares_images_of_the_same_view(
    network: BilateralClassifier, batch: Batch
) -> None:
    before = logits(network, batch)
    batch["image"][:, 3] = torch.rand(64, 64)  # the other breast's MLO, absent in the last two
    change = (logits(network, batch) - before).abs()
    assert change[0] > 1e-4
    assert change[1:].max() == 0
    batch["view"][0, 3] = 2  # without a counterpart
    batch["view"][0, 1] = 1
    assert (logits(network, batch) - before).abs()[0] > 1e-4


def test_bilateral_ignores_padding_and_dense_encoding(
    network: BilateralClassifier, batch: Batch
) -> None:
    expected = logits(network, batch)
    batch["image"][~batch["mask"]] = torch.nan
    assert torch.allclose(logits(network, batch), expected, atol=1e-6)
    batch["image"].nan_to_num_()
    network.dense = True
    assert torch.allclose(logits(network, batch), expected, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 16])
def test_align_undoes_a_shift_a_mirror_and_a_lift(padding: int) -> None:
    """A breast lower down, mirrored, or brighter with its background: the same aligned map."""
    image = torch.zeros(1, 1, 64, 64)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image[0, 0, ((rows - 24) ** 2 + columns**2) < 20**2] = 0.5

    def aligned(image: Tensor, lift: float = 0) -> Tensor:
        padded = torch.nn.functional.pad(image, (0, padding))
        lifted = torch.nn.functional.pad(image + lift, (0, padding))
        return align(torch.nn.functional.avg_pool2d(padded, 8), lifted, 64)[0, 0]

    expected = aligned(image)
    assert expected[:, 0].sum() > 2
    assert (expected > 0.1).nonzero()[:, 0].float().mean() == pytest.approx(3.5, abs=0.3)
    for moved in (image.roll(16, 2), image.flip(3), image.roll(16, 2).flip(3)):
        for lift in (0, 0.05):
            assert torch.allclose(aligned(moved, lift)[:, :8], expected[:, :8], atol=1e-3)
