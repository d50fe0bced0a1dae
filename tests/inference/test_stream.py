"""The stream predicts files as training predicted the crops of a fold."""

import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import saved_runs
import torch
from fabricated_networks import TinyBreasts, TinyImages
from hydra.utils import instantiate
from saved_runs import save_run

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.errors import InputError
from rsna_bcd.inference.deadline import StageTimer
from rsna_bcd.inference.predictor import Predictor
from rsna_bcd.inference.run import Run, load_run
from rsna_bcd.inference.stream import (
    BreastPrediction,
    InferenceSettings,
    PatientBuffer,
    Prediction,
)
from rsna_bcd.inference.stream import predict as predict_stream
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.models.prediction import predict_logits
from rsna_bcd.preparation.crop import prepare_image
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Views

CROP = instantiate(saved_runs.CROP)
METADATA: dict[str, Any] = {"columns": ["age", "implant", "machine_id"], "machines": [29, 49]}
# Of each breast: its views, in the order of the table, which lists patients in turns.
BREASTS = {
    "1_L": ["MLO", "CC"], "1_R": ["CC", "CC", "MLO", "MLO"],
    "2_L": ["CC", "MLO", "AT"], "2_R": ["LM", "ML", "AT"],
    "3_R": ["CC", "MLO"],
    "4_L": ["CC"], "4_R": ["MLO", "CC"],
}  # fmt: skip
UNREADABLE = {("1_R", 0), ("4_L", 0), ("2_L", 1)}
EXPERT = {"1_L": 1, "4_R": 1, "2_R": 1}  # the positive ones


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and their table, as a test set and as a training set."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows: list[list[Any]] = []
    for breast, views in BREASTS.items():
        patient, laterality = breast.split("_")
        for number, view in enumerate(views):
            image_id = f"{breast}{number}"
            pixels = np.zeros((128, 96), np.uint8)
            width = int(generator.integers(30, 60))
            pixels[20:100, :width] = generator.integers(60, 200, (80, width))
            file = folder / "test_images" / patient / f"{image_id}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), pixels)
            if (breast, number) in UNREADABLE:
                file.write_bytes(b"no image")
            rows.append(
                [1, patient, image_id, laterality, view, 40 + 3 * len(rows), int(number == 1),
                 (29, 49, 5)[len(rows) % 3], breast, number, EXPERT.get(breast, 0)]
            )  # fmt: skip
    columns = [
        "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id",
        "prediction_id", "number", "cancer",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns).sort_values(["number", "patient_id"])
    table.drop(columns=["number", "cancer"]).to_csv(folder / "test.csv", index=False)
    table.drop(columns=["number", "prediction_id"]).to_csv(folder / "train.csv", index=False)
    return folder


def read_test(data: Path) -> pd.DataFrame:
    return pd.read_csv(data / "test.csv", dtype={"patient_id": str})


def find_files(data: Path) -> dict[str, Path]:
    return {file.stem: file for file in (data / "test_images").rglob("*.png")}


def save_breast_run(folder: Path, *, metadata: bool = True, **views: Any) -> Run:
    torch.manual_seed(0)
    width = Metadata(**METADATA).width if metadata else 0
    save_run(
        folder,
        TinyBreasts(width),
        network={"metadata_width": width},
        views={"_target_": "rsna_bcd.tables.views.Views", **views},
        metadata={"_target_": "rsna_bcd.tables.metadata.Metadata", **METADATA} if width else None,
    )
    return load_run(folder)


def out_of_fold(data: Path, run: Run, output: Path) -> pd.Series:
    """The predictions of the crops of a fold, by the code of training."""
    table = pd.read_csv(data / "train.csv", dtype={"patient_id": str})
    files = find_files(data)
    paths: list[Any] = []
    for image_id in table["image_id"]:
        if any(image_id == f"{breast}{number}" for breast, number in UNREADABLE):
            paths.append(None)
            continue
        crop = prepare_image(files[image_id], CROP, "image").pixels
        cv2.imwrite(str(output / f"{image_id}.png"), crop)
        paths.append(f"{image_id}.png")
    # A second fold to train on: the same patients under other names.
    again = table.assign(
        patient_id="9" + table["patient_id"], image_id="9" + table["image_id"].astype(str)
    )
    both = pd.concat([table, again]).assign(path=paths * 2)
    both.to_csv(output / "train.csv", index=False)
    folds = both[["patient_id"]].drop_duplicates()
    folds["fold"] = (folds["patient_id"].str.len() > 1).astype(int)
    folds.to_csv(output / "folds.csv", index=False)
    module = CropDataModule(
        output, output / "folds.csv", 0, Augmentation([]), batch_size=2,
        negatives_per_positive=None, workers=0, seed=0,
        level=run.level, views=run.views, metadata=run.metadata,
    )  # fmt: skip
    module.setup()
    batches: Any = module.val_dataloader()
    logits = torch.cat([predict_logits(run.network, batch, run.tta) for batch in batches])
    key = "image_id" if run.level == "image" else "prediction_id"
    return pd.Series(logits.sigmoid().double().numpy(), module.held_out[key])


def predict(
    data: Path, *runs: Run, batch_size: int, workers: int = 0
) -> tuple[list[Prediction], dict[str, Any]]:
    settings = InferenceSettings("image", batch_size, workers)
    stream = predict_stream(read_test(data), find_files(data), runs, settings)
    by_image, by_breast = [], {}
    for prediction in stream:
        if isinstance(prediction, BreastPrediction):
            assert prediction.prediction_id not in by_breast
            by_breast[prediction.prediction_id] = prediction.probabilities
        else:
            by_image.append(prediction)
    return by_image, by_breast


