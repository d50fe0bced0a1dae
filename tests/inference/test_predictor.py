"""The predictor survives a lack of memory and overflow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsna_bcd.errors import InputError
from rsna_bcd.inference.predictor import Precision, Predictor, resolve_precision
from rsna_bcd.inference.run import Run
from rsna_bcd.tables.views import Views


class Fragile(nn.Module):
    """A logit from the brightness of an image, unless there are too many, or it is too bright.

    Args:
        most: images that fit into its memory.
        most_in_half: brightness above which half precision overflows.
        most_bright: brightness above which any precision does.
    """

    unit = "image"
    inputs = ()

    def __init__(self, most: int = 99, most_in_half: float = 9, most_bright: float = 9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.most, self.most_in_half, self.most_bright = most, most_in_half, most_bright
        self.seen: list[tuple[int, bool]] = []  # size and whether under autocast, of each call

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute `logit` (B,)."""
        is_half = torch.is_autocast_enabled("cpu")
        self.seen.append((len(image), is_half))
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        brightness = image.mean((1, 2, 3))
        most = min(self.most_in_half, self.most_bright) if is_half else self.most_bright
        return {"logit": torch.where(brightness > most, torch.inf, self.weight * brightness)}


def make_run(network: nn.Module, tta: Any = ()) -> Run:
    crop: Any = None
    return Run(Path("runs/b5/fold3"), {}, crop, "dicom", tta, network, Views(), None)


def make_batch(n: int) -> dict[str, Tensor]:
    """Images of brightness 0, .1, .2, ..."""
    return {"image": torch.arange(n).div(10)[:, None, None, None].expand(n, 1, 4, 4)}


def expected(n: int) -> np.ndarray:
    return 1 / (1 + np.exp(-0.3 * np.arange(n)))


def test_resolve_precision() -> None:
    known: Any = {("auto", "cpu"): "float32", ("auto", "cuda"): "fp16", ("bf16", "cuda"): "bf16",
                  ("float32", "cuda"): "float32"}  # fmt: skip
    assert {key: resolve_precision(*key) for key in known} == known
    with pytest.raises(InputError, match="precision is auto or float32"):
        resolve_precision("double", "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "is_half"), [("float32", False), ("bf16", True)])
def test_predictor_autocasts_half_precision_only(precision: Precision, is_half: bool) -> None:
    network = Fragile()
    values, reason = Predictor(make_run(network, ["hflip"]), precision).predict(make_batch(3))
    assert network.seen == [(3, is_half)] * 2
    assert values == pytest.approx(expected(3), abs=1e-2 if is_half else 1e-6)
    assert reason is None


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_predictor_halves_a_batch_until_it_fits(most: int) -> None:
    network = Fragile(most=most)
    forward = Predictor(make_run(network), "float32")
    values, reason = forward.predict(make_batch(8))
    assert values == pytest.approx(expected(8), abs=1e-6)
    assert reason is None
    tried = len(network.seen)
    forward.predict(make_batch(8))
    assert all(size <= most for size, _ in network.seen[tried:])  # the limit is remembered


def test_predictor_names_a_lack_of_memory() -> None:
    values, reason = Predictor(make_run(Fragile(most=0)), "float32").predict(make_batch(3))
    assert np.isnan(values).all()
    assert reason is not None
    assert reason.startswith("b5 fold3 needs more memory than cpu has")


def test_predictor_repeats_an_overflow_in_float32() -> None:
    network = Fragile(most_in_half=0.25)
    values, reason = Predictor(make_run(network), "bf16").predict(make_batch(4))
    assert network.seen == [(4, True), (4, False)]
    np.testing.assert_allclose(values, expected(4), atol=1e-6)  # in float32, all of it
    assert reason is None


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_predictor_gives_nan_for_infinity(precision: Precision) -> None:
    values, reason = Predictor(make_run(Fragile(most_bright=0.25)), precision).predict(
        make_batch(4)
    )
    assert np.isnan(values).tolist() == [False, False, False, True]
    assert values[:3] == pytest.approx(expected(3), abs=1e-6)
    assert reason == "b5 fold3 gave no finite value"


def test_predictor_splits_batches_on_a_processor() -> None:
    network = Fragile()
    batch = {"image": torch.zeros(5, 1, 1024, 512)}
    values, _ = Predictor(make_run(network), "float32").predict(batch)
    assert [size for size, _ in network.seen] == [2, 2, 1]
    assert np.array_equal(values, np.full(5, 0.5))
