"""From images to features: pooling, memory, freezing, groups by depth."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.encoder import Encoder, GeM, Pooling

TINY = "test_efficientnet"


def step(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    """Gradients of a step in training, and the buffers after it."""
    encoder.train()
    torch.manual_seed(0)
    encoder.encode(images).square().sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return {**gradients, **dict(encoder.named_buffers())}


@pytest.mark.parametrize("name", [TINY, "test_convnext", "test_resnet"])
def test_grad_checkpointing_changes_neither_gradients_nor_statistics(name: str) -> None:
    torch.manual_seed(0)
    plain = Encoder(name, pretrained=False, drop_path_rate=0.2)
    again = Encoder(name, pretrained=False, drop_path_rate=0.2, grad_checkpointing=True)
    again.load_state_dict(plain.state_dict())
    images = torch.rand(4, 1, 64, 64)
    expected, result = step(plain, images), step(again, images)
    assert expected.keys() == result.keys()
    for key in expected:
        if not key.endswith("num_batches_tracked"):  # which nothing reads
            assert torch.allclose(result[key], expected[key], atol=1e-5), key


@pytest.mark.parametrize("name", [TINY, "test_convnext", "test_convnext2", "test_resnet"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_features_are_those_of_timm(name: str, pooling: Pooling) -> None:
    """Also in their order: ConvNeXts pool before their last norm."""
    torch.manual_seed(0)
    reference: Any = timm.create_model(name, in_chans=1, num_classes=0, global_pool=pooling).eval()
    encoder = Encoder(name, pretrained=False, pooling=pooling).eval()
    encoder.backbone.load_state_dict(reference.state_dict())
    images = torch.rand(2, 1, 64, 96)
    expected = reference((images - encoder.mean) / encoder.std)
    assert torch.allclose(encoder.encode(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", [TINY, "test_resnet"])
def test_sync_batchnorm_continues_the_statistics(name: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(name, pretrained=False, grad_checkpointing=True)
    images = torch.rand(2, 1, 64, 64)
    expected = copy.deepcopy(encoder).eval().encode(images)
    keys = list(encoder.state_dict())
    encoder.encode(images)  # leaves the momenta at zero
    momenta = encoder._momenta
    encoder = convert_sync_batchnorm(encoder)
    norms = [m for m in encoder.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == len(momenta)
    assert list(encoder.state_dict()) == keys
    seen = []
    norms[0].register_forward_pre_hook(lambda module, _: seen.append(module.momentum))
    for norm in norms:  # as before the first batch
        norm.reset_running_stats()
    assert torch.equal(encoder.eval().encode(images), expected)
    assert seen == [0.1]


def test_grad_checkpointing_that_a_backbone_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="dla46_c cannot .*grad_checkpointing=false"):
        Encoder("dla46_c", pretrained=False, grad_checkpointing=True)


def test_a_frozen_backbone_does_not_change() -> None:
    torch.manual_seed(0)
    settings: Any = {"pretrained": False, "pooling": "gem", "drop_path_rate": 0.5}
    encoder = Encoder(TINY, freeze_backbone=True, **settings)
    before = copy.deepcopy(encoder.backbone.state_dict())
    images = torch.rand(2, 1, 64, 64)
    expected = encoder.eval().encode(images)
    encoder.train()
    assert encoder.training
    features = encoder.encode(images)
    assert torch.equal(features, expected)
    features.sum().backward()
    assert all(p.grad is None for p in encoder.backbone.parameters())
    assert encoder.pool.p.grad is not None
    after = encoder.backbone.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [TINY, "test_convnext", "test_resnet", "lcnet_035"])
def test_layer_groups_hold_each_parameter_once_stem_first(name: str) -> None:
    encoder = Encoder(name, pretrained=False, pooling="gem")
    groups = encoder.layer_groups()
    flat = [id(parameter) for group in groups for parameter in group]
    assert sorted(flat) == sorted(id(parameter) for parameter in encoder.parameters())
    stem = encoder.backbone.get_parameter(f"{encoder.backbone.pretrained_cfg['first_conv']}.weight")
    assert any(parameter is stem for parameter in groups[0])
    assert groups[-1] == [encoder.pool.p]
    names = {id(p): name for name, p in encoder.named_parameters()}
    blocks = [n for n in (names[id(p)] for p in sum(groups, [])) if n.endswith("conv_dw.weight")]
    assert blocks == sorted(blocks)


def test_gem_by_formula_with_finite_gradients() -> None:
    features = torch.rand(2, 5, 4, 3) + 0.1
    assert torch.allclose(GeM(p=1)(features), features.mean((-2, -1)), atol=1e-6)
    assert torch.allclose(GeM(p=200)(features), features.amax((-2, -1)), rtol=0.02)
    pool, inactive = GeM(p=3), torch.zeros(1, 2, 4, 4, requires_grad=True)
    assert torch.allclose(pool(features), (features**3).mean((-2, -1)) ** (1 / 3))
    for gradient in torch.autograd.grad(pool(inactive).sum(), [pool.p, inactive]):
        assert gradient.isfinite().all()
