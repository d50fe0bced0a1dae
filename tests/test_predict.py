"""The stage `predict` on folders of DICOM files."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from breast_shapes import breast_image
from dicom_files import write_dicom
from fabricated_networks import TinyBreasts
from fabricated_runs import fabricated_ensemble
from file_trees import tree
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from saved_runs import save_run
from stage_settings import composed

from rsna_bcd._stage import main
from rsna_bcd.errors import InputError
from rsna_bcd.inference.studies import Study, predict_studies
from rsna_bcd.models.network import ImageClassifier
from rsna_bcd.scoring.ensemble import FILE_NAME, Member, read_ensemble, write_ensemble
from rsna_bcd.stages import predict as stage
from rsna_bcd.stages.predict import predict
from rsna_bcd.stages.submit import submit
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.study_results import NO_DEVICE

METADATA: dict[str, Any] = {"columns": ["age", "implant"]}
# Patient, side, view.
IMAGES = [
    ("1", "L", "CC"), ("1", "L", "MLO"), ("1", "R", "MLO"), ("1", "R", "CC"), ("2", "R", "CC"),
    ("2", "R", "MLO"), ("2", "R", "CC"),
]  # fmt: skip


def mammogram(file: Path, patient: str, side: str, view: str, seed: int, **elements: Any) -> Path:
    """A file with a complete header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    reach, half_height = 0.4 + 0.1 * (seed % 4), 0.25 + 0.06 * (seed % 3)
    picture = breast_image(
        160, 120, reach=reach, half_height=half_height, right=side == "R", noise=0.03, seed=seed
    )
    header = {
        "PatientID": patient, "ImageLaterality": side, "ViewPosition": view, "PatientAge": "061Y",
        "BreastImplantPresent": "NO", "StudyInstanceUID": f"1.2.{patient or 0}",
        "SOPInstanceUID": f"1.2.3.{seed}", "ManufacturerModelName": "Mammomat",
        "WindowCenter": "2048", "WindowWidth": "4096",
    }  # fmt: skip
    header = {keyword: value for keyword, value in header.items() if value}
    return write_dicom(
        file, np.rint(picture * 4095).astype(np.uint16), bits=12, **{**header, **elements}
    )


def other(file: Path, sop_class: str, modality: str, **elements: Any) -> Path:
    """A file that is no mammogram."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(600, dtype=np.uint16).reshape(30, 20)
    named = {"SOPClassUID": sop_class, "Modality": modality, "SOPInstanceUID": uid.generate_uid()}
    return write_dicom(file, pixels, bits=12, **named, **elements)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, one of images with two folds, one of breasts with metadata."""
    output = tmp_path_factory.mktemp("models")
    width = Metadata(**METADATA).width
    metadata = {"_target_": "rsna_bcd.tables.metadata.Metadata", **METADATA}
    views = {"_target_": "rsna_bcd.tables.views.Views", "policy": "all", "other_breast": True}
    seen = {"machine_id": ["Lorad", "Mammomat"], "view": ["CC", "MLO"]}
    for name, fold in (("images", 0), ("images", 1), ("breasts", 0)):
        torch.manual_seed(fold)
        network: Any = ImageClassifier("test_resnet", pretrained=False)
        settings: dict[str, Any] = {"network": {"backbone": "test_resnet"}}
        if name == "breasts":
            network = TinyBreasts(width)
            settings = {"network": {"metadata_width": width}, "metadata": metadata, "views": views}
        with torch.no_grad():  # so that breasts differ in the first digits
            network.head.weight.mul_(100 if name == "images" else 4)
        folder = output / "runs" / name / f"fold{fold}"
        save_run(folder, network, source="dicom", **settings)
        (folder / "seen.json").write_text(json.dumps(seen))
    for name, members in [
        ("both", (("images", (0, 1), 1.0), ("breasts", (0,), 1.0))),
        ("images", (("images", (0, 1), 1.0),)),
    ]:
        own = tuple(
            Member(of, folds, "rsna", "demo", "mean", "last", weight)
            for of, folds, weight in members
        )
        fitted = replace(fabricated_ensemble(own, threshold=0.5, prior=0.02), name=name)
        write_ensemble(fitted, output / "ensembles" / name / "ensemble.json")
    return output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in the competition's layout, with their table."""
    data = tmp_path_factory.mktemp("data")
    rows = []
    for number, (patient, side, view) in enumerate(IMAGES):
        file = data / "test_images" / patient / f"{number}.dcm"
        mammogram(file, patient, side, view, seed=number)
        rows.append([patient, number, side, view, 61, 0, f"{patient}_{side}"])
    columns = ["patient_id", "image_id", "laterality", "view", "age", "implant", "prediction_id"]
    table = pd.DataFrame(rows, columns=columns).assign(site_id=1, machine_id=29)
    table.to_csv(data / "test.csv", index=False)
    return data


