"""The network of the whole image and of its patches, and where patches are placed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.models import global_local
from rsna_bcd.models.global_local import GlobalLocal, choose_patches, cut_patches, top_logit
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import network_outputs
from rsna_bcd.tables.metadata import Metadata

LOCAL, GLOBAL = "test_efficientnet", "test_resnet"


def make(**settings: Any) -> GlobalLocal:
    torch.manual_seed(0)
    given = {"pretrained": False, "patch": 32, "n_patches": 3, "downscale": 2} | settings
    return GlobalLocal(LOCAL, GLOBAL, **given).eval()


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(3, 1, 256, 128)


def test_global_local_outputs_are_named_and_finite(images: torch.Tensor) -> None:
    network = make(auxiliary=["density"], metadata=Metadata(["age"]))
    outputs = network_outputs(network, {"image": images, "metadata": torch.randn(3, 2)})
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "logit": (3,), "logit_global": (3,), "logit_local": (3,), "penalty_saliency": (),
        "density": (3, 4),
    }  # fmt: skip
    assert all(torch.isfinite(x).all() for x in outputs.values())
    assert 0 < outputs["penalty_saliency"] < 1


def test_other_images_of_the_batch_and_their_order_do_not_count(images: torch.Tensor) -> None:
    network = make()
    expected = network(images)
    turned = network(images[[2, 0, 1]])
    for name in ("logit", "logit_global", "logit_local"):
        assert torch.allclose(turned[name], expected[name][[2, 0, 1]], atol=1e-5)
        assert torch.allclose(network(images[1:2])[name], expected[name][1:2], atol=1e-5)


def test_a_downscale_larger_than_the_image_is_refused() -> None:
    make(downscale=128, image_size=(256, 128))
    with pytest.raises(InputError, match="downscale=129 leaves no pixel of an image of 256 x 128"):
        make(downscale=129, image_size=(256, 128))


class Brightness(torch.nn.Module):
    """In the place of the global backbone: the mean brightness of cells of 16 x 16, twice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give (B, 2, h, w)."""
        return torch.nn.functional.avg_pool2d(images, 16).expand(-1, 2, -1, -1)


def test_a_bright_square_gets_the_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only the pixels under it reach the local network."""
    network = make(n_patches=1)
    network.global_encoder.backbone = Brightness()
    network.global_encoder.width = 2
    network.global_encoder.mean.zero_()
    network.global_encoder.std.fill_(1)
    network.saliency = torch.nn.Conv2d(2, 1, 1)
    weight, bias = torch.full((1, 2, 1, 1), 5.0), torch.tensor([-5.0])
    network.saliency.load_state_dict({"weight": weight, "bias": bias})
    network.head = torch.nn.Linear(2 + network.local_encoder.width, 1)
    images = torch.zeros(2, 1, 256, 128)
    images[0, :, 96:128, 32:64] = 1
    images[1, :, 224:256, 96:128] = 1
    seen = []

    def cut(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[1])
        return cut_patches(*arguments)

    cut_patches = global_local.cut_patches
    monkeypatch.setattr(global_local, "cut_patches", cut)
    first = network(images)["logit_local"]
    assert seen[0].tolist() == [[[96, 32]], [[224, 96]]]
    assert torch.allclose(first[0], first[1], atol=1e-6)  # both patches are white all over
    white = network.local_encoder.encode(torch.ones(1, 1, 32, 32))
    assert torch.allclose(first[:1], network.local_head(white)[:, 0], atol=1e-5)


def test_patches_are_seen_in_full_resolution(images: torch.Tensor) -> None:
    """A pattern that averaging over 2 x 2 wipes out changes the local opinion alone."""
    network = make(n_patches=8, patch=64)  # which covers the image
    pattern = 0.1 * (torch.arange(128) % 2 * 2 - 1)
    plain, changed = network(0.2 + images * 0.6), network(0.2 + images * 0.6 + pattern)
    assert torch.allclose(plain["logit_global"], changed["logit_global"], atol=1e-4)
    assert not torch.allclose(plain["logit_local"], changed["logit_local"], atol=1e-4)


