"""Networks of breast level predict any breast: one image or fourteen, any views."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from saved_runs import save_trained, spread_network
from stage_settings import composed

import rsna_bcd.stages.train  # noqa: F401  (albumentations is silenced before Hydra imports it)
from rsna_bcd.data.dataset import Sample, breast_sample, collate_breasts
from rsna_bcd.inference.run import Run, load_run
from rsna_bcd.models.prediction import predict_logits

EXPERIMENTS = (
    "convnext_small_two_view", "effnetv2_s_attention", "convnext_small_four_view",
    "finetune_breast_head", "effnetv2_s_bilateral",
)  # fmt: skip
# Views of a breast, and of the other one of its patient.
BREASTS: list[tuple[list[Any], list[Any]]] = [
    (["CC", "MLO"], ["MLO", "CC"]),
    (["CC"], []),
    (["MLO"], ["CC"]),
    (["CC", "MLO"] * 7, ["MLO"]),
    (["MLO"] * 14, []),
    ([None], [None]),
    ([float("nan"), "XCCL"], ["CC"]),
    (["XCCL"] * 14, [None] * 14),
    ([None, "CC"], ["AT"]),
]


@pytest.fixture(scope="module", params=EXPERIMENTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of an experiment, never trained, with a small network and small crops."""
    cfg = composed(
        "train", f"paths.output={tmp_path_factory.mktemp('odd')}", f"experiment={request.param}",
        "network.pretrained=false", "network.backbone=test_resnet", "checkpoint_path=null",
        "crop.height=96", "crop.width=64",
    )  # fmt: skip
    return load_run(save_trained(cfg, spread_network(cfg)[0]))


def load(position: int, other: bool) -> NDArray[np.uint8]:
    """Noise, brighter from image to image."""
    generator = np.random.default_rng([position, other])
    return generator.integers(0, 60 + 13 * position + 7 * other, (96, 64), dtype=np.uint8)


def test_network_predicts_any_breast_independent_of_its_batch(run: Run) -> None:
    samples = [breast_sample(run.views, own, other, load) for own, other in BREASTS]

    def logits(part: Sequence[Sample]) -> NDArray[np.float32]:
        return predict_logits(run.network, collate_breasts(part), run.tta).numpy()

    together = logits(samples)
    assert np.isfinite(together).all()
    assert np.ptp(together) > 1e-3  # it depends on the image
    assert together == pytest.approx(np.concatenate([logits([s]) for s in samples]), abs=1e-5)
