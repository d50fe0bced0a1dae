"""Any timm network as a backbone: its feature map at any size of image, or one line of refusal."""

import csv
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import list_modules

from rsna_bcd.errors import InputError
from rsna_bcd.inference.saliency import saliency_maps
from rsna_bcd.models.backbone import create_backbone
from rsna_bcd.models.encoder import Encoder
from rsna_bcd.models.network import ImageClassifier

TABLE = Path(__file__).parents[2] / "docs" / "backbones.csv"
SIZE = (344, 192)  # a multiple of 8 alone
# One of each way to read a feature map, and of each way to take the size of the image.
FAMILIES = {
    "test_nfnet": "output",
    "test_mambaout": "channels_last",
    "swin_tiny_patch4_window7_224": "channels_last",
    "test_maxvit": "output",
    "test_vit": "tokens",
    "lambda_resnet26t": "output",
    "vit_tiny_patch16_dinov3_qkvb": "tokens",
    "vit_base_patch32_siglip_256": "tokens",
}


def check_backbone(name: str, size: tuple[int, int]) -> ImageClassifier:
    """Train a network on the meta device: shapes, gradients and groups, without values."""
    with torch.device("meta"):
        network = ImageClassifier(name, pretrained=False, image_size=size).train()
        features = network.feature_map(torch.rand(2, 1, *size))
        assert features.shape[:2] == (2, network.width)
        assert max(features.shape[2:]) > 1  # VGG ends with a convolution of 7 x 7: 4 x 1
        network(torch.rand(2, 1, *size))["logit"].sum().backward()
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        assert [n for n, p in trained.items() if p.grad is None] == []
        assert len(trained) > len(network.layout.unused)
        groups = network.layer_groups()
        assert len(groups) > 2
        ids = [id(p) for group in groups for p in group]
        assert sorted(ids) == sorted(id(p) for p in network.parameters())
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_any_architecture_gives_a_map_of_any_size(name: str) -> None:
    assert check_backbone(name, SIZE).layout.source == FAMILIES[name]
    with torch.device("meta"):
        frozen = ImageClassifier(name, pretrained=False, image_size=SIZE, freeze_backbone=True)
        frozen.train()(torch.rand(2, 1, *SIZE))["logit"].backward(torch.ones(2))
    assert all(p.grad is None for p in frozen.backbone.parameters())
    assert frozen.head.weight.grad is not None


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_network_of_each_module_of_timm() -> None:
    registered = {module for module in list_modules() if timm.list_models(module=module)}
    assert registered <= {row["module"] for row in rows()}


@pytest.mark.slow  # nine minutes
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["module"])
def test_the_table_says_what_becomes_of_each_network(row: dict[str, str]) -> None:
    if not timm.is_model(row["network"]):
        pytest.skip("another version of timm")
    if row["result"] == "works":
        layout = check_backbone(row["network"], SIZE).layout
        assert (layout.source, str(layout.multiple)) == (row["source"], row["padded_to"])
        return
    with pytest.raises(InputError, match="gives no feature map of images of 344 x 192") as refusal:
        create_backbone(row["network"], pretrained=False, drop_path_rate=None, image_size=SIZE)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow  # ten minutes
@pytest.mark.parametrize(
    "row", [row for row in rows() if row["result"] == "works"], ids=lambda row: row["module"]
)
def test_each_network_has_stochastic_depth_or_is_refused_with_it(row: dict[str, str]) -> None:
    if not timm.is_model(row["network"]):
        pytest.skip("another version of timm")
    refusal = None
    with torch.device("meta"):
        try:
            create_backbone(row["network"], pretrained=False, drop_path_rate=0.2, image_size=SIZE)
        except InputError as error:
            refusal = str(error)
    assert refusal is None or refusal.endswith("set network.drop_path_rate=null.")


