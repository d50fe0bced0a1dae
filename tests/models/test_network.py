"""The network's contract, and what may be loaded into it."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.network import GeM, ImageClassifier, Pooling

TINY = "test_efficientnet"  # timm's own, for tests


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What timm saves of a network of three channels, with its classifier."""
    torch.manual_seed(1)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(TINY, in_chans=3, num_classes=1000).state_dict(), file)
    return file


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
@pytest.mark.parametrize("backbone", [TINY, "test_convnext", "lcnet_035"])
def test_images_become_one_logit_each(backbone: str, pooling: Pooling) -> None:
    network = ImageClassifier(backbone, pretrained=False, pooling=pooling).eval()
    logits = network(torch.rand(3, 1, 64, 96))["logit"]
    assert logits.shape == (3,)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_the_normalisation_is_inside() -> None:
    """A network with another mean and std gives the same for images shifted and scaled alike."""
    network = ImageClassifier(TINY, pretrained=False).eval()
    images = torch.rand(2, 1, 64, 64)
    expected = network(images)["logit"]
    with torch.no_grad():
        normalised = (images - network.mean) / network.std
        network.mean.fill_(0)
        network.std.fill_(1)
        assert torch.allclose(network(normalised)["logit"], expected, atol=1e-6)
    assert {"mean", "std"} <= network.state_dict().keys()


def test_the_mean_of_the_pretrained_channels_is_used() -> None:
    network = ImageClassifier(TINY, pretrained=False)
    config: dict[str, Any] = network.backbone.pretrained_cfg
    assert network.mean.item() == pytest.approx(sum(config["mean"]) / 3)
    assert network.std.item() == pytest.approx(sum(config["std"]) / 3)


def test_memory_layout_changes_nothing() -> None:
    torch.manual_seed(0)
    network = ImageClassifier(TINY, pretrained=False, channels_last=True).eval()
    other = ImageClassifier(TINY, pretrained=False, channels_last=False).eval()
    other.load_state_dict(network.state_dict())
    images = torch.rand(2, 1, 64, 64)
    assert torch.allclose(network(images)["logit"], other(images)["logit"], atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_channel_equals_three_equal_channels(suffix: str, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    reference = timm.create_model(TINY, in_chans=3, num_classes=0, global_pool="")
    reference.load_state_dict(
        {k: v for k, v in state.items() if not k.startswith("classifier.")}, strict=True
    )
    file = weights.with_suffix(suffix)
    if suffix == ".safetensors":
        save_file(state, file)
    network = ImageClassifier(TINY, checkpoint_path=file)
    images = torch.rand(2, 1, 64, 64)
    expected = reference.eval()(images.expand(-1, 3, -1, -1))
    assert torch.allclose(network.backbone.eval()(images), expected, atol=1e-5)


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(InputError, match="does not hold the weights of test_resnet.*unknown"):
        ImageClassifier("test_resnet", checkpoint_path=weights)


def test_weights_of_another_size_are_refused(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["conv_stem.weight"] = torch.zeros(99, 3, 3, 3)
    torch.save(state, weights)
    with pytest.raises(InputError, match=r"1 of another shape \(conv_stem\.weight\)"):
        ImageClassifier(TINY, checkpoint_path=weights)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_without_weights_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match="file"):
        ImageClassifier(TINY, checkpoint_path=file)


def test_a_pickled_module_is_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "module.pth"
    torch.save(nn.Linear(1, 1), file)
    with pytest.raises(InputError, match="cannot be read as weights"):
        ImageClassifier(TINY, checkpoint_path=file)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth does not exist"):
        ImageClassifier(TINY, checkpoint_path=tmp_path / "nowhere.pth")


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(InputError, match="no network 'tf_efficientnet_x9'.*tf_efficientnet"):
        ImageClassifier("tf_efficientnet_x9", pretrained=False)


def test_an_unknown_pooling_is_named() -> None:
    with pytest.raises(InputError, match="avg, max, gem, not 'sum'"):
        ImageClassifier(TINY, pretrained=False, pooling="sum")  # type: ignore[arg-type]


def test_a_backbone_without_a_feature_map_is_refused() -> None:
    with pytest.raises(InputError, match="feature map"):
        ImageClassifier("test_vit", pretrained=False)(torch.rand(1, 1, 160, 160))


def test_gem_goes_from_the_mean_to_the_maximum() -> None:
    features = torch.rand(2, 5, 4, 3) + 0.1
    assert torch.allclose(GeM(p=1)(features), features.mean((-2, -1)), atol=1e-6)
    assert torch.allclose(GeM(p=200)(features), features.amax((-2, -1)), rtol=0.02)
    assert torch.allclose(GeM(p=3)(features), (features**3).mean((-2, -1)) ** (1 / 3))


def test_gem_has_a_gradient_where_nothing_is_active() -> None:
    features = torch.zeros(1, 2, 4, 4, requires_grad=True)
    pool = GeM()
    pool(features).sum().backward()
    assert pool.p.grad is not None
    assert torch.isfinite(pool.p.grad)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
