"""The contract of the network of single images."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.models.encoder import Pooling
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import network_outputs
from rsna_bcd.tables.metadata import Metadata

TINY = "test_efficientnet"  # timm's own, for tests


@pytest.mark.parametrize("pooling", ["avg", "max", "gem"])
@pytest.mark.parametrize("backbone", [TINY, "test_convnext", "lcnet_035"])
def test_memory_layout_changes_nothing(backbone: str, pooling: Pooling) -> None:
    torch.manual_seed(0)
    settings: Any = {"pretrained": False, "pooling": pooling}
    network = ImageClassifier(backbone, channels_last=True, **settings).eval()
    other = ImageClassifier(backbone, channels_last=False, **settings).eval()
    other.load_state_dict(network.state_dict())
    images = torch.rand(3, 1, 64, 96)
    logits = network(images)["logit"]
    assert (logits.shape, logits.dtype) == ((3,), torch.float32)
    assert torch.allclose(logits, other(images)["logit"], atol=1e-5)


def test_the_normalisation_is_inside() -> None:
    """A network with another mean and std gives the same for images shifted and scaled alike."""
    network = ImageClassifier(TINY, pretrained=False).eval()
    config = network.backbone.pretrained_cfg
    assert network.mean.item() == pytest.approx(sum(config["mean"]) / 3)
    assert network.std.item() == pytest.approx(sum(config["std"]) / 3)
    images = torch.rand(2, 1, 64, 64)
    expected = network(images)["logit"]
    with torch.no_grad():
        normalised = (images - network.mean) / network.std
        network.mean.fill_(0)
        network.std.fill_(1)
        assert torch.allclose(network(normalised)["logit"], expected, atol=1e-6)
    assert {"mean", "std"} <= network.state_dict().keys()


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        ("tf_efficientnet_x9", {}, "no network 'tf_efficientnet_x9'.*tf_efficientnet"),
        (TINY, {"pooling": "sum"}, "avg, max, gem, not 'sum'"),
        (TINY, {"auxiliary": ["colour"]}, "auxiliary: colour is no auxiliary target"),
    ],
)
def test_image_classifier_refuses(backbone: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageClassifier(backbone, pretrained=False, **settings)(torch.rand(1, 1, 160, 160))


def test_the_names_of_parameters_are_those_of_earlier_runs() -> None:
    names = ImageClassifier(TINY, pretrained=False, pooling="gem").state_dict()
    tops = {name.split(".")[0] for name in names}
    assert tops == {"backbone", "head", "pool", "mean", "std"}
    assert names["head.weight"].shape[0] == 1


@pytest.mark.parametrize("names", [["density", "invasive", "age"], {"density": 0.1, "age": 1.0}])
def test_auxiliary_targets_have_outputs_of_their_own(names: Iterable[str]) -> None:
    network = ImageClassifier(TINY, pretrained=False, auxiliary=names)
    outputs = network(torch.rand(2, 1, 64, 64))
    assert list(outputs) == ["logit", *names]
    assert outputs["density"].shape == (2, 4)
    assert outputs["age"].shape == (2,)
    sum(output.sum() for output in outputs.values()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_metadata_changes_the_logit() -> None:
    metadata = Metadata(["age", "implant"])
    network = ImageClassifier(TINY, pretrained=False, metadata=metadata).eval()
    assert network.inputs == ("metadata",)
    assert ImageClassifier(TINY, pretrained=False).inputs == ()
    one = torch.rand(1, 1, 64, 64).expand(2, -1, -1, -1)
    known = torch.randn(1, metadata.width).expand(2, -1)
    same, different = known.clone(), known + torch.tensor([[0.0], [3.0]])
    first, second = network_outputs(network, {"image": one, "metadata": same})["logit"]
    assert torch.isclose(first, second)
    first, second = network_outputs(network, {"image": one, "metadata": different})["logit"]
    assert not torch.isclose(first, second)


def test_metadata_is_independent_of_the_batch() -> None:
    """Nothing in their path is normalised by batch, also in training."""
    metadata = Metadata(["age"])
    layers = ImageClassifier(TINY, pretrained=False, metadata=metadata).metadata.train()
    features, known = torch.zeros(3, 0), torch.randn(3, metadata.width)
    assert torch.allclose(layers(features, known)[:1], layers(features[:1], known[:1]), atol=1e-6)