def test_global_local_trains_all_parts(images: torch.Tensor) -> None:
    network = make(auxiliary=["density"]).train()
    groups = network.layer_groups()
    assert sorted(id(p) for g in groups for p in g) == sorted(map(id, network.parameters()))
    for encoder in (network.global_encoder, network.local_encoder):
        last = list(encoder.backbone.parameters())[-1]
        assert any(p is last for p in groups[-2])
    outputs = network(images)
    torch.stack([x.square().sum() for x in outputs.values()]).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    for name in (
        "global_encoder.backbone.conv1.0", "local_encoder.backbone.conv_stem", "saliency", "head",
        "attention.score", "local_head", "auxiliary.density",
    ):  # fmt: skip
        gradient = network.get_parameter(f"{name}.weight").grad
        assert gradient is not None
        assert gradient.any(), name


@pytest.mark.parametrize(
    ("output", "part"), [("logit_global", "local_encoder"), ("logit_local", "global_encoder")]
)
def test_global_and_local_logits_have_separate_gradients(
    output: str, part: str, images: torch.Tensor
) -> None:
    """Choosing patches has no gradient."""
    network = make().train()
    network(images)[output].sum().backward()
    assert all(p.grad is None for p in network.get_submodule(part).parameters())


def test_the_top_is_the_mean_probability_of_the_largest() -> None:
    scores = torch.randn(2, 50)
    top = scores.sigmoid().sort(dim=1, descending=True).values[:, :5].mean(dim=1)
    assert torch.allclose(top_logit(scores, 0.1), torch.logit(top), atol=1e-5)
    assert torch.allclose(top_logit(scores, 1e-9), scores.amax(dim=1), atol=1e-5)
    assert torch.isfinite(top_logit(torch.tensor([[300.0, 300], [-300, -300]]), 1.0)).all()


@pytest.mark.parametrize("whole", [GLOBAL, LOCAL])
def test_it_starts_from_its_own_run_whole(whole: str, tmp_path: Path, images: torch.Tensor) -> None:
    """Also if both networks have one architecture: each from its own place."""
    torch.manual_seed(0)
    earlier = GlobalLocal(LOCAL, whole, pretrained=False, patch=32, n_patches=3).eval()
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"network.{k}": v for k, v in earlier.state_dict().items()}}, file)
    torch.manual_seed(9)
    network = GlobalLocal(LOCAL, whole, checkpoint_path=file, patch=32, n_patches=3).eval()
    assert torch.equal(network(images)["logit"], earlier(images)["logit"])


def test_it_starts_from_a_network_of_images_where_that_fits(tmp_path: Path) -> None:
    image = ImageClassifier(LOCAL, pretrained=False)
    file = tmp_path / "bare.pth"
    torch.save(image.state_dict(), file)
    network = make(checkpoint_path=file)
    name = "conv_stem.weight"
    weights = image.backbone.state_dict()[name]
    assert torch.equal(network.local_encoder.backbone.state_dict()[name], weights)
    both = GlobalLocal(LOCAL, LOCAL, checkpoint_path=file, patch=32)
    assert torch.equal(both.global_encoder.backbone.state_dict()[name], weights)
    with pytest.raises(InputError, match="does not hold the weights of test_convnext"):
        GlobalLocal("test_convnext", "test_convnext", checkpoint_path=file)


def test_where_a_file_does_not_fit_pretrained_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    create = copy.copy(global_local.Encoder.__init__)

    def spy(self: Any, name: str, **settings: Any) -> None:
        asked.append((name, settings["pretrained"]))
        create(self, name, **settings | {"pretrained": False})

    monkeypatch.setattr(global_local.Encoder, "__init__", spy)
    file = tmp_path / "bare.pth"
    torch.save(ImageClassifier(LOCAL, pretrained=False).state_dict(), file)
    asked.clear()
    GlobalLocal(LOCAL, GLOBAL, checkpoint_path=file)
    assert asked == [(GLOBAL, False), (LOCAL, False), (GLOBAL, True)]


