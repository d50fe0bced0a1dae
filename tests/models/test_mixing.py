"""Blended batches: shares of images and labels, and their dependence on seed and step."""

import math

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.models.mixing import Mix
from rsna_bcd.models.prediction import Batch

KEY = (42, 7)


def images(n: int = 6) -> Batch:
    """Images as bright as their label, so that a blend's brightness is its label."""
    label = torch.arange(n) % 2
    image = (255 * label[:, None, None, None].expand(n, 1, 8, 16)).to(torch.uint8)
    return {"image": image, "label": label.float(), "index": torch.arange(n)}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_label_is_the_share_of_the_image(kind: str) -> None:
    shares = set()
    for step in range(20):
        mixed = Mix(kind, 1.0, 1.0)(images(), (42, step))  # type: ignore[arg-type]
        brightness = mixed["image"].mean(dim=(1, 2, 3))
        assert torch.allclose(brightness, mixed["label"], atol=1e-6)
        assert torch.equal(mixed["index"], torch.arange(6))
        shares.update(mixed["label"].tolist())
    assert len(shares) > 20


def test_cutmix_pastes_a_box() -> None:
    mixed = Mix("cutmix", 1.0, 1.0)(images(), KEY)["image"]
    assert set(mixed.unique().tolist()) == {0, 1}
    changed = mixed != images()["image"] / 255
    rows, columns = changed[0, 0].any(dim=1), changed[0, 0].any(dim=0)
    assert torch.equal(changed[0, 0], rows[:, None] & columns[None])


def test_draws_depend_on_the_key_alone() -> None:
    mix = Mix("mixup", 0.4, 1.0)
    torch.manual_seed(0)
    first = mix(images(), KEY)["image"]
    torch.manual_seed(1)
    assert torch.equal(first, mix(images(), KEY)["image"])
    assert not torch.equal(first, mix(images(), (42, 8))["image"])


def test_a_share_of_the_batches_is_mixed() -> None:
    mix = Mix("mixup", 0.4, 0.3)
    batch = images()
    mixed = [mix(batch, (0, step)) is not batch for step in range(500)]
    assert sum(mixed) / 500 == pytest.approx(0.3, abs=0.05)
    assert Mix("mixup", 0.4, 0.0)(batch, KEY) is batch


def test_targets_are_mixed_by_their_kind() -> None:
    n = 6
    batch = images(n) | {
        "target_invasive": torch.tensor([0.0, 1.0, math.nan, 1.0, 1.0, 1.0]),
        "target_density": torch.tensor([2.0, 2.0, 3.0, 2.0, 2.0, math.nan]),
        "metadata": torch.arange(n).float()[:, None],
    }
    mixed = Mix("mixup", 1.0, 1.0)(batch, KEY)
    density = mixed["target_density"]
    assert set(density[~density.isnan()].tolist()) <= {2.0, 3.0}
    assert density.isnan().sum() >= 1
    assert 1 <= mixed["target_invasive"].isnan().sum() <= 2
    assert not torch.equal(mixed["metadata"], batch["metadata"])


def test_breasts_are_mixed_with_those_of_the_same_arrangement() -> None:
    n = 40
    mask = torch.ones(n, 2, dtype=torch.bool)
    mask[::2, 1] = False
    group = torch.arange(n) % 2
    batch = {
        "image": group[:, None, None, None, None].expand(n, 2, 1, 4, 4).float(),
        "mask": mask,
        "view": torch.tensor([0, 1]).expand(n, 2),
        "label": (torch.arange(n) // 2 % 2).float(),
    }
    mixed = Mix("mixup", 1.0, 1.0)(batch, KEY)
    assert torch.allclose(mixed["image"], batch["image"])  # never with one of the other group
    assert not torch.equal(mixed["label"], batch["label"])
    assert torch.equal(mixed["mask"], mask)


def test_breasts_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="Choose mix.kind=mixup"):
        Mix("cutmix", 1.0, 0.5).check("breast")
    Mix("cutmix", 1.0, 0.5).check("image")
    Mix("cutmix", 1.0, 0.0).check("breast")
