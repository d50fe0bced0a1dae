"""Does a network look where the cancer is? On the demo, whose cancers were planted.

    make demo && python benchmarks/saliency.py --json saliency.json

Of the cancers that the ensemble finds out of fold at its threshold, each image's map is asked where
it is largest. That is a hit if the centre of the largest cell lies within the circle of a lesion
(`lesions.csv`) or at most one cell beside it, across and down. Chance is the share of the breast's
area where a point would be such a hit: the part that a map without any idea would have, exactly.
Smaller cells allow less, and have the smaller chance for it; the columns "within" allow nothing.
Cancers are not planted everywhere alike, so there is a second comparison: how often the largest
cells of other patients' maps of the same view would be hits here ("of others").

A breast is scored by one point: the largest of all its maps. Intervals are over resampled patients.

The first row is the report's method; the others are other layers and methods on the same images.
Runs of networks that look at breasts are scored by the first row alone.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerActivation, LayerGradientXActivation
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rsna_bcd.imaging.breast import breast_mask
from rsna_bcd.imaging.crops import as_training_input, in_8_bits
from rsna_bcd.inference import saliency
from rsna_bcd.inference.saliency import ExplainedImage, Explainer
from rsna_bcd.models.prediction import to_input
from rsna_bcd.scoring.ensemble import read_ensemble
from rsna_bcd.scoring.intervals import Interval, bootstrap_interval
from rsna_bcd.scoring.thresholds import decide
from rsna_bcd.tables.predictions import read_oof

Map = NDArray[np.float32]  # (h, w)
Circles = NDArray[np.float64]  # (L, 3): x, y, radius in pixels of the crop
MEASURES = ("hit", "chance", "of_others", "within", "within_chance")
OURS = f"HiResCAM, stride {saliency.STRIDE} (ours)"


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--data", type=Path, help="with lesions.csv; default: <output>/data")
    parser.add_argument("--name", default="demo", help="of the ensemble")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.output / "ensembles" / arguments.name
    ensemble = read_ensemble(folder / "ensemble.json")
    oof = read_oof(folder / "oof.csv")
    called = decide(oof["probability"], ensemble.threshold) == 1
    found = oof[(oof["label"] == 1) & called]
    explainer = Explainer.for_ensemble(ensemble, arguments.output)
    lesions = read_lesions(arguments.data or arguments.output / "data", explainer.images)
    rows, seconds = [], 0.0
    for breast, patient in track(
        list(zip(found["prediction_id"], found["patient_id"], strict=True)),
        "Looking",
        console=Console(stderr=True),
    ):
        start = time.perf_counter()
        seen = explainer(breast)
        seconds += time.perf_counter() - start
        for image in seen:
            for method, of_method in make_maps(explainer, breast, image).items():
                scored = judge(image, of_method, lesions[image.image_id])
                known = {"breast": breast, "patient": patient, "view": image.view}
                rows.append({"method": method, **known, **scored})
    scores = summary(with_others(pd.DataFrame(rows)))
    show(scores, f"{len(found)} of {ensemble.positives} cancers found", seconds / len(found))
    if arguments.json:
        content = {
            "breasts": len(found), "seconds_a_breast": seconds / len(found), "results": scores,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(content, indent=1, default=vars))


def read_lesions(data: Path, images: pd.DataFrame) -> dict[str, Circles]:
    """The lesions of each image, from pixels of the source to those of the crop."""
    lesions = pd.read_csv(data / "lesions.csv", dtype={"image_id": "string"})
    rows = lesions.drop(columns=["prediction_id", "box_left", "box_top", "box_width", "box_height"])
    rows = rows.merge(images, on="image_id")
    width, height = (rows["scale"] * rows[f"box_{side}"] for side in ("width", "height"))
    x = rows["scale"] * (rows["center_x"] - rows["box_left"])
    y = rows["scale"] * (rows["center_y"] - rows["box_top"])
    x = x.where(rows["flipped"] == 0, width.round() - x)
    # Counterclockwise: the top becomes the left.
    upright, quarter = rows["rotated"] == 0, rows["rotated"] == 90
    turned_x = y.where(quarter, height.round() - y)
    turned_y = (width.round() - x).where(quarter, x)
    x, y = x.where(upright, turned_x), y.where(upright, turned_y)
    height = height.where(upright, width)
    # Padding is equal above and below: what has a place from the crop's middle needs no height.
    rows = rows.assign(
        x=x,
        from_middle=y - height.round() / 2,
        in_crop=rows["scale"] * rows["radius"],
    )
    return {
        str(image): of_image[["x", "from_middle", "in_crop"]].to_numpy(np.float64)
        for image, of_image in rows.groupby("image_id")
    }


def make_maps(explainer: Explainer, breast: str, image: ExplainedImage) -> dict[str, Map]:
    """The map of the report, and those of other methods."""
    maps = {} if image.saliency is None else {OURS: image.saliency}
    run = explainer.held_out_run(breast)
    network: Any = run.network
    if run.level != "image" or run.metadata is not None or not hasattr(network, "backbone"):
        return maps
    pixels = to_input(torch.from_numpy(as_training_input(image.crop)))[None, None]

    def logit(images: torch.Tensor) -> torch.Tensor:
        outputs: dict[str, torch.Tensor] = network(images)
        return outputs["logit"]

    for stride in (8, 16, 32):
        layer, channel = saliency.deepest_layer(network, image.crop.shape, stride)
        with saliency.whole_layers(network):
            activation, gradient = (
                attribution.attribute(pixels.clone().requires_grad_()).movedim(channel, 1)
                for attribution in (
                    LayerActivation(logit, layer),
                    LayerGradientXActivation(logit, layer, multiply_by_inputs=False),
                )
            )
        for method, weigh in METHODS.items():
            name = f"{method}, stride {stride}"
            if not OURS.startswith(name):
                maps[name] = _positive((weigh(gradient) * activation).sum(dim=1))
    return maps


def _positive(maps: torch.Tensor) -> Map:
    positive: Map = maps.relu()[0].detach().numpy()
    return positive


METHODS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # the weights of activations
    "HiResCAM": lambda gradient: gradient,
    "LayerCAM": lambda gradient: gradient.relu(),
    "Grad-CAM": lambda gradient: gradient.mean(dim=(2, 3), keepdim=True),
}


def judge(image: ExplainedImage, of_image: Map, lesions: Circles) -> dict[str, Any]:
    """Where the map is largest, and how often a point anywhere in the breast would do as well."""
    height, width = image.crop.shape
    circles = lesions + [0, height / 2, 0]
    cell_y, cell_x = height / of_image.shape[0], width / of_image.shape[1]
    row, column = np.unravel_index(of_image.argmax(), of_image.shape)
    point = np.array((column + 0.5) * cell_x), np.array((row + 0.5) * cell_y)
    picture = in_8_bits(image.crop).astype(np.float32) / np.float32(255)
    breast = breast_mask(picture)
    assert breast is not None, f"no breast stands out in {image.image_id}"
    y, x = np.nonzero(breast)
    everywhere = x + 0.5, y + 0.5
    return {
        "largest": float(of_image.max()),
        "x": float(point[0]),
        "y": float(point[1]),
        "allowing": (circles, cell_x, cell_y),
        "hit": float(near(*point, circles, cell_x, cell_y)),
        "chance": float(near(*everywhere, circles, cell_x, cell_y).mean()),
        "within": float(near(*point, circles, 0, 0)),
        "within_chance": float(near(*everywhere, circles, 0, 0).mean()),
    }


def near(
    x: NDArray[np.floating[Any]],
    y: NDArray[np.floating[Any]],
    circles: Circles,
    across: float,
    down: float,
) -> NDArray[np.bool_]:
    """Whether points lie in a circle, or would if moved by `across` and `down` at most."""
    hits = np.zeros(x.shape, dtype=bool)
    for centre_x, centre_y, radius in circles:
        beside = np.maximum(np.abs(x - centre_x) - across, 0)
        above = np.maximum(np.abs(y - centre_y) - down, 0)
        hits |= np.hypot(beside, above) <= radius
    return hits


def with_others(rows: pd.DataFrame) -> pd.DataFrame:
    """Add how often the largest cells of other patients' maps would be hits in each image."""
    shares: dict[Any, float] = {}
    for _, alike in rows.groupby(["method", "view"]):
        for index, row in alike.to_dict("index").items():
            others = alike[alike["patient"] != row["patient"]]
            points = others["x"].to_numpy(), others["y"].to_numpy()
            shares[index] = near(*points, *row["allowing"]).mean()
    return rows.assign(of_others=rows.index.map(shares))