def test_an_image_network_starts_from_its_local_part(tmp_path: Path) -> None:
    """With the normalisation that this part was trained with."""
    network = make()
    network.local_encoder.mean.fill_(0.3)
    file = tmp_path / "bare.pth"
    torch.save(network.state_dict(), file)
    image = ImageClassifier(LOCAL, checkpoint_path=file)
    taken = image.state_dict()
    expected = network.local_encoder.state_dict()
    assert all(torch.equal(taken[k], v) for k, v in expected.items())


@pytest.mark.parametrize(
    ("key", "value"), [("n_patches", 0), ("downscale", 0), ("top", 0.0), ("top", 1.5)]
)
def test_numbers_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"network\.{key}={value}"):
        make(**{key: value})


def overlaps(corners: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels that each pair of patches (K, 2) shares, (K, K) with zeros on the diagonal."""
    apart = (corners[:, None] - corners[None]).abs()
    shared = (patch - apart).clamp(min=0).prod(dim=-1)
    return shared.fill_diagonal_(0)


def test_it_is_the_sum_that_counts_not_the_largest_value() -> None:
    saliency = torch.zeros(1, 1, 8, 8)
    saliency[0, 0, 0, 0] = 0.9
    saliency[0, 0, 4:6, 4:6] = 0.3  # 1.2 together
    corners = choose_patches(saliency, 2, patch=64, size=(256, 256))[0]
    assert corners.tolist() == [[128, 128], [0, 0]]


def test_greedily_is_what_a_loop_by_hand_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(1, 1, 9, 7, generator=generator)
    corners = choose_patches(saliency, 3, patch=30, size=(90, 70))[0]
    taken: list[tuple[int, int]] = []
    for _ in range(3):
        free = {
            (y, x): saliency[0, 0, y : y + 3, x : x + 3].sum().item()
            for y in range(7)
            for x in range(5)
            if all(abs(y - v) >= 3 or abs(x - u) >= 3 for v, u in taken)
        }
        taken.append(max(free, key=lambda place: free[place]))
    assert corners.tolist() == [[10 * y, 10 * x] for y, x in taken]


@pytest.mark.parametrize("size", [(256, 128), (250, 131), (97, 64)])
@pytest.mark.parametrize("patch", [64, 50, 33])
@pytest.mark.parametrize("cells", [(8, 4), (9, 5), (3, 2)])
def test_patches_lie_inside_the_image_and_share_nothing_while_there_is_room(
    size: tuple[int, int], patch: int, cells: tuple[int, int]
) -> None:
    saliency = torch.rand(20, 1, *cells)
    for corners in choose_patches(saliency, 5, patch, size):
        assert (corners >= 0).all()
        assert (corners + patch <= torch.tensor(size)).all()
        shared = overlaps(corners, patch)
        # Before any two patches share a pixel, no window of cells was free.
        window = [-(-patch * c // s) for c, s in zip(cells, size, strict=True)]
        free = [c // (2 * w - 1) for c, w in zip(cells, window, strict=True)]  # at worst
        room = min(5, max(1, free[0]) * max(1, free[1]))
        assert shared[:room, :room].max() == 0


def test_without_room_they_share_as_little_as_can_be() -> None:
    corners = choose_patches(torch.ones(1, 1, 4, 3), 3, patch=2, size=(4, 3))[0]
    assert corners[:2].tolist() == [[0, 0], [2, 0]]  # there is no third place on three columns
    assert overlaps(corners, 2)[2].max() == 2
    assert corners[2, 1] == 1


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"network\.patch=65 .* 128 x 64"):
        choose_patches(torch.rand(1, 1, 4, 2), 1, 65, (128, 64))


def test_patches_are_the_pixels_of_the_image() -> None:
    images = torch.rand(2, 1, 20, 16)
    corners = torch.tensor([[[0, 0], [12, 8]], [[3, 5], [7, 1]]])
    patches = cut_patches(images, corners, 8)
    assert patches.shape == (2, 2, 1, 8, 8)
    for b in range(2):
        for k, (y, x) in enumerate(corners[b].tolist()):
            assert torch.equal(patches[b, k], images[b, :, y : y + 8, x : x + 8])
