"""Logits of a batch: input range, TTA, precision."""

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import predict_logits, to_input


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
    plain, mirrored = (predict_logits(network, b, "none") for b in (batch, flipped))
    assert torch.allclose(plain, network(images.float() / 255)["logit"])
    assert not torch.allclose(plain, mirrored)
    for given in (batch, flipped):
        both = predict_logits(network, given, "hflip")
        assert torch.allclose(both, (plain + mirrored) / 2, atol=1e-6)


def test_mixed_precision_does_not_reach_it(network: ImageClassifier, images: torch.Tensor) -> None:
    expected = predict_logits(network, {"image": images}, "none")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict_logits(network, {"image": images}, "none"), expected)
        fast = predict_logits(network, {"image": images}, "none", in_float32=False)
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
    predict_logits(network, {"image": images}, "hflip")
    predict_logits(network, {"image": images}, "none", in_float32=False)
    handle.remove()
    assert seen == [False, False, allowed]
    with pytest.raises(KeyError):
        predict_logits(network, {}, "none")
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_an_unknown_tta_is_refused(network: ImageClassifier, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="tta is none or hflip, not 'rot90'"):
        predict_logits(network, {"image": images}, "rot90")  # type: ignore[arg-type]
