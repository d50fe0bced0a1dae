"""The stage `index` on a folder of DICOM files and of others."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import write_dicom
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.headers import read_header
from rsna_bcd.stages.index import index

PIXELS = np.arange(600, dtype=np.uint16).reshape(30, 20)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of two patients, a copy, and files that are none."""
    folder = tmp_path / "data"
    for name, patient, side, view in [
        ("b/series/1-1.dcm", "D1-0002", "R", "XCCL"),
        ("a/1-1.dicom", "D1-0001", "L", "CC"),
        ("a/1-2", "D1-0001", "L", "MLO"),
    ]:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        elements = {"PatientID": patient, "ImageLaterality": side, "ViewPosition": view}
        write_dicom(file, PIXELS, bits=12, SOPInstanceUID=f"1.2.{len(name)}", **elements)
    shutil.copy(folder / "a/1-2", folder / "b/copy.dcm")
    (folder / "LICENSE").write_text("Creative Commons")
    (folder / ".hidden").write_text("")
    write_dicom(folder / "report.dcm", PIXELS, bits=12, Rows=None)
    return folder


def run(data: Path, *overrides: str) -> Path:
    with initialize_config_dir(CONF, version_base="1.3"):
        output = f"paths.output={data.parent / 'output'}"
        cfg = compose("index", ["name=mine", f"paths.data={data}", output, *overrides])
    index(cfg)
    return Path(cfg.index_dir)


def test_images_are_listed_in_order_and_the_rest_with_reasons(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data)
    assert folder == data.parent / "output/index/mine"
    table = pd.read_csv(folder / "index.csv").set_index("file")
    assert table.index.tolist() == ["a/1-1.dicom", "a/1-2", "b/series/1-1.dcm"]
    assert table["patient_id"].tolist() == ["D1-0001", "D1-0001", "D1-0002"]
    assert table["view"].fillna("").tolist() == ["CC", "MLO", "XCCL"]
    assert set(table.columns) == set(read_header(data / "a/1-2"))
    failures = pd.read_csv(folder / "failures.csv").set_index("file")["reason"]
    assert failures["LICENSE"] == "not a DICOM file"
    assert failures["b/copy.dcm"] == "a copy of a/1-2"
    assert failures["report.dcm"].startswith("no image")
    assert len(failures) == 3
    printed = capsys.readouterr().err
    assert "3 images of 2 patients" in printed
    assert "view unknown" not in printed
    assert "laterality unknown" not in printed
    assert "3 files left out" in printed


def test_flags_and_what_is_unknown_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, elements in enumerate(
        [
            {"ViewPosition": "CC", "PresentationIntentType": "FOR PROCESSING"},
            {"ViewPosition": "MCC", "PresentationIntentType": "FOR PROCESSING"},
            {"ViewPosition": "LAT", "SeriesDescription": "SPECIMEN"},
        ]
    ):
        file = tmp_path / "data" / f"{number}.dcm"
        file.parent.mkdir(exist_ok=True)
        named = {"SOPInstanceUID": f"1.2.{number}", "ImageLaterality": "L"}
        write_dicom(file, PIXELS, bits=12, **named, **elements)
    table = pd.read_csv(run(tmp_path / "data") / "index.csv", keep_default_na=False)
    flags = ["for processing", "magnification; for processing", "specimen"]
    assert table["quality_flags"].tolist() == flags
    assert table["supplemental"].tolist() == [0, 1, 0]
    printed = capsys.readouterr().err
    for said in ("for processing: 2 (", "magnification: 1 (", "specimen: 1 (", "1 supplemental: "):
        assert said in printed
    assert "view unknown for 1 (the headers say LAT: 1), the first is 2.dcm" in printed


def test_processes_make_the_same_index(data: Path) -> None:
    alone = (run(data) / "index.csv").read_bytes()
    assert (run(data, "workers=2") / "index.csv").read_bytes() == alone


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images=.*absent is no folder"):
        run(tmp_path / "absent")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="no DICOM image in .*it is empty"):
        run(tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no DICOM image in .*1 not a DICOM file"):
        run(tmp_path / "data")
    assert not (tmp_path / "output").exists()


def test_one_identifier_of_two_images_is_two_images(data: Path) -> None:
    write_dicom(data / "b/other.dcm", PIXELS + 1, bits=12, SOPInstanceUID="1.2.5")
    assert read_header(data / "a/1-2")["image_id"] == "1.2.5"
    table = pd.read_csv(run(data) / "index.csv", dtype=str).set_index("file")
    assert table.loc["a/1-2", "image_id"] == "1.2.5"
    assert table.loc["b/other.dcm", "image_id"] == "1.2.5_2"