def run(
    models: Path, output: Path, inputs: Any, *overrides: str, name: str | None = "images"
) -> Path:
    """Run the stage in this process; return the folder of the results."""
    settings = [*overrides, "workers=0", "device=cpu", f"paths.models={models}"]
    cfg = composed("predict", *settings, f"paths.output={output}", f"paths.data={output}")
    if name is not None:
        cfg.name = name
    if inputs is not None:
        cfg.inputs = [str(one) for one in inputs] if isinstance(inputs, list) else str(inputs)
    predict(cfg)
    return Path(cfg.predictions_dir)


def read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "predictions.json").read_text())
    return record


def read_breasts(folder: Path) -> dict[str, dict[str, Any]]:
    return {breast["prediction_id"]: breast for breast in read_record(folder)["breasts"]}


@pytest.mark.parametrize("name", ["images", "both"])
def test_predict_agrees_with_submit(models: Path, data: Path, tmp_path: Path, name: str) -> None:
    paths = [f"paths.models={models}", f"paths.output={tmp_path}", f"paths.data={data}"]
    cfg = composed("submit", f"name={name}", *paths, "workers=0", "device=cpu")
    decisions = submit(cfg).set_index("prediction_id")["cancer"]
    table = pd.read_csv(tmp_path / "submissions" / name / "predictions.csv")
    expected = table.set_index("prediction_id")["probability"]
    inputs = data / "test_images"
    folder = run(models, tmp_path, inputs, "batch_size=2", "pictures=false", name=name)
    found = pd.read_csv(folder / "breasts.csv").set_index("prediction_id")
    assert found["probability"].to_dict() == pytest.approx(expected.to_dict(), abs=1e-6)
    is_positive = (found["decision"] == "positive").astype(int)
    assert is_positive.to_dict() == decisions.to_dict()
    assert found["probability"].std() > 0.001  # a thousand times the tolerance
    images = pd.read_csv(folder / "images.csv")
    if name == "both":  # a network of breast level predicts no single image
        assert images["probability"].isna().all()
    else:
        means = images.groupby("prediction_id")["probability"].mean()
        assert means.to_dict() == pytest.approx(found["probability"].to_dict())


