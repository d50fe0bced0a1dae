"""The stage `index` on a folder of DICOM files and of others."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import write_dicom
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.headers import read_header
from rsna_bcd.stages.index import index

PIXELS = np.arange(600, dtype=np.uint16).reshape(30, 20)


def save(folder: Path, rows: list[tuple[str, dict[str, Any]]]) -> None:
    for number, (name, elements) in enumerate(rows):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(file, PIXELS + number, bits=12, **elements)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of two patients, another with the identifier of one, a copy, and no images."""
    folder = tmp_path / "data"
    named = [
        ("b/series/1-1.dcm", "D1-0002", "1.2.16", "XCCL"),
        ("a/1-1.dicom", "D1-0001", "1.2.11", "CC"),
        ("a/1-2", "D1-0001", "1.2.5", "MLO"),
        ("b/other.dcm", "D1-0002", "1.2.5", "MLO"),
    ]
    keys = ("PatientID", "SOPInstanceUID", "ViewPosition")
    rows = [
        (name, {"ImageLaterality": "L", **dict(zip(keys, elements, strict=True))})
        for name, *elements in named
    ]
    save(folder, [*rows, ("report.dcm", {"Rows": None})])
    shutil.copy(folder / "a/1-2", folder / "b/copy.dcm")
    (folder / "LICENSE").write_text("Creative Commons")
    (folder / ".hidden").write_text("")
    return folder


def run(data: Path, *overrides: str) -> Path:
    paths = (f"paths.data={data}", f"paths.output={data.parent / 'output'}")
    cfg = composed("index", "name=mine", *paths, *overrides)
    index(cfg)
    return Path(cfg.index_dir)


def test_index_lists_images_in_order_and_the_rest_with_reasons(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(data)
    assert folder == data.parent / "output/index/mine"
    table = pd.read_csv(folder / "index.csv", dtype=str).set_index("file")
    assert table.index.tolist() == ["a/1-1.dicom", "a/1-2", "b/other.dcm", "b/series/1-1.dcm"]
    assert table["patient_id"].tolist() == ["D1-0001", "D1-0001", "D1-0002", "D1-0002"]
    assert table["image_id"].tolist() == ["1.2.11", "1.2.5", "1.2.5_2", "1.2.16"]
    assert table["view"].tolist() == ["CC", "MLO", "MLO", "XCCL"]
    assert set(table.columns) == set(read_header(data / "a/1-2"))
    failures = pd.read_csv(folder / "failures.csv").set_index("file")["reason"]
    assert failures["LICENSE"] == "not a DICOM file"
    assert failures["b/copy.dcm"] == "a copy of a/1-2"
    assert failures["report.dcm"].startswith("no image")
    assert len(failures) == 3
    printed = capsys.readouterr().err
    assert "4 images of 2 patients" in printed
    assert "unknown" not in printed
    assert "3 files left out" in printed
    alone = (folder / "index.csv").read_bytes()
    assert (run(data, "workers=2") / "index.csv").read_bytes() == alone


def test_index_counts_quality_flags_and_unknown_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elements = [
        {"ViewPosition": "CC", "PresentationIntentType": "FOR PROCESSING"},
        {"ViewPosition": "MCC", "PresentationIntentType": "FOR PROCESSING"},
        {"ViewPosition": "LAT", "SeriesDescription": "SPECIMEN"},
    ]
    rows = [(f"{i}.dcm", {"SOPInstanceUID": f"1.2.{i}", **e}) for i, e in enumerate(elements)]
    save(tmp_path / "data", rows)
    table = pd.read_csv(run(tmp_path / "data") / "index.csv", keep_default_na=False)
    flags = ["for processing", "magnification; for processing", "specimen"]
    assert table["quality_flags"].tolist() == flags
    assert table["supplemental"].tolist() == [0, 1, 0]
    printed = capsys.readouterr().err
    for said in ("for processing: 2 (", "magnification: 1 (", "specimen: 1 (", "1 supplemental: "):
        assert said in printed
    assert "view unknown for 1 (the headers say LAT: 1), the first is 2.dcm" in printed


def test_index_refuses_a_folder_without_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(InputError, match=r"images=.*data is no folder"):
        run(data)
    data.mkdir()
    with pytest.raises(InputError, match="no DICOM image in .*it is empty"):
        run(data)
    (data / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no DICOM image in .*1 not a DICOM file"):
        run(data)
    assert not (tmp_path / "output").exists()