@pytest.mark.parametrize(
    "views",
    [
        {},
        {"most": 2, "other_breast": True},
        {"policy": "one_per_view", "other_breast": True},
        {"policy": "random_per_epoch", "order": ["MLO", "CC"], "other_breast": True},
    ],
    ids=str,
)
def test_predict_agrees_with_the_out_of_fold_predictions_of_breasts(
    views: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    run = save_breast_run(tmp_path / "run" / "fold0", **views)
    assert run.level == "breast"
    assert run.views == Views(**views)
    expected = out_of_fold(data, run, tmp_path)
    assert set(expected.index) == set(BREASTS) - {"4_L"}  # its only image cannot be read
    assert expected.std() > 0.01
    for batch_size in (1, 5, 64):
        by_image, by_breast = predict(data, run, batch_size=batch_size)
        found = {breast: values[0] for breast, values in by_breast.items()}
        assert found == pytest.approx(expected.to_dict(), abs=1e-6)
        failed = {p.image_id for p in by_image if p.probabilities is None}
        assert failed == {f"{breast}{number}" for breast, number in UNREADABLE}
        assert len(by_image) == len(find_files(data))


def test_predict_gives_each_image_its_metadata(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = {**METADATA, "columns": ["view", "age", "machine_id"]}
    width = Metadata(**known).width
    metadata = {"_target_": "rsna_bcd.tables.metadata.Metadata", **known}
    network = {"metadata_width": width}
    folder = tmp_path / "run" / "fold0"
    run = load_run(save_run(folder, TinyImages(width), network=network, metadata=metadata))
    expected = out_of_fold(data, run, tmp_path)
    by_image, by_breast = predict(data, run, batch_size=3)
    assert not by_breast
    found = {p.image_id: p.probabilities[0] for p in by_image if p.probabilities is not None}
    assert found == pytest.approx(expected.to_dict(), abs=1e-6)


def test_predict_is_the_same_with_worker_processes(data: Path, tmp_path: Path) -> None:
    run = save_breast_run(tmp_path / "run" / "fold0", policy="one_per_view", other_breast=True)
    _, one = predict(data, run, batch_size=4)
    _, several = predict(data, run, batch_size=4, workers=2)
    assert {k: v[0] for k, v in several.items()} == pytest.approx(
        {k: v[0] for k, v in one.items()}, abs=1e-6
    )


def test_predict_completes_a_patient_before_the_next(data: Path, tmp_path: Path) -> None:
    """Although the table alternates between patients."""
    run = save_breast_run(tmp_path / "run" / "fold0", metadata=False)
    settings = InferenceSettings("image", 1, workers=0)
    stream = predict_stream(read_test(data), find_files(data), [run], settings)
    patients = [
        (p.prediction_id if isinstance(p, BreastPrediction) else p.image_id)[0] for p in stream
    ]
    assert patients == sorted(patients)


def test_patient_buffer_ignores_the_order_and_frees_crops(data: Path, tmp_path: Path) -> None:
    run = save_breast_run(tmp_path / "run" / "fold0", other_breast=True)
    table, files = read_test(data), find_files(data)
    found = []
    for order in (1, -1):
        buffer = PatientBuffer(table, files, [run], [0])
        generator = np.random.default_rng(0)
        crops = {i: generator.integers(0, 256, (64, 32), dtype=np.uint8) for i in sorted(files)}
        kept = [weakref.ref(crop) for crop in crops.values()]
        for image_id in sorted(files)[::order]:
            buffer.add(image_id, [crops.pop(image_id)])
        assert buffer.ready == len(files)
        predicted = buffer.predict([Predictor(run, "float32")], (), StageTimer())
        found.append({p.prediction_id: float(p.probabilities[0]) for p in predicted})
        assert buffer.ready == 0
        assert not any(crop() is not None for crop in kept)
    assert set(found[0]) == set(BREASTS)
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_predict_ignores_absent_files(data: Path, tmp_path: Path) -> None:
    run = save_breast_run(tmp_path / "run" / "fold0", metadata=False)
    files = {image: file for image, file in find_files(data).items() if image != "1_L0"}
    alone = {image: file for image, file in files.items() if image == "1_L1"}
    of_breast = [
        {p.prediction_id: p.probabilities[0] for p in stream if isinstance(p, BreastPrediction)}
        for stream in (
            predict_stream(read_test(data), some, [run], InferenceSettings("image", 9, 0))
            for some in (files, alone)
        )
    ]
    assert of_breast[0]["1_L"] == pytest.approx(of_breast[1]["1_L"], abs=1e-6)
    assert set(of_breast[1]) == {"1_L"}


def test_predict_refuses_a_table_without_the_metadata(data: Path, tmp_path: Path) -> None:
    run = save_breast_run(tmp_path / "run" / "fold0")
    table = read_test(data).drop(columns="implant")
    with pytest.raises(InputError, match="lacks the column.* implant"):
        next(predict_stream(table, find_files(data), [run], InferenceSettings("image", 1, 0)))


def test_older_records_get_the_defaults(tmp_path: Path) -> None:
    network = ImageClassifier("test_efficientnet", pretrained=False)
    backbone = {"backbone": "test_efficientnet"}
    run = load_run(save_run(tmp_path / "old" / "fold0", network, network=backbone))
    assert run.level == "image"
    assert run.views == Views()
    assert run.metadata is None