def summary(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Means by method, of images and of the strongest image of each breast."""
    scores = []
    for method, of_method in rows.groupby("method", sort=False):
        strongest = of_method.loc[of_method.groupby("breast")["largest"].idxmax()]
        for unit, part in (("image", of_method), ("breast", strongest)):
            means: dict[str, Any] = {
                name: bootstrap_interval(
                    _mean, np.ones(len(part)), part[name], part["patient"], n=2000, seed=0
                )
                for name in MEASURES
            }
            scores.append({"method": method, "unit": unit, "n": len(part), **means})
    return scores


def _mean(labels: Any, values: Any, weights: Any = None) -> float:
    return float(np.average(values, weights=weights))


def show(scores: list[dict[str, Any]], title: str, seconds: float) -> None:
    """Print the table."""
    table = Table(
        "method", "unit", "n", "within a cell", "chance", "of others", "within", "chance",
        title=title,
    )  # fmt: skip
    for score in scores:
        within: Interval = score["hit"]
        table.add_row(
            str(score["method"]), score["unit"], str(score["n"]), str(within),
            *(f"{score[name].value:.3f}" for name in MEASURES[1:]),
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    console.print(f"{seconds:.2f} s a breast, on this machine's processor, loading included")


if __name__ == "__main__":
    main()
