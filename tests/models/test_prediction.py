"""Logits of a batch: input range, TTA, precision."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from rsna_bcd.errors import InputError
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import predict_logits, to_input, transform


@pytest.fixture(scope="module")
def network() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("test_efficientnet", pretrained=False).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)


def test_the_input_is_in_the_unit_interval() -> None:
    x = to_input(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert x.tolist() == pytest.approx([0, 0.2, 1])


def test_hflip_cannot_tell_left_from_right(network: ImageClassifier, images: torch.Tensor) -> None:
    batch, flipped = {"image": images}, {"image": images.flip(-1)}
    plain, mirrored = (predict_logits(network, b, ()) for b in (batch, flipped))
    assert torch.allclose(plain, network(images.float() / 255)["logit"])
    assert not torch.allclose(plain, mirrored)
    for given in (batch, flipped):
        both = predict_logits(network, given, ["hflip"])
        assert torch.allclose(both, (plain + mirrored) / 2, atol=1e-6)


def test_mixed_precision_does_not_reach_it(network: ImageClassifier, images: torch.Tensor) -> None:
    expected = predict_logits(network, {"image": images}, ())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict_logits(network, {"image": images}, ()), expected)
        fast = predict_logits(network, {"image": images}, (), in_float32=False)
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, expected)
    assert torch.allclose(fast, expected, atol=0.05)


@pytest.mark.parametrize("allowed", [True, False])
def test_convolutions_are_in_float32_too(
    allowed: bool, network: ImageClassifier, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    seen: list[bool] = []
    handle = network.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    predict_logits(network, {"image": images}, ["hflip"])
    predict_logits(network, {"image": images}, (), in_float32=False)
    handle.remove()
    assert seen == [False, False, allowed]
    with pytest.raises(KeyError):
        predict_logits(network, {}, ())
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_an_unknown_tta_is_refused(network: ImageClassifier, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="tta: this version has no transform rot90"):
        predict_logits(network, {"image": images}, ["hflip", "rot90"])


def test_logits_are_averaged_over_the_image_and_each_transform(
    network: ImageClassifier, images: torch.Tensor
) -> None:
    tta = ["vflip", "scale_1.1", "shift_0.05_-0.02"]
    given = [to_input(images), *(transform(to_input(images), name) for name in tta)]
    logits = [predict_logits(network, {"image": image}, ()) for image in given]
    found = predict_logits(network, {"image": images}, tta)
    assert torch.allclose(found, torch.stack(logits).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("name", ["scale_1.1", "scale_0.75", "shift_0.25_-0.125", "shift_0_.5"])
def test_transform_is_the_affine_one_of_torchvision(name: str) -> None:
    images = torch.rand(2, 4, 1, 64, 32)  # of breasts
    kind, *numbers = name.split("_")
    values = [float(number) for number in numbers]
    shift = [values[0] * 32, values[1] * 64] if kind == "shift" else [0, 0]
    expected = affine(
        images.flatten(0, 1), 0, shift, values[0] if kind == "scale" else 1, [0, 0],
        InterpolationMode.BILINEAR, center=[0, 32],
    )  # fmt: skip
    found = transform(images, name)
    assert torch.allclose(found.flatten(0, 1), expected, atol=1e-4)
    inside = (slice(None), slice(None), 0, slice(24, 32), slice(10, 14))
    if kind == "shift":
        assert torch.allclose(transform(found, name, back=True)[inside], images[inside], atol=1e-4)


def test_transform_keeps_the_chest_wall_and_goes_back() -> None:
    ramp = torch.linspace(0, 1, 64)[:, None].expand(64, 32)  # the same at each distance from it
    scaled = transform(ramp[None], "scale_1.25")
    assert torch.allclose(transform(scaled, "scale_1.25", back=True)[0, 8:-8, 2:20],
                          ramp[8:-8, 2:20], atol=1e-3)  # fmt: skip
    for name in ("hflip", "vflip", "both"):
        images = torch.rand(3, 8, 4)
        assert torch.equal(transform(transform(images, name), name, back=True), images)
    assert torch.equal(transform(images, "both"), images.rot90(2, (-2, -1)))
