"""Cancers and look-alikes: alike in brightness, different in shape."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rsna_bcd.phantom.anatomy import Projection, project, sample_breast
from rsna_bcd.phantom.lesions import Circle, Finding, plant, sample_findings

SHAPE, PIXEL_MM = (480, 390), 0.55


def view_with(finding_seed: int, view: str, malignant: bool) -> tuple[Projection, list[Circle]]:
    """The same breast, with cancers or with their look-alikes."""
    rng = np.random.default_rng(finding_seed)
    breast = sample_breast(0.0, "B", False, rng)
    findings = sample_findings(breast, malignant, finding_seed % 3 > 0, 7.0, 0.25, rng)
    projection = project(breast, view, SHAPE, PIXEL_MM, rng)
    return projection, [plant(projection, finding) for finding in findings]


def one(kind: str, malignant: bool) -> tuple[Finding, Projection]:
    """A finding of a kind, and a breast without tissue."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        breast = sample_breast(0.0, "B", False, rng)
        finding = sample_findings(breast, malignant, True, 7.0, 0.25, rng)[-1]
        if finding.kind == kind:
            projection = project(breast, "CC", SHAPE, PIXEL_MM, rng)
            projection.tissue[:] = 0
            return finding, projection
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["mass", "calcifications"])
def test_plant_look_alikes_differ_from_cancers_in_shape_only(kind: str) -> None:
    finding, cancer = one(kind, malignant=True)
    circle = plant(cancer, finding)
    _, benign = one(kind, malignant=False)
    plant(benign, replace(finding, malignant=False))
    assert benign.tissue.max() == pytest.approx(cancer.tissue.max(), rel=0.25)
    # Spicules overlap at their mass and ligaments nowhere: equal lines, up to a third more area.
    assert benign.tissue.sum() == pytest.approx(cancer.tissue.sum(), rel=0.35)

    y, x = np.indices(cancer.tissue.shape)
    near = np.hypot(x - circle.x, y - circle.y) <= circle.radius + 1
    assert cancer.tissue[~near].sum() < 0.01 * cancer.tissue.sum()
    assert benign.tissue[~near].sum() > 0.2 * benign.tissue.sum()


def test_plant_same_distance_from_the_nipple_in_both_views() -> None:
    for seed in range(10):
        behind = []
        for view in ("CC", "MLO"):
            projection, circles = view_with(seed, view, malignant=True)
            behind.append(projection.nipple[0] - circles[0].x)
            assert projection.depth[round(circles[0].y), round(circles[0].x)] > 5
        assert behind[0] == pytest.approx(behind[1], abs=0.01)


def test_plant_intensity_statistics_do_not_separate_cancers() -> None:
    labels, values = [seed % 2 == 1 for seed in range(60)], []
    for seed, malignant in enumerate(labels):
        projection, _ = view_with(seed, "CC", malignant)
        pixels = projection.tissue[projection.depth > 0]
        percentiles = np.percentile(pixels, [50, 99, 100])
        values.append([pixels.mean(), pixels.std(), *percentiles])
    aurocs = [roc_auc_score(labels, column) for column in np.transpose(values)]
    assert 0.3 < min(aurocs) <= max(aurocs) < 0.7