@pytest.mark.slow  # a quarter of an hour
@pytest.mark.parametrize(
    "row", [row for row in rows() if row["result"] == "works"], ids=lambda row: row["module"]
)
def test_each_network_has_saliency_maps_at_a_wide_size(row: dict[str, str]) -> None:
    if not timm.is_model(row["network"]):
        pytest.skip("another version of timm")
    torch.manual_seed(0)
    size = (224, 448)
    network = ImageClassifier(row["network"], pretrained=False, image_size=size).eval()
    maps = saliency_maps(network, {"image": torch.rand(1, 1, *size)})
    height, width = maps.shape[1:]
    assert min(height, width) > 1
    assert width / height == pytest.approx(2, rel=0.2)
    assert maps.isfinite().all()
    assert (maps >= 0).all()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("convit_tiny", SIZE, r"^network.backbone=convit_tiny gives no .* 344 x 192 .*Choose an"),
        ("test_maxvit", None, "^network.backbone=test_maxvit is built for one size"),
        ("someone/model", None, "no name of timm.* hf-hub:someone/model"),
        ("hf_hub:timm/resnet18", None, "hf_hub:timm/resnet18: write hf-hub:timm/resnet18.$"),
        ("hf-hub:", None, "^network.backbone=hf-hub:: should be hf-hub:<owner>/<name>.$"),
        ("local-dir:/nowhere", None, "local-dir:/nowhere: there is no /nowhere/config.json.$"),
        ("timm/resnt18", None, r"no network 'timm/resnt18' .* Did you mean resnet18, "),
        ("hf-hub:timm/resnt18", None, r"no network 'hf-hub:timm/resnt18' .* mean resnet18, "),
        ("dinov3", None, "Did you mean vit_7b_patch16_dinov3, "),
        ("swin_v2", None, "Did you mean swinv2_"),
        ("TF-EfficientNet-Lite0", None, "Did you mean tf_efficientnet_lite0, "),
        ("", None, "^network.backbone= is no name of a network.$"),
        ("resnet18.", None, "^network.backbone=resnet18. is no name of a network.$"),
        ("zzzz", None, r"no network 'zzzz' .* timm.list_models\(\) has all.$"),
        ("resnet18.nope", None, r"Invalid pretrained tag \(nope\).* Known are resnet18.a1_in1k, "),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_in_one_line(
    name: str, size: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        create_backbone(name, pretrained=False, drop_path_rate=None, image_size=size)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_stochastic_depth_is_refused_where_a_network_has_none(name: str) -> None:
    with pytest.raises(InputError, match=f"={name} has no .* set network.drop_path_rate=null.$"):
        create_backbone(name, pretrained=False, drop_path_rate=0.2, image_size=SIZE)


@pytest.mark.parametrize("prefix", ["", "timm/", "hf-hub:timm/"])
def test_a_name_of_the_hub_needs_no_connection(prefix: str) -> None:
    """A run is loaded where there is none."""
    backbone, _ = create_backbone(
        f"{prefix}test_resnet.r160_in1k", pretrained=False, drop_path_rate=None, image_size=None
    )
    assert backbone.pretrained_cfg["tag"] == "r160_in1k"


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_a_map_of_tokens_is_that_of_the_patches(name: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(name, pretrained=False, image_size=(96, 64)).eval()
    images = torch.rand(2, 1, 96, 64)
    tokens = encoder.backbone.forward_features((images - encoder.mean) / encoder.std)
    patches = tokens[:, -6 * 4 :].transpose(1, 2).unflatten(2, (6, 4))
    assert torch.allclose(encoder.feature_map(images), patches, atol=1e-5)
    # A black margin fills up the last patch.
    padded = torch.nn.functional.pad(images[:, :, :90], (0, 0, 0, 6))
    assert torch.equal(encoder.feature_map(images[:, :, :90]), encoder.feature_map(padded))


def test_a_norm_of_pooled_features_is_that_of_the_weights() -> None:
    """Of networks that timm pools before their last norm, which has weights of its own."""
    torch.manual_seed(0)
    name = "beit_base_patch16_224"
    reference: Any = timm.create_model(name, in_chans=1, num_classes=0, depth=1).eval()
    torch.nn.init.uniform_(reference.fc_norm.weight)
    encoder = Encoder(name, pretrained=False, image_size=(224, 224)).eval()
    encoder.backbone.blocks = encoder.backbone.blocks[:1]
    encoder.backbone.load_state_dict(reference.state_dict())
    images = torch.rand(1, 1, 224, 224)
    expected = reference((images - encoder.mean) / encoder.std)
    assert torch.allclose(encoder.encode(images), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "old"), [("test_maxvit", (160, 160)), ("test_vit3", (160, 160))])
def test_weights_of_another_size_are_resampled_as_timm_does(
    name: str, old: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(name, num_classes=10).state_dict(), file)
    encoder = ImageClassifier(name, checkpoint_path=file, image_size=(192, 96))
    size = {"img_size": (192, 96)} if name == "test_maxvit" else {"dynamic_img_size": True}
    reference: Any = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(file), "num_classes": 10},
        in_chans=1, num_classes=0, global_pool="", **size,
    )  # fmt: skip
    found, expected = encoder.backbone.state_dict(), reference.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[key], expected[key], atol=1e-6) for key in expected)


def test_a_run_at_another_size_is_taken_and_the_same_one_loads_identically(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = ImageClassifier("test_maxvit", pretrained=False, image_size=(160, 160)).eval()
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"network.{k}": v for k, v in trained.state_dict().items()}}, file)
    images = torch.rand(2, 1, 160, 160)
    same = ImageClassifier("test_maxvit", pretrained=False, image_size=(160, 160)).eval()
    same.load_state_dict(trained.state_dict())
    assert torch.equal(same(images)["logit"], trained(images)["logit"])
    larger = ImageClassifier("test_maxvit", checkpoint_path=file, image_size=(192, 96)).eval()
    assert larger(torch.rand(2, 1, 192, 96))["logit"].isfinite().all()
    assert torch.equal(larger.head.weight, trained.head.weight)
    sizes = [{k: v.shape for k, v in network.state_dict().items()} for network in (trained, larger)]
    assert sizes[0] != sizes[1]
