"""Networks that look at a breast: padding, missing views and the other breast."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsna_bcd.models.aggregators import (
    Aggregator,
    Attention,
    Max,
    MaxProbability,
    Mean,
    MeanProbability,
    Transformer,
)
from rsna_bcd.models.breast import BreastClassifier, SideBySide, side_by_side
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import Batch, network_outputs
from rsna_bcd.tables.metadata import Metadata

TINY = "test_resnet"  # has BatchNorm
Maker = Callable[[int], Aggregator]
SMALL_TRANSFORMER = partial(Transformer, width=16, depth=1, heads=2)
EARLY: list[Maker] = [Mean, Max, MeanProbability, MaxProbability, Attention]
each_aggregator = pytest.mark.parametrize("aggregator", [*EARLY, SMALL_TRANSFORMER])


def make(aggregator: Maker, **settings: Any) -> BreastClassifier:
    torch.manual_seed(0)
    return BreastClassifier(TINY, aggregator, pretrained=False, **settings).eval()


@pytest.fixture
def batch() -> Batch:
    """Three breasts: two own images and one of the other breast; three own; one own alone."""
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]]).bool()
    return {
        "image": torch.rand(3, 3, 1, 32, 32) * mask[..., None, None, None],
        "mask": mask,
        "view": torch.tensor([[0, 1, 1], [0, 1, 2], [1, 2, 2]]),
        "other": torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0]]).bool(),
        "label": torch.tensor([0.0, 1.0, 0.0]),
        "metadata": torch.randn(3, 2),
    }


def logits(network: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return network_outputs(network, batch)["logit"]


def image_entries(batch: Batch) -> dict[str, Tensor]:
    """The entries with an axis of images."""
    return {name: batch[name] for name in ("image", "mask", "view", "other")}


@each_aggregator
def test_breast_ignores_order_padding_and_dense_encoding(aggregator: Maker, batch: Batch) -> None:
    network = make(aggregator)
    expected = logits(network, batch)
    assert expected.shape == (3,)
    turned = {name: x[:, [1, 2, 0]] for name, x in image_entries(batch).items()}
    assert torch.allclose(logits(network, turned), expected, atol=1e-5)
    padded = {name: torch.cat([x, x[:, :2]], dim=1) for name, x in image_entries(batch).items()}
    padded["mask"][:, 3:] = False
    padded["image"][:, 3:] = torch.nan  # not even looked at
    assert torch.allclose(logits(network, padded), expected, atol=1e-6)
    network.dense = True
    assert torch.allclose(logits(network, batch), expected, atol=1e-6)


@each_aggregator
def test_breast_ignores_padding_in_training(aggregator: Maker, batch: Batch) -> None:
    """With it, BatchNorm would learn from black images, and normalise others by them."""
    plain = make(aggregator).train()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    padded = copy.deepcopy(plain)
    longer = {name: torch.cat([x, x[:, :2]], dim=1) for name, x in image_entries(batch).items()}
    longer["mask"][:, 3:] = False
    outputs = [network_outputs(plain, batch)["logit"], network_outputs(padded, longer)["logit"]]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), padded.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad, atol=1e-4), name
    expected = dict(plain.named_buffers())
    assert all(torch.equal(x, expected[name]) for name, x in padded.named_buffers())


@each_aggregator
def test_only_those_with_context_use_the_other_breast(aggregator: Maker, batch: Batch) -> None:
    network = make(aggregator)
    for parameter in network.aggregator.parameters():
        torch.nn.init.normal_(parameter)
    changed = copy.deepcopy(batch)
    changed["image"][0, 2] = 0.5
    difference = (logits(network, changed) - logits(network, batch)).abs()
    assert (difference[0] > 1e-5) == network.aggregator.context
    assert difference[1:].max() < 1e-5


@pytest.mark.parametrize("aggregator", EARLY)
def test_a_single_image_has_the_logit_of_image_classifier(aggregator: Maker, batch: Batch) -> None:
    network = make(aggregator)
    single = ImageClassifier(TINY, pretrained=False).eval()
    single.load_state_dict(network.state_dict(), strict=False)
    expected = logits(single, {"image": batch["image"][2, :1]})
    assert torch.allclose(logits(network, batch)[2:], expected, atol=1e-5)


@each_aggregator
def test_breast_trains_all_parameters(aggregator: Maker, batch: Batch) -> None:
    metadata = Metadata(["age"])
    network = make(aggregator, metadata=metadata, auxiliary=["density", "invasive"]).train()
    assert network.inputs == ("mask", "view", "other", "metadata")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(network_outputs(network, batch)["logit"]).all()
    outputs = network_outputs(network, batch)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "logit": (3,), "density": (3, 4), "invasive": (3,),
    }  # fmt: skip
    torch.stack([x.square().sum() for x in outputs.values()]).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    groups = network.layer_groups()
    flat = sorted(id(p) for group in groups for p in group)
    assert flat == sorted(id(p) for p in network.parameters())
    assert any(p is network.head.weight for p in groups[-1])


@each_aggregator
def test_metadata_changes_the_logit_of_its_breast_alone(aggregator: Maker, batch: Batch) -> None:
    network = make(aggregator, metadata=Metadata(["age"]))
    changed = {**batch, "metadata": batch["metadata"].clone()}
    changed["metadata"][1] += torch.tensor([3.0, -3.0])
    difference = (logits(network, changed) - logits(network, batch)).abs()
    assert difference[1] > 1e-4
    assert difference[[0, 2]].max() < 1e-6


def test_breast_and_image_classifiers_start_from_each_other(tmp_path: Path) -> None:
    image = ImageClassifier(TINY, pretrained=False, pooling="gem")
    image.state_dict()["pool.p"].fill_(4)
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"network.{k}": v for k, v in image.state_dict().items()}}, file)
    settings: Any = {"checkpoint_path": file, "pooling": "gem", "freeze_backbone": True}
    breast = BreastClassifier(TINY, Attention, **settings)
    theirs = breast.state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in image.state_dict().items())
    breast.head.weight.data.fill_(1)
    torch.save({"state_dict": {f"network.{k}": v for k, v in breast.state_dict().items()}}, file)
    again = ImageClassifier(TINY, checkpoint_path=file, pooling="gem").state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in again.items())


def test_side_by_side_has_cc_on_the_left_and_absent_views_black() -> None:
    images = torch.arange(1.0, 10).reshape(3, 3, 1, 1, 1).expand(-1, -1, -1, 2, 2)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    view = torch.tensor([[1, 0, 0], [2, 1, 0], [2, 2, 2]])
    picture = side_by_side(images, mask, view)
    assert picture.shape == (3, 1, 2, 4)
    assert picture[0, 0, 0].tolist() == [2, 2, 1, 1]  # the first CC, then the MLO
    assert picture[1, 0, 0].tolist() == [0, 0, 5, 5]  # its CC is padding, and 4 another view
    assert picture[2, 0, 0].tolist() == [7, 7, 8, 8]  # better than to see nothing of it


def test_side_by_side_equals_the_image_classifier_on_both_views_of_its_breast(batch: Batch) -> None:
    torch.manual_seed(0)
    network = SideBySide(TINY, pretrained=False, metadata=Metadata(["age"])).eval()
    assert network.inputs == ("mask", "view", "other", "metadata")
    picture = torch.cat([batch["image"][:2, 0], batch["image"][:2, 1]], dim=-1)
    expected = ImageClassifier.forward(network, picture, batch["metadata"][:2])["logit"]
    batch["image"][0, 2] = 0.5  # of the other breast
    assert torch.equal(logits(network, {k: v[:2] for k, v in batch.items()}), expected)
    batch["mask"][0, 1] = False  # then it has no MLO, not that of the other breast
    picture[:1, :, :, 32:] = 0
    expected = ImageClassifier.forward(network, picture, batch["metadata"][:2])["logit"]
    assert torch.allclose(logits(network, batch)[:1], expected[:1], atol=1e-6)
