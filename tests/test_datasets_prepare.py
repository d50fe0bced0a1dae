"""`prepare` on other datasets: tiny folders in the layout in which each was published."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from breast_shapes import breast_image
from dicom_files import write_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.stages.index import index
from rsna_bcd.stages.prepare import prepare
from rsna_bcd.tables.images import read_images

VIEWS = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}


def configure(stage: str, data: Path, *overrides: str) -> Any:
    output = f"paths.output={data.parent / 'output'}"
    return composed(stage, f"paths.data={data}", output, *overrides)


def run(data: Path, *overrides: str) -> Path:
    """Prepare in this process; return the prepared folder, whose tables read like ours."""
    cfg = configure("prepare", data, "crop=demo", "workers=0", *overrides)
    prepare(cfg)
    return Path(cfg.prepared_dir)


def mammogram(file: Path, *, right: bool = False, seed: int = 0, **elements: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = breast_image(100, 80, right=right, seed=seed, noise=0.01)
    values = np.rint(picture * 4000).astype(np.uint16)
    write_dicom(file, values, bits=12, syntax="jpeg2000", **elements)


def check_crops(folder: Path, table: pd.DataFrame) -> None:
    """Each row has a crop of its own, with the breast on the left, turned where it was right."""
    assert table["path"].is_unique
    for path in table["path"]:
        crop = cv2.imread(str(folder / path), cv2.IMREAD_UNCHANGED)
        assert crop is not None
        assert crop[128, 0] > crop[128, -1]
    assert (table["flipped"] == (table["laterality"] == "R")).all()


def test_prepare_vindr(tmp_path: Path) -> None:
    """Six examinations of four images; every second one has a right breast of BI-RADS 5."""
    data, rows = tmp_path / "vindr", []
    for exam in range(6):
        study, split = f"{exam:x}e" * 16, "training" if exam < 4 else "test"
        for i, (side, view) in enumerate([(s, v) for s in "LR" for v in VIEWS]):
            image = f"{10 * exam + i:032d}"
            mammogram(data / "images" / study / f"{image}.dicom", right=side == "R", seed=exam)
            birads = "BI-RADS 5" if side == "R" and exam % 2 else f"BI-RADS {1 + exam % 4}"
            rows.append([study, image, side, view, birads, "DENSITY B", split])
    columns = [
        "study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density",
        "split",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(data / "breast-level_annotations.csv", index=False)
    folder = run(data, "dataset=vindr", "folds.assign.n_folds=2")
    assert folder.parts[-2:] == ("vindr", "demo")
    train, test = (read_images(folder / f"{s}.csv", s) for s in ("train", "test"))
    assert (len(train), len(test)) == (16, 8)
    assert train["image_id"].iloc[1] == f"{1:032d}"
    assert train.groupby("patient_id")["cancer"].sum().tolist() == [0, 2] * 2
    assert test["prediction_id"].nunique() == 4
    check_crops(folder, train)
    check_crops(folder, test)
    file = data / "images" / ("0e" * 16) / f"{0:032d}.dicom"
    file.unlink()
    with pytest.raises(InputError, match=f"1 of 16 files of the train .* the first is {file}"):
        run(data, "dataset=vindr", "dataset.name=other")


def test_prepare_cbis_ddsm(tmp_path: Path) -> None:
    """Eight patients with a mass on the left; one of training has a calcification in the test.

    The files of odd patients are in the older layout.
    """
    data = tmp_path / "cbis"
    tables: dict[str, list[list[str]]] = {
        f"{kind}_{split}": [] for kind in ("mass", "calc") for split in ("train", "test")
    }

    def add(kind: str, split: str, patient: int, view: str, pathology: str) -> None:
        published = "Training" if split == "train" else "Test"
        name = f"{kind.capitalize()}-{published}_P_{patient:05d}_LEFT_{view}"
        old = f"{name}/1.3.6.1.4.1.9590.100.1.2.3/1.3.6.1.4.1.9590.100.1.2.4/000000.dcm"
        new = f"{name}/07-20-2016-DDSM-NA-74994/1.000000-full mammogram images-24515/1-1.dcm"
        mammogram(data / "CBIS-DDSM" / (old if patient % 2 else new), seed=patient)
        for part in ("ROI mask images", "cropped images"):
            mask = data / "CBIS-DDSM" / f"{name}_1" / "07-20-2016" / f"1.000000-{part}-1/1-1.dcm"
            mask.parent.mkdir(parents=True)
            mask.write_bytes(b"not to be read")
        row = [f"P_{patient:05d}", "2", "LEFT", view, "1", kind, "-", "-", "4", pathology, "3"]
        tables[f"{kind}_{split}"].append([*row, f"{old}\n", f"{old}\n", f"{old}\n"])

    for patient in range(8):
        for view in VIEWS:
            pathology = "MALIGNANT" if patient % 2 else "BENIGN_WITHOUT_CALLBACK"
            add("mass", "train" if patient < 6 else "test", patient, view, pathology)
    add("calc", "test", 0, "CC", "BENIGN")
    add("calc", "train", 2, "CC", "MALIGNANT")  # of the breast with the benign mass
    for name, rows in tables.items():
        kind, split = name.split("_")
        columns = [
            "patient_id", "breast_density" if kind == "mass" else "breast density",
            "left or right breast", "image view", "abnormality id", "abnormality type",
            f"{kind} shape", f"{kind} margins", "assessment", "pathology", "subtlety",
            "image file path", "cropped image file path", "ROI mask file path",
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=columns)
        table.to_csv(data / f"{kind}_case_description_{split}_set.csv", index=False)
    folder = run(data, "dataset=cbis_ddsm", "folds.assign.n_folds=2")
    train, test = (read_images(folder / f"{s}.csv", s) for s in ("train", "test"))
    # Patient 0 is in the test too, and so not in training.
    labels = train.groupby("patient_id")["cancer"].agg(["size", "sum"])
    assert labels.index.tolist() == [f"P_{i:05d}" for i in range(1, 6)]
    assert labels["size"].tolist() == [2, 3, 2, 2, 2]
    assert labels["sum"].tolist() == [2, 3, 2, 0, 2]
    assert test["image_id"].tolist()[-1] == "Calc-Test_P_00000_LEFT_CC"
    assert test["prediction_id"].unique().tolist() == ["P_00006_L", "P_00007_L", "P_00000_L"]
    check_crops(folder, train)
    check_crops(folder, test)


def test_prepare_cmmd(tmp_path: Path) -> None:
    data, clinical = tmp_path / "cmmd", []
    for patient in range(6):
        patient_id = f"D{1 + patient % 2}-{patient:04d}"
        clinical.append([patient_id, "L", 40 + patient, 2, "mass", "Benign", None])
        if patient % 2 == 0:
            clinical.append([patient_id, "R", 40 + patient, 2, "both", "Malignant", "Luminal A"])
        for i, (side, (code, meaning)) in enumerate([(s, v) for s in "LR" for v in VIEWS.values()]):
            view = Dataset()
            view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = code, "SCT", meaning
            mammogram(
                data / "CMMD" / patient_id / "07-18-2010-NA-NA-79377" / "1.000000-NA-70244"
                / f"1-{i + 1}.dcm",
                right=side == "R",
                seed=patient,
                PatientID=patient_id,
                PatientAge=f"{40 + patient:03d}Y",
                SOPInstanceUID=f"1.3.6.1.4.1.14519.{patient}.{i}",
                ImageLaterality=side,
                ViewCodeSequence=Sequence([view]),
            )  # fmt: skip
    columns = ["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"]
    sheet = pd.DataFrame(clinical, columns=columns)
    sheet.to_excel(data / "CMMD_clinicaldata_revision.xlsx", index=False)
    with pytest.raises(InputError, match=r"index/cmmd/index.csv does not exist. `python -m rsna_b"):
        run(data, "dataset=cmmd")
    index(configure("index", data, "name=cmmd", f"images={data / 'CMMD'}"))
    with pytest.raises(InputError, match=r"dataset=cmmd has no test split.*splits=\[train\]"):
        run(data, "dataset=cmmd")
    folder = run(data, "dataset=cmmd", "splits=[train]", "folds.assign.n_folds=3")
    train = read_images(folder / "train.csv", "train")
    assert len(train) == 18  # three right breasts have no clinical row
    assert (train["cancer"] == (train["laterality"] == "R")).all()
    assert (train["age"] == 40 + train["patient_id"].str[-1].astype(int)).all()
    assert train["view"].tolist() == ["CC", "MLO"] * 9
    check_crops(folder, train)


def test_prepare_generic(tmp_path: Path) -> None:
    data, rows = tmp_path / "own", []
    for patient in range(8):
        for side in ("left", "right"):
            file = f"site {patient % 2}/{patient}-{side}.dcm"
            mammogram(data / "files" / file, right=side == "right", seed=patient)
            diagnosis = "Malignant" if patient % 4 == 0 and side == "left" else "benign"
            rows.append([f"{patient:03d}", f"{patient}.{side}", side, "MLO", diagnosis, file, "x"])
    columns = ["PatientID", "name", "side", "view", "diagnosis", "path", "report"]
    pd.DataFrame(rows[:12], columns=columns).to_csv(data / "train.csv", index=False)
    test = pd.DataFrame(rows[12:], columns=columns).assign(
        view=pd.Series(["LUCC", None, "CC", "CC"])
    )
    test.drop(columns="diagnosis").to_csv(data / "test.csv", index=False)
    names = {"patient_id": "PatientID", "image_id": "name", "laterality": "side",
             "cancer": "diagnosis", "file": "path"}  # fmt: skip
    settings = [
        "dataset=generic",
        "dataset.name=own",
        *(f"dataset.{split}_images=${{paths.data}}/files" for split in ("train", "test")),
        *(f"dataset.rows.columns.{ours}={theirs}" for ours, theirs in names.items()),
        "dataset.rows.values.laterality={left:L,right:R}",
        "dataset.rows.values.cancer={malignant:1,benign:0}",
        "folds.assign.n_folds=2",
    ]
    folder = run(data, *settings)
    train, unseen = (read_images(folder / f"{s}.csv", s) for s in ("train", "test"))
    assert train["patient_id"].unique().tolist() == [f"{i:03d}" for i in range(6)]
    assert train.loc[train["cancer"] == 1, "prediction_id"].tolist() == ["000_L", "004_L"]
    assert train["path"].iloc[0] == "train/000/0.left.png"
    assert unseen["prediction_id"].tolist() == ["006_L", "006_R", "007_L", "007_R"]
    assert unseen["view"].fillna("").tolist() == ["LUCC", "", "CC", "CC"]
    check_crops(folder, train)
    check_crops(folder, unseen)
    with pytest.raises(InputError, match=r"train.csv: dataset.rows.columns.age=Age: .* PatientID"):
        run(data, *settings, "dataset.rows.columns.age=Age")