def test_predict_writes_the_same_into_tables_json_and_pictures(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(models, tmp_path, data / "test_images", name="both")
    assert folder == tmp_path / "predictions" / "both"
    table = pd.read_csv(folder / "breasts.csv", keep_default_na=False).set_index("prediction_id")
    breasts = read_breasts(folder)
    assert list(breasts) == table.index.tolist() == ["1_L", "1_R", "2_R"]
    assert table["views"].tolist() == ["CC MLO", "MLO CC", "CC MLO CC"]
    for breast, row in table.iterrows():
        result = breasts[str(breast)]
        assert result["probability"] == pytest.approx(row["probability"])
        assert (result["decision"], "; ".join(result["doubts"])) == (row["decision"], row["doubts"])
    images = pd.read_csv(folder / "images.csv")
    assert images["file"].nunique() == len(IMAGES)
    assert images["picture"].tolist()[-3:] == [
        f"pictures/{name}.png" for name in ("2_R_CC", "2_R_MLO", "2_R_CC_2")
    ]
    assert sorted(images["picture"]) == sorted(
        f"pictures/{file.name}" for file in (folder / "pictures").iterdir()
    )
    for picture in images["picture"]:
        pixels = cv2.imread(str(folder / picture))
        assert pixels is not None
        assert min(pixels.shape[:2]) > 700
    assert pd.read_csv(folder / "failures.csv").empty
    printed = capsys.readouterr().out
    assert NO_DEVICE in printed
    assert all(breast in printed for breast in breasts)
    record = read_record(folder)
    assert record["not_a_medical_device"] == NO_DEVICE
    assert record["failures"] == {}
    assert breasts["1_L"]["doubts"] == breasts["2_R"]["doubts"] == []


def test_predict_names_quality_flags(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    mammogram(folder / "a" / "1", "7", "L", "CC", 1, ManufacturerModelName="New")
    mammogram(folder / "a" / "2", "7", "R", "XCCL", 2, PresentationIntentType="FOR PROCESSING")
    mammogram(folder / "b" / "3", "", "", "MLO", 3, Modality="DX")
    noise = np.random.default_rng(0).integers(1000, 3000, (100, 80), dtype=np.uint16)
    write_dicom(folder / "4", noise, bits=12, PatientID="9", ImageLaterality="L")
    breasts = read_breasts(run(models, tmp_path, folder, "pictures=false", name="both"))
    # The files have no window, which is a flag of their pixels.
    flags = {b: [kind for kind in result["doubts"] if kind != "no window"]
              for b, result in breasts.items()}  # fmt: skip
    assert flags == {
        "7_L": ["unseen machine", "no MLO"],
        "7_R": ["for processing", "unseen view", "no CC", "no MLO"],
        "b_3": ["not said to be a mammogram", "side unknown", "patient unknown"],
        "9_L": ["no breast found", "view unknown", "facts missing"],
    }
    assert not (tmp_path / "predictions" / "both" / "pictures").exists()


def spot(**elements: Any) -> dict[str, Any]:
    """A view code with the modifier for spot compression (PS3.16 CID 4015)."""
    code, modifier = Dataset(), Dataset()
    code.CodeValue, code.CodeMeaning = "399162004", "cranio-caudal"
    modifier.CodeValue, modifier.CodeMeaning = "399055006", "Spot Compression"
    code.ViewModifierCodeSequence = Sequence([modifier])
    return {"ViewCodeSequence": Sequence([code]), **elements}


@pytest.mark.parametrize("name", ["images", "both"])
def test_predict_shows_supplemental_views_that_do_not_decide(
    models: Path, data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(data / "test_images", folder)
    alone = read_breasts(run(models, tmp_path, folder, "pictures=false", name=name))
    mammogram(folder / "extra" / "spot", "1", "L", "CC", 21, **spot())
    mammogram(folder / "extra" / "described", "2", "R", "CC", 22, SeriesDescription="R CC SPOT")
    mammogram(folder / "extra" / "only", "3", "L", "CC", 23, **spot())
    elsewhere = f"predictions_dir={tmp_path / 'elsewhere'}"
    capsys.readouterr()
    found = run(models, tmp_path, folder, elsewhere, "pictures=false", name=name)
    breasts = read_breasts(found)
    # Not by the spot view; nor is the patient's other breast, for a network that looks at both.
    for breast in ("1_L", "1_R"):
        assert breasts[breast]["probability"] == pytest.approx(
            alone[breast]["probability"], abs=1e-6
        )
    assert breasts["1_L"]["doubts"] == ["view left out", *alone["1_L"]["doubts"]]
    *standard, left_out = breasts["1_L"]["images"]
    assert [image["decides"] for image in standard] == [True, True]
    assert not left_out["decides"]
    assert {"view left out", "spot compression"} <= set(left_out["doubts"])
    # A description alone is a flag; and a breast with nothing else is predicted.
    assert breasts["2_R"]["probability"] != pytest.approx(alone["2_R"]["probability"], abs=1e-6)
    for breast in ("2_R", "3_L"):
        assert "spot compression" in breasts[breast]["doubts"]
        assert all(image["decides"] for image in breasts[breast]["images"])
    assert breasts["3_L"]["decision"] in ("positive", "negative")
    table = pd.read_csv(found / "breasts.csv").set_index("prediction_id")
    assert table["views"].to_dict() == {
        "1_L": "CC MLO (CC)", "1_R": "MLO CC", "2_R": "CC MLO CC CC", "3_L": "CC",
    }  # fmt: skip
    images = pd.read_csv(found / "images.csv")
    assert images.loc[images["decides"] == 0, "file"].tolist() == [str(folder / "extra" / "spot")]
    assert images["probability"].isna().all() == (name == "both")
    printed = capsys.readouterr().out
    assert "CC MLO (CC)" in printed
    assert f"left out of 1_L: {folder / 'extra' / 'spot'} (spot compression)" in printed
    if name == "both":  # the network of breasts is not shown it, and has no map of it
        pair = [folder / "1" / "0.dcm", folder / "extra" / "spot"]
        drawn = run(models, tmp_path, pair, f"predictions_dir={tmp_path / 'drawn'}", name=name)
        assert pd.read_csv(drawn / "images.csv")["picture"].notna().all()
    # Where no standard view can be read, it decides.
    for number in (0, 1):
        file = folder / "1" / f"{number}.dcm"
        file.write_bytes(file.read_bytes()[:-5000])
    again = read_breasts(run(models, tmp_path, folder, elsewhere, "pictures=false", name=name))
    assert "image not read" in again["1_L"]["doubts"]
    assert [image["decides"] for image in again["1_L"]["images"]] == [False, False, True]


def test_predict_flags_film_and_synthetic_views(models: Path, tmp_path: Path) -> None:
    film = {"SOPClassUID": uid.SecondaryCaptureImageStorage, "BodyPartExamined": "BREAST"}
    mammogram(tmp_path / "in" / "1", "1", "L", "", 1, **film, PatientOrientation="MLO")
    mammogram(tmp_path / "in" / "2", "2", "", "", 2, **film, SeriesDescription="R CC")
    synthetic = {"SOPClassUID": uid.BreastTomosynthesisImageStorage, "NumberOfFrames": 1}
    mammogram(tmp_path / "in" / "3", "3", "L", "CC", 3, **synthetic)
    mammogram(tmp_path / "in" / "4", "4", "L", "CC", 4, Modality="RG")
    breasts = read_breasts(run(models, tmp_path, tmp_path / "in", "pictures=false"))
    flagged = {breast: set(result["doubts"]) for breast, result in breasts.items()}
    views = {breast: result["images"][0]["view"] for breast, result in breasts.items()}
    assert views == {"1_L": "MLO", "2_R": "CC", "3_L": "CC", "4_L": "CC"}
    assert "digitized film" in flagged["1_L"] & flagged["2_R"] & flagged["4_L"]
    assert "synthetic 2D" in flagged["3_L"]
    assert "not said to be a mammogram" in flagged["4_L"]


def test_predict_lists_unreadable_and_other_files(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(data / "test_images", folder / "good")
    shutil.copy(folder / "good" / "1" / "0.dcm", folder / "copy.dcm")
    (folder / "notes.txt").write_text("nothing")
    for number in range(3):
        other(folder / f"ct{number}", uid.CTImageStorage, "CT")
    for name in ("good/1/1.dcm", "good/1/2.dcm", "good/1/3.dcm"):  # one of the left, all the right
        file = folder / name
        file.write_bytes(file.read_bytes()[:-5000])
    # Each file once, by the input that has it first.
    found = run(models, tmp_path, [folder / "good", folder], "pictures=false")
    breasts = read_breasts(found)
    assert breasts["1_L"]["doubts"] == ["image not read"]
    assert breasts["1_L"]["probability"] is not None
    right = breasts["1_R"]
    assert (right["probability"], right["decision"]) == (None, None)
    assert right["doubts"] == ["not read"]
    table = pd.read_csv(found / "breasts.csv").set_index("prediction_id")
    assert table.loc["1_R", ["probability", "decision"]].isna().all()
    elsewhere = f"predictions_dir={tmp_path / 'clean'}"
    clean = read_breasts(run(models, tmp_path, data / "test_images", "pictures=false", elsewhere))
    assert breasts["2_R"]["probability"] == pytest.approx(clean["2_R"]["probability"], abs=1e-6)
    failures = pd.read_csv(found / "failures.csv").set_index("file")["reason"]
    assert len(failures) == 8
    assert failures[str(folder / "copy.dcm")] == f"a copy of {folder / 'good' / '1' / '0.dcm'}"
    assert failures[str(folder / "ct0")] == "CT image, no mammogram"
    assert failures[str(folder / "good" / "1" / "2.dcm")].startswith("cut short")
    printed = capsys.readouterr().out
    assert "8 file(s) were excluded" in printed
    assert "3 x CT image, no mammogram" in printed
    assert "1 x not a DICOM file (.txt: 1)" in printed


def test_predict_without_a_mammogram_names_the_other_files(models: Path, tmp_path: Path) -> None:
    screenshot = "secondary capture (a screenshot or a scan)"
    file = other(tmp_path / "in" / "file", uid.SecondaryCaptureImageStorage, "OT")
    with pytest.raises(InputError, match=rf"{re.escape(f'{file}: {screenshot}')}.*DICOM files"):
        run(models, tmp_path, file)
    other(tmp_path / "in" / "report", uid.EncapsulatedPDFStorage, "DOC", Rows=None)
    (tmp_path / "in" / "read.me").write_text("nothing")
    with pytest.raises(InputError) as in_folder:
        run(models, tmp_path, file.parent)
    for reason in (screenshot, "no image, but PDF document", "not a DICOM file (.me: 1)"):
        assert f"1 x {reason}" in str(in_folder.value)
    assert not (tmp_path / "predictions").exists()


def test_predict_refuses_absent_and_empty_inputs(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inputs=FOLDER"):
        run(models, tmp_path, None)
    with pytest.raises(InputError, match="no file or folder .*absent"):
        run(models, tmp_path, tmp_path / "absent")
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="no mammogram in .*no file at all"):
        run(models, tmp_path, tmp_path / "in")


def test_predict_refuses_networks_of_all_patients(models: Path, tmp_path: Path) -> None:
    fitted = read_ensemble(models / "ensembles" / "images" / "ensemble.json")
    write_ensemble(replace(fitted, networks="all"), tmp_path / "ensembles" / "images" / FILE_NAME)
    with pytest.raises(InputError, match="neither a threshold for a single patient nor a calibr"):
        run(tmp_path, tmp_path, tmp_path)


def test_predict_without_a_model_says_how_to_get_one(
    models: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no model none in .*name=both or name=images"):
        run(models, tmp_path, data, name="none")
    with pytest.raises(InputError, match="Which model.*name=both or name=images"):
        run(models, tmp_path, data, name=None)
    with pytest.raises(InputError) as none:
        run(tmp_path, tmp_path, data)
    assert all(way in str(none.value) for way in ("make demo", "rsna_bcd.ensemble", "paths.models"))
    shutil.copytree(models / "ensembles", tmp_path / "ensembles")
    with pytest.raises(InputError, match="rsna_bcd.train"):
        run(tmp_path, tmp_path, data)


def test_predict_keeps_results_of_other_inputs(models: Path, data: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    shutil.copytree(data / "test_images", inputs)
    folder = run(models, tmp_path, inputs)
    with pytest.raises(InputError, match=r"predictions_dir=.*overwrite=true"):
        run(models, tmp_path, inputs / "1")
    assert set(read_breasts(folder)) == {"1_L", "1_R", "2_R"}
    shutil.rmtree(inputs / "1")
    run(models, tmp_path, inputs)  # the same inputs, which hold less now
    assert set(read_breasts(folder)) == {"2_R"}
    assert len(list((folder / "pictures").iterdir())) == 3
    run(models, tmp_path, inputs / "2" / "4.dcm", "overwrite=true", "pictures=false")
    assert not list((folder / "pictures").iterdir())
    assert [breast["doubts"] for breast in read_breasts(folder).values()] == [["no MLO"]]


def test_predict_replaces_results_only_by_complete_ones(
    models: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    shutil.copytree(data / "test_images", inputs)
    folder = run(models, tmp_path, inputs)
    (folder / "notes.csv").write_text("of the user")
    before = tree(folder)
    shutil.rmtree(inputs / "1")

    def stop(*arguments: Any) -> Iterator[Study]:
        yield next(predict_studies(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "predict_studies", stop)
        with pytest.raises(KeyboardInterrupt):
            run(models, tmp_path, inputs, "overwrite=true")
    assert (folder / "unfinished" / "pictures" / "2_R_CC.png").is_file()
    assert before.items() <= tree(folder).items()
    run(models, tmp_path, inputs)
    assert not (folder / "unfinished").exists()
    assert set(read_breasts(folder)) == {"2_R"}
    pictures = {"2_R_CC.png", "2_R_CC_2.png", "2_R_MLO.png"}
    assert {file.name for file in (folder / "pictures").iterdir()} == pictures
    assert (folder / "notes.csv").is_file()


def test_predict_leaves_finished_results_of_the_same_files_and_networks(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, own = tmp_path / "in", tmp_path / "models"
    shutil.copytree(data / "test_images" / "2", inputs)
    shutil.copytree(models, own)

    def is_made_again(*overrides: str) -> bool:
        folder = tmp_path / "predictions" / "images"
        before = {f: f.stat().st_mtime_ns for f in folder.rglob("*.*")}
        capsys.readouterr()
        run(own, tmp_path, inputs, *overrides)
        after = {f: f.stat().st_mtime_ns for f in folder.rglob("*.*")}
        assert (before == after) == ("finished already" in capsys.readouterr().err)
        return before != after

    assert is_made_again()
    assert not is_made_again()
    with pytest.raises(InputError, match="pictures: True -> False"):
        is_made_again("pictures=false")
    for change in (
        lambda: (tmp_path / "predictions" / "images" / "pictures" / "2_R_CC.png").unlink(),
        lambda: (inputs / "notes.txt").write_text("excluded"),
        lambda: mammogram(inputs / "4.dcm", "2", "R", "CC", 40),
        lambda: shutil.copy(
            own / "runs/images/fold0/checkpoints/last.ckpt",
            own / "runs/images/fold1/checkpoints/last.ckpt",
        ),
    ):
        change()
        assert is_made_again()
        assert not is_made_again()
    assert is_made_again("overwrite=true")


def test_predict_command_prints_one_message(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", f"paths.models={models}", "inputs=absent",
                                      f"paths.output={tmp_path}", "name=images"])  # fmt: skip
    with pytest.raises(SystemExit, match="error: There is no file or folder absent"):
        main("predict")
