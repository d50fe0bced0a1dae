"""Weights that a network starts from: taken, refused, and the patients they have seen."""

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
from rsna_bcd.models.checkpoint import (
    check_unseen,
    is_optimistic,
    record_in,
    save_safetensors,
    starts_from,
)
from rsna_bcd.models.network import ImageClassifier

TINY = "test_efficientnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights file by timm of a network of three channels, with its classifier."""
    torch.manual_seed(1)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(TINY, in_chans=3, num_classes=1000).state_dict(), file)
    return file


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_channel_equals_three_equal_channels(suffix: str, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    reference = timm.create_model(TINY, in_chans=3, num_classes=0, global_pool="")
    reference.load_state_dict({k: v for k, v in state.items() if "classifier." not in k})
    file = weights.with_suffix(suffix)
    if suffix == ".safetensors":
        save_file(state, file)
    backbone = ImageClassifier(TINY, checkpoint_path=file).backbone.eval()
    images = torch.rand(2, 1, 64, 64)
    expected = reference.eval()(images.expand(-1, 3, -1, -1))
    assert torch.allclose(backbone(images), expected, atol=1e-5)


def test_a_stem_of_groups_of_pixels_is_adapted_as_timm_does(tmp_path: Path) -> None:
    file = tmp_path / "tresnet_m.pth"
    torch.manual_seed(1)
    torch.save(timm.create_model("tresnet_m", num_classes=10).state_dict(), file)
    own = {"num_classes": 0, "in_chans": 1, "pretrained": True}
    overlay = {"file": str(file), "num_classes": 10}
    expected = timm.create_model("tresnet_m", **own, pretrained_cfg_overlay=overlay).state_dict()
    backbone = ImageClassifier("tresnet_m", checkpoint_path=file).backbone.state_dict()
    stem = "body.conv1.conv.weight"
    assert torch.allclose(backbone[stem], expected[stem], atol=1e-6)


def test_weights_of_another_transformer_are_refused(tmp_path: Path) -> None:
    """Whose module of timm cannot even convert them."""
    file = tmp_path / "swin.pth"
    swin = timm.create_model("swin_s3_tiny_224", img_size=224)
    torch.save(swin.state_dict(), file)
    with pytest.raises(InputError, match="does not hold the weights of test_maxvit"):
        ImageClassifier("test_maxvit", checkpoint_path=file, image_size=(64, 64))


@pytest.mark.parametrize(
    ("change", "backbone", "message"),
    [
        (lambda s: s, "test_resnet", "does not hold the weights of test_resnet.*unknown"),
        # It has all names and shapes of the shallow one, and more.
        (lambda s: s | {f"blocks.9.{k}": v for k, v in s.items()}, TINY, "unknown"),
        (lambda s: s | {"conv_stem.weight": torch.zeros(99, 3, 3, 3)}, TINY, "1 of another shape"),
        (lambda s: s | {"bn1.weight": s["bn1.weight"] / 0}, TINY, r"finite \(backbone.bn1.weight"),
        (lambda _: {"state_dict": {"model.conv.weight": torch.zeros(1)}}, TINY,
         r"1 unknown \(model\.conv\.weight\)"),
    ],
    ids=["other", "deeper", "size", "infinite", "foreign"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    change: Any, backbone: str, message: str, weights: Path
) -> None:
    torch.save(change(torch.load(weights, weights_only=True)), weights)
    with pytest.raises(InputError, match=message):
        ImageClassifier(backbone, checkpoint_path=weights)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"a,b\n1,2\n", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_without_weights_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as weights|does not hold"):
        ImageClassifier(TINY, checkpoint_path=file)


def test_a_pickled_module_is_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "module.pth"
    torch.save(nn.Linear(1, 1), file)
    with pytest.raises(InputError, match="cannot be read as weights"):
        ImageClassifier(TINY, checkpoint_path=file)


def wrap(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def zeros(state: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def save_run(network: nn.Module, folder: Path, **more: Any) -> Path:
    """The checkpoint of a network that a run leaves."""
    file, state = folder / "last.ckpt", wrap(network.state_dict(), "network.")
    torch.save({"state_dict": state, "config": {"name": "earlier"}, "epoch": 3, **more}, file)
    return file


def test_the_averaged_weights_of_a_run_are_taken_whole(tmp_path: Path) -> None:
    """Also the normalisation: weights trained with another one would see other images.

    Lightning puts the average into `state_dict`, and the others beside it.
    """
    earlier = ImageClassifier(TINY, pretrained=False, pooling="gem", auxiliary=["density"])
    with torch.no_grad():
        earlier.state_dict()["mean"].fill_(0.3)
        earlier.state_dict()["pool.p"].fill_(5)
    expected = earlier.state_dict()
    current, averaging = wrap(zeros(expected), "network."), {"n_averaged": torch.tensor(7)}
    file = save_run(earlier, tmp_path, current_model_state=current, averaging_state=averaging)
    network = ImageClassifier(TINY, checkpoint_path=file, pooling="gem", auxiliary=["density"])
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_compiled_run_and_a_bare_network_are_taken(tmp_path: Path) -> None:
    earlier = ImageClassifier(TINY, pretrained=False)
    torch.save(earlier.state_dict(), tmp_path / "bare.pth")
    state = wrap(earlier.state_dict(), "network._orig_mod.")
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


def test_record_in_finds_the_record_of_a_run_and_takes_no_foreign_one(tmp_path: Path) -> None:
    foreign = {"name": "x", "fold": 0, "dataset": "d", "folds": 5}
    for config in ({"name": "foreign"}, "text", foreign):
        torch.save({"state_dict": {}, "config": config}, tmp_path / "foreign.ckpt")
        assert record_in(tmp_path / "foreign.ckpt") is None
    record = {"name": "x", "fold": 0, "dataset": {"name": "d"}, "folds": {"strategy": "s"}}
    torch.save({"state_dict": {}, "config": record}, tmp_path / "last.ckpt")
    assert record_in(tmp_path / "last.ckpt") == record
    file = tmp_path / "last.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"config": json.dumps(record)})
    assert record_in(file) == record
    save_file({"a": torch.zeros(1)}, file)
    assert record_in(file) is None


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
    assert torch.equal(found["bn1.weight"], state["bn1.weight"])
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
            assert f"start from random ones: backbone.{parts[-lost]}" in caplog.text
            return
        with pytest.raises(InputError, match=rf"\d+ of \d+ tensors fit.*{lost} missing"):
            ImageClassifier(TINY, checkpoint_path=weights)


def record(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x", "fold": 0, "dataset": {"name": "rsna"}, "select": "last", "patience": None,
        "folds": {"strategy": "stratified", "sha256": "1"}, "network": {"checkpoint_path": "file"},
        **changes,
    }  # fmt: skip


def save(folder: Path, file: str, **changes: Any) -> Path:
    torch.save({"config": record(**changes), "state_dict": {}}, folder / file)
    return folder / file


def test_a_file_names_its_run_and_those_before(tmp_path: Path) -> None:
    first = starts_from(save(tmp_path, "best.ckpt", name="first", patience=3))
    (entry,) = first
    assert (entry["name"], entry["select"], entry["patience"]) == ("first", "best", 3)
    second = starts_from(save(tmp_path, "last.ckpt", name="second", starts_from=first))
    assert [run["name"] for run in second] == ["second", "first"]
    assert [run["select"] for run in second] == ["last", "best"]
    torch.save({"config": {"model": "theirs"}}, tmp_path / "foreign.ckpt")
    assert starts_from(tmp_path / "foreign.ckpt") == []
    assert starts_from(tmp_path / "nowhere.ckpt") == []


@pytest.mark.parametrize(
    "other", [{"fold": 1}, {"fold": "all"}, {"folds": {"strategy": "holdout", "sha256": "2"}}]
)
def test_only_the_same_fold_of_the_same_folds_is_unseen(other: dict[str, Any]) -> None:
    check_unseen(record(starts_from=[record()]))
    with pytest.raises(InputError, match="checkpoint_path=file has learnt from patients of rsna"):
        check_unseen(record(starts_from=[record(), record(**other)]))
    with pytest.raises(InputError, match="rsna in fold 2, .*the same left_out_folds"):
        check_unseen(record(left_out_folds=[2], starts_from=[record()]))
    check_unseen(record(starts_from=[record(fold=1, left_out_folds=[0])]))
    elsewhere = {"dataset": {"name": "vindr"}}
    check_unseen(record(starts_from=[record(**other, **elsewhere)]))
    check_unseen(record(fold="all", starts_from=[record(**other)]))


@pytest.mark.parametrize("choice", [{"select": "best"}, {"patience": 0}], ids=str)
def test_a_choice_on_the_held_out_patients_is_inherited(choice: dict[str, Any]) -> None:
    assert not is_optimistic(record(starts_from=[record()]))
    assert is_optimistic(record(**choice))
    assert is_optimistic(record(starts_from=[record(), record(**choice)]))
    elsewhere = record(**choice, dataset={"name": "vindr"})
    assert not is_optimistic(record(starts_from=[elsewhere]))
    assert not is_optimistic(record(fold="all", starts_from=[record(**choice)]))


def test_our_own_safetensors_have_seen_their_patients(tmp_path: Path) -> None:
    """As a bundle has them; their file may have any name."""
    run = record(select="best")
    file = tmp_path / "weights.safetensors"
    save_safetensors({"config": run, "state_dict": {"a": torch.zeros(1)}}, file)
    (entry,) = starts_from(file)
    assert (entry["name"], entry["fold"], entry["select"]) == ("x", 0, "best")
    with pytest.raises(InputError, match="has learnt from patients of rsna"):
        check_unseen(record(fold=1, starts_from=[entry]))
