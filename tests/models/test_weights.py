"""What a network may start from, what is taken, and what is refused."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from rsna_bcd.errors import InputError
from rsna_bcd.models.checkpoint import record_in
from rsna_bcd.models.network import ImageClassifier

TINY = "test_efficientnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What timm saves of a network of three channels, with its classifier."""
    torch.manual_seed(1)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(TINY, in_chans=3, num_classes=1000).state_dict(), file)
    return file


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


def save_run(network: nn.Module, folder: Path, **more: Any) -> Path:
    """What a run leaves behind of a network."""
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    file = folder / "last.ckpt"
    torch.save({"state_dict": state, "config": {"name": "earlier"}, "epoch": 3, **more}, file)
    return file


def test_a_run_is_taken_whole(tmp_path: Path) -> None:
    """Also the normalisation: weights trained with another one would see other images."""
    earlier = ImageClassifier(TINY, pretrained=False, pooling="gem", auxiliary=["density"])
    with torch.no_grad():
        earlier.state_dict()["mean"].fill_(0.3)
        earlier.state_dict()["pool.p"].fill_(5)
    file = save_run(earlier, tmp_path)
    network = ImageClassifier(TINY, checkpoint_path=file, pooling="gem", auxiliary=["density"])
    expected = earlier.state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_averaged_weights_are_the_ones_taken(tmp_path: Path) -> None:
    """Lightning puts them into `state_dict`, and the others beside it."""
    averaged = ImageClassifier(TINY, pretrained=False)
    current = {f"network.{k}": torch.zeros_like(v) for k, v in averaged.state_dict().items()}
    averaging = {"n_averaged": torch.tensor(7)}
    file = save_run(averaged, tmp_path, current_model_state=current, averaging_state=averaging)
    network = ImageClassifier(TINY, checkpoint_path=file)
    assert torch.equal(network.head.weight, averaged.head.weight)


def test_a_compiled_run_and_a_bare_network_are_taken(tmp_path: Path) -> None:
    earlier = ImageClassifier(TINY, pretrained=False)
    torch.save(earlier.state_dict(), tmp_path / "bare.pth")
    state = {f"network._orig_mod.{k}": v for k, v in earlier.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "compiled.ckpt")
    for name in ("bare.pth", "compiled.ckpt"):
        network = ImageClassifier(TINY, checkpoint_path=tmp_path / name)
        assert torch.equal(network.head.weight, earlier.head.weight)


def test_what_a_run_lacks_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save_run(ImageClassifier(TINY, pretrained=False, auxiliary=["density"]), tmp_path)
    with caplog.at_level(logging.INFO):
        network = ImageClassifier(TINY, checkpoint_path=file, pooling="gem", auxiliary=["age"])
    assert re.search(r"last.ckpt: \d+ of \d+ tensors are taken$", caplog.messages[0])
    named = caplog.messages[1].split(": ")[1].split(", ")
    assert named == ["pool.p", "auxiliary.age.weight", "auxiliary.age.bias"]
    assert network.pool.p == 3


def test_a_run_of_another_backbone_is_refused(tmp_path: Path) -> None:
    file = save_run(ImageClassifier("test_convnext", pretrained=False), tmp_path)
    with pytest.raises(InputError, match=f"does not hold the weights of {TINY}.*missing.*unknown"):
        ImageClassifier(TINY, checkpoint_path=file)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"model.conv.weight": torch.zeros(1)}}, file)
    with pytest.raises(InputError, match=r"1 unknown \(model\.conv\.weight\)"):
        ImageClassifier(TINY, checkpoint_path=file)


@pytest.mark.parametrize(
    "config", [{"name": "foreign"}, "text", {"name": "x", "fold": 0, "dataset": "d", "folds": 5}]
)
def test_a_foreign_config_is_no_record_of_a_run(config: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "config": config}, tmp_path / "foreign.ckpt")
    assert record_in(tmp_path / "foreign.ckpt") is None


def test_the_record_of_a_run_is_found(tmp_path: Path) -> None:
    record = {"name": "x", "fold": 0, "dataset": {"name": "d"}, "folds": {"strategy": "s"}}
    torch.save({"state_dict": {}, "config": record}, tmp_path / "last.ckpt")
    assert record_in(tmp_path / "last.ckpt") == record
    file = tmp_path / "last.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"config": json.dumps(record)})
    assert record_in(file) == record
    save_file({"a": torch.zeros(1)}, file)
    assert record_in(file) is None


def wrap(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def zeros(state: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize(
    "pack",
    [
        lambda s: wrap(s, "module."),
        lambda s: wrap(s, "module.encoder.backbone."),
        lambda s: wrap(s, "_orig_mod.model."),
        lambda s: {"state_dict": wrap(s, "model."), "epoch": 3, "optimizer": {"state": {}}},
        lambda s: {"model": {"state_dict": wrap(s, "module.")}},
        lambda s: {"model": zeros(s), "model_ema": wrap(s, "module.")},
        lambda s: {"state_dict": zeros(s), "state_dict_ema": s},
        lambda s: {"student": zeros(s), "teacher": s},
        lambda s: {"state_dict": wrap(s, "net.") | {"head.weight": torch.zeros(2, 2)}},
        lambda s: {**s, "epoch": 7},
    ],
)
def test_weights_are_found_wherever_they_are_kept(
    pack: Any, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save(pack(state), weights)
    with caplog.at_level(logging.INFO):
        network = ImageClassifier(TINY, checkpoint_path=weights)
    found = network.backbone.state_dict()
    for key in ("bn1.weight", "blocks.1.0.conv_pwl.weight"):
        if key in found:
            assert torch.equal(found[key], state[key])
    assert torch.allclose(found["conv_stem.weight"], state["conv_stem.weight"].sum(1, keepdim=True))
    taken, all_of_them = re.search(r"(\d+) of (\d+) tensors are taken", caplog.text).groups()  # type: ignore[union-attr]
    assert taken == all_of_them


@pytest.mark.parametrize(("lost", "is_taken"), [(2, True), (20, False)])
def test_nine_tenths_of_the_tensors_must_be_there(
    lost: int, is_taken: bool, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(weights, weights_only=True)
    parts = [k for k in state if k.startswith("blocks.") and "num_batches" not in k]
    for key in parts[-lost:]:
        del state[key]
    torch.save({"model": wrap(state, "module.")}, weights)
    with caplog.at_level(logging.INFO):
        if is_taken:
            ImageClassifier(TINY, checkpoint_path=weights)
            assert f"begin afresh: backbone.{parts[-lost]}" in caplog.text
            return
        with pytest.raises(InputError, match=rf"\d+ of \d+ tensors fit.*{lost} missing"):
            ImageClassifier(TINY, checkpoint_path=weights)


def test_a_deeper_network_is_not_taken_for_a_shallow_one(weights: Path) -> None:
    """It has all names and shapes of the shallow one, and more."""
    state = torch.load(weights, weights_only=True)
    more = {f"blocks.9.{key}": value for key, value in state.items()}
    torch.save(state | more, weights)
    with pytest.raises(InputError, match="unknown"):
        ImageClassifier(TINY, checkpoint_path=weights)


def test_weights_that_are_not_finite_are_refused(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["bn1.weight"][0] = float("inf")
    torch.save(state, weights)
    with pytest.raises(InputError, match=r"not finite \(backbone.bn1.weight\)"):
        ImageClassifier(TINY, checkpoint_path=weights)
