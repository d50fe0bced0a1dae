"""Breasts as a run sees them, with where it looks; those that it predicted out of fold as well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from rsna_bcd.data.breasts import breast_sample, collate_breasts
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import Crop, as_training_input, read_crop
from rsna_bcd.inference.runs import Run, check_prepared_crops, load_run
from rsna_bcd.inference.saliency import saliency_maps
from rsna_bcd.scoring.ensembles import Ensemble
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.out_of_fold import read_run


@dataclass(frozen=True)
class SeenImage:
    """An image of a breast, and where the network looked.

    Attributes:
        image_id: which image.
        view: `CC`, `MLO` or another; None where it is unknown.
        crop: (H, W) uint8 or uint16, as prepared.
        saliency: (h, w) over the whole crop, not negative, see `saliency_maps`; None where the
            network was not shown the image.
    """

    image_id: str
    view: str | None
    crop: Crop
    saliency: NDArray[np.float32] | None


class Explainer:
    """Shows breasts of a run's folds: from a `prediction_id` to its images.

    Each is looked at by the network of the fold that held it out: no other is asked about patients
    that it was trained on. Networks are loaded when they are needed first.

    Args:
        run: `<output>/runs/<name>`.
        prepared: `<output>/prepared/<dataset>/<crop>`, of the run's crops.
        folds: of the run; None takes all that were started.
        device: where the networks go.

    Attributes:
        images: the table of images.
        name: of the run.

    Raises:
        InputError: the run or its crops are absent, unfinished or damaged.
    """

    def __init__(
        self,
        run: Path,
        prepared: Path,
        folds: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        csv = prepared / "train.csv"
        if not csv.is_file():
            raise InputError(
                f"{csv} does not exist: {run.name} was trained on these crops. Run "
                f"`python -m rsna_bcd.prepare dataset={prepared.parent.name} crop={prepared.name}`."
            )
        self.images = read_images(csv, "train")
        if "path" not in self.images:
            raise InputError(f"{csv} has no column path: it was not written by prepare.")
        oof = read_run(run, folds)
        self._fold = dict(zip(oof["prediction_id"], oof["fold"], strict=True))
        readable = self.images[self.images["path"].notna()]
        self._rows = {str(k): rows for k, rows in self.images.groupby("prediction_id")}
        self._of_patient = {str(k): rows for k, rows in readable.groupby("patient_id")}
        self.name = run.name
        self._run, self._prepared, self._device = run, prepared, device
        self._loaded: dict[int, Run] = {}

    @classmethod
    def of_ensemble(
        cls, ensemble: Ensemble, output: Path, device: torch.device | str = "cpu"
    ) -> Self:
        """Show what the member of the largest weight saw, the first one of those.

        Args:
            ensemble: fitted.
            output: `paths.output`, where its runs and their crops are.
            device: where the networks go.
        """
        member = max(ensemble.members, key=lambda m: m.weight)
        prepared = output / "prepared" / member.dataset / member.crop
        return cls(output / "runs" / member.name, prepared, member.folds, device)

    def __call__(self, prediction_id: str) -> list[SeenImage]:
        """Show a breast.

        Returns:
            Its images that could be read, in the order of the table.

        Raises:
            InputError: the run did not predict this breast, or a crop is absent or damaged.
        """
        run = self.run_of(prediction_id)
        rows = self._rows[prediction_id]
        if rows["path"].isna().all():
            return []
        of_patient = self._of_patient[str(rows["patient_id"].iloc[0])]
        shown = of_patient
        if not (run.unit == "breast" and run.views.other_breast):
            shown = of_patient[of_patient["prediction_id"] == prediction_id]
        paths = zip(shown["image_id"], shown["path"], strict=True)
        crops = {image_id: self._crop(run, path) for image_id, path in paths}
        patient = pd.concat([rows, of_patient[of_patient["prediction_id"] != prediction_id]])
        return look(run, patient, prediction_id, crops)

    def run_of(self, prediction_id: str) -> Run:
        """The fold that held a breast out.

        Raises:
            InputError: there is none.
        """
        if prediction_id not in self._fold or prediction_id not in self._rows:
            raise InputError(
                f"{self._run} has no out-of-fold prediction of {prediction_id}, or "
                f"{self._prepared / 'train.csv'} no row. Train and prepare from one table."
            )
        fold = int(self._fold[prediction_id])
        if fold not in self._loaded:
            run = load_run(self._run / f"fold{fold}", self._device)
            check_prepared_crops(run, self._prepared)
            self._loaded[fold] = run
        return self._loaded[fold]

    def _crop(self, run: Run, path: str) -> Crop:
        crop = read_crop(self._prepared / path)
        wanted = run.crop.height, run.crop.width
        if crop.shape != wanted:
            raise InputError(
                f"{self._prepared / path} is {crop.shape[0]} x {crop.shape[1]}, and {run.folder} "
                f"was trained on {wanted[0]} x {wanted[1]}. Prepare as it was, or train again."
            )
        return crop


def look(
    run: Run, images: pd.DataFrame, prediction_id: str, crops: Mapping[str, Crop]
) -> list[SeenImage]:
    """Show a breast to a run, and see where it looks.

    Args:
        run: the network, where torch executes it.
        images: rows of the patient: `image_id, prediction_id, view`, and what runs are given as
            metadata. Those of the breast that could not be read are among them.
        prediction_id: the breast.
        crops: by `image_id`, as prepared for the run, of the images that could be read: of the
            breast and, if the run is shown it, of the other one.

    Returns:
        The images of the breast that have a crop, in the order of the table.
    """
    rows = images[images["prediction_id"] == prediction_id]
    own = rows[rows["image_id"].isin(list(crops))]
    of_other = images["prediction_id"] != prediction_id
    other = images[of_other & images["image_id"].isin(list(crops))]
    if own.empty:
        return []
    if run.unit == "image":
        maps = _by_image(run, own, crops)
    else:
        maps = _by_breast(run, rows, own, other, crops)
    return [
        SeenImage(image_id, view, crops[image_id], saliency)
        for image_id, view, saliency in zip(own["image_id"], _views(own), maps, strict=True)
    ]


def _by_image(
    run: Run, own: pd.DataFrame, crops: Mapping[str, Crop]
) -> list[NDArray[np.float32] | None]:
    """One image after the other: gradients of several at once need as much more memory."""
    known = None if run.metadata is None else torch.from_numpy(run.metadata.encode(own))
    maps: list[NDArray[np.float32] | None] = []
    for position, image_id in enumerate(own["image_id"]):
        batch = {"image": torch.from_numpy(as_training_input(crops[image_id]))[None, None]}
        if known is not None:
            batch["metadata"] = known[position : position + 1]
        maps.append(_maps(run, batch)[0])
    return maps


def _by_breast(
    run: Run,
    rows: pd.DataFrame,
    own: pd.DataFrame,
    other: pd.DataFrame,
    crops: Mapping[str, Crop],
) -> list[NDArray[np.float32] | None]:
    """All images at once, and those of the other breast where the network is shown them."""

    def load(position: int, of_other: bool) -> NDArray[np.uint8] | NDArray[np.float32]:
        return as_training_input(crops[(other if of_other else own)["image_id"].iloc[position]])

    sample = breast_sample(run.views, _views(own), _views(other), load)
    batch = collate_breasts([sample])
    if run.metadata is not None:
        batch["metadata"] = torch.from_numpy(run.metadata.encode_breasts(rows))
    placed = _maps(run, batch)[0]
    maps: list[NDArray[np.float32] | None] = [None] * len(own)
    places = run.views.places(_views(own), _views(other))
    for place, of_place in zip(places, placed, strict=True):
        if place.position is not None and not place.other and not np.isnan(of_place).any():
            maps[place.position] = of_place
    return maps


def _maps(run: Run, batch: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    device = next(run.network.parameters()).device
    there = {name: tensor.to(device) for name, tensor in batch.items()}
    return saliency_maps(run.network, there, run.tta).numpy()


def _views(rows: pd.DataFrame) -> list[str | None]:
    return [None if pd.isna(view) else str(view) for view in rows["view"]]
