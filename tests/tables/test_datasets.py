"""Mappings of other datasets, on rows in the format in which each was published."""

from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.datasets import (
    map_cbis_ddsm,
    map_cmmd,
    map_generic,
    map_rsna,
    map_vindr,
)
from rsna_bcd.tables.images import read_images

# Study, series and image are hashes of 32 digits; one without letters is no number.
STUDIES = ("5e" * 16, "0a" * 16)
IMAGES = ("d1" * 16, "29" * 16, "cd" * 16, "71" * 16, "0" * 30 + "12")
SERIES = "f0" * 16
VINDR_HEADER = (
    "study_id,series_id,image_id,laterality,view_position,height,width,"
    "breast_birads,breast_density,split\n"
)
VINDR = VINDR_HEADER + "".join(
    f"{study},{SERIES},{image},{row}\n"
    for study, image, row in (
        (STUDIES[0], IMAGES[0], "L,CC,3580,2702,BI-RADS 2,DENSITY C,training"),
        (STUDIES[0], IMAGES[1], "L,MLO,3580,2768,BI-RADS 2,DENSITY C,training"),
        (STUDIES[0], IMAGES[2], "R,MLO,3580,2768,BI-RADS 5,DENSITY C,training"),
        (STUDIES[0], IMAGES[3], "R,CC,3580,2702,BI-RADS 5,DENSITY C,training"),
        (STUDIES[1], IMAGES[4], "R,CC,3518,2800,BI-RADS 4,DENSITY D,test"),
    )
)
METADATA = (
    "Series Instance UID,SOP Instance UID,Patient's Age,Manufacturer,Manufacturer's Model Name\n"
    f"{SERIES},{IMAGES[0]},053Y,SIEMENS,Mammomat Inspiration\n"
    f"{SERIES},{IMAGES[4]},,IMS s.r.l.,GIOTTO IMAGE 3DL\n"
)
VINDR_SETTINGS: dict[str, Any] = {
    "positive": [5],
    "splits": {"train": ["training"], "test": ["test"]},
    "file": "{study_id}/{image_id}.dicom",
}
MASS = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,"
    "mass shape,mass margins,assessment,pathology,subtlety,"
    "image file path,cropped image file path,ROI mask file path\n"
)
CALC = MASS.replace("breast_density", "breast density").replace(
    "mass shape,mass margins", "calc type,calc distribution"
)
CBIS_SETTINGS: dict[str, Any] = {
    "splits": {"train": ["Training"], "test": ["Test"]},
    "file": "{folder}/*/*/*.dcm",
}
CLINICAL = """\
ID1,LeftRight,Age,number,abnormality,classification,subtype
D1-0001,R,44,2,both,Benign,
D1-0002,L,40,2,mass,Benign,
D1-0002,R,40,2,calcification,Malignant,
D2-0700,L,59,2,mass,Malignant,Luminal B
"""
GENERIC_SETTINGS: dict[str, Any] = {
    "columns": {},
    "values": {},
    "join": ["patient_id", "laterality"],
    "unlabelled": "refuse",
}


def table(text: str) -> pd.DataFrame:
    return pd.read_csv(StringIO(text), dtype="string")


def cbis_row(folder: str, number: int, pathology: str, density: str, assessment: int = 4) -> str:
    """A row of CBIS-DDSM; some paths end in a line break, which the published files quote."""
    kind, _, patient, side, view = folder.replace("P_", "P-").replace("-T", "_T").split("_")
    uids = "1.3.6.1.4.1.9590.100.1.2.1/1.3.6.1.4.1.9590.100.1.2.2"
    shape = "mass,IRREGULAR,SPICULATED" if kind == "Mass" else "calcification,PLEOMORPHIC,CLUSTERED"
    return (
        f"{patient.replace('-', '_')},{density},{side},{view},{number},{shape},{assessment},"
        f'{pathology},4,"{folder}/{uids}/000000.dcm\n",'
        f'"{folder}_{number}/{uids}/000001.dcm\n","{folder}_{number}/{uids}/000000.dcm\n"\n'
    )


@pytest.fixture
def cbis() -> list[pd.DataFrame]:
    """Patient 1 has a cancer on the left; 5 a benign mass and, in the test, a malignant calcium."""
    mass_train = MASS + "".join(
        [
            cbis_row("Mass-Training_P_00001_LEFT_CC", 1, "BENIGN", "3", 3),
            cbis_row("Mass-Training_P_00001_LEFT_CC", 2, "MALIGNANT", "3", 5),
            cbis_row("Mass-Training_P_00001_LEFT_MLO", 1, "BENIGN", "3"),
            cbis_row("Mass-Training_P_00001_RIGHT_CC", 1, "BENIGN_WITHOUT_CALLBACK", "3", 2),
            cbis_row("Mass-Training_P_00005_RIGHT_CC", 1, "BENIGN", "1"),
        ]
    )
    calc_test = CALC + cbis_row("Calc-Test_P_00005_RIGHT_CC", 1, "MALIGNANT", "1")
    calc_train = CALC + cbis_row("Calc-Training_P_00007_LEFT_MLO", 1, "BENIGN", "0")
    return [table(text) for text in (mass_train, calc_train, MASS, calc_test)]


@pytest.fixture
def cmmd_index() -> pd.DataFrame:
    """Two images of each breast but one; D2-0700's right one has images but no clinical row."""
    rows = [
        (f"{patient}/07-18-2010-NA-NA-79377/1.000000-NA-7024{k}/1-{i}.dcm", patient,
         f"1.3.6.1.4.1.14519.5.2.1.{k}{i}", side, view, "43.0", None)
        for k, (patient, side) in enumerate(
            [("D1-0001", "R"), ("D1-0002", "L"), ("D1-0002", "R"), ("D2-0700", "L"),
             ("D2-0700", "R")]
        )
        for i, view in enumerate(("CC", "MLO"), start=1)
    ]  # fmt: skip
    columns = ["file", "patient_id", "image_id", "laterality", "view", "age", "machine"]
    return pd.DataFrame(rows, columns=columns, dtype="string")


def test_the_competition_is_as_it_is() -> None:
    frame = pd.DataFrame({"patient_id": ["1"]}, index=[7])
    assert map_rsna([frame], "train").equals(frame)
    assert map_rsna([frame, frame], "train").index.tolist() == [0, 1]


def test_vindr_takes_birads_5_for_cancer() -> None:
    rows = map_vindr([table(VINDR)], "train", **VINDR_SETTINGS)
    assert rows["cancer"].tolist() == [0, 0, 1, 1]
    assert rows["BIRADS"].tolist() == ["2", "2", "5", "5"]
    assert rows["density"].unique().tolist() == ["C"]
    assert rows["view"].tolist() == ["CC", "MLO", "MLO", "CC"]
    assert rows["patient_id"].unique().tolist() == [STUDIES[0]]
    assert rows["file"].iloc[0] == f"{STUDIES[0]}/{IMAGES[0]}.dicom"
    test = map_vindr([table(VINDR)], "test", **VINDR_SETTINGS | {"positive": [4, 5]})
    assert test["cancer"].tolist() == [1]
    assert test["prediction_id"].tolist() == [f"{STUDIES[1]}_R"]
    assert test["image_id"].tolist() == [IMAGES[4]]


def test_vindr_as_pretraining_takes_both_splits_and_the_metadata() -> None:
    both = {"train": ["training", "test"], "test": ["test"]}
    rows = map_vindr([table(VINDR), table(METADATA)], "train", **VINDR_SETTINGS | {"splits": both})
    assert len(rows) == 5
    assert rows["age"].astype(float).tolist()[:1] == [53.0]
    assert rows["age"].isna().tolist() == [False, True, True, True, True]
    assert rows["machine_id"].iloc[-1] == "GIOTTO IMAGE 3DL"


def test_vindr_takes_the_worse_of_two_categories_of_a_breast() -> None:
    worse = VINDR.replace("2702,BI-RADS 2", "2702,BI-RADS 5", 1)
    assert map_vindr([table(worse)], "train", **VINDR_SETTINGS)["cancer"].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (VINDR.replace("BI-RADS 4", "4"), {}, "breast_birads is 4; expected BI-RADS 1 to 5"),
        (VINDR.replace("split\n", "fold\n"), {}, "'breast_birads' lacks split; it has study_id"),
        (VINDR, {"splits": {"train": ["train"]}}, r"splits.train=\['train'\].*but training, test"),
        (VINDR, {"file": "{study}.dicom"}, r"rows.file=\{study\}.dicom: .*\{study_id\}"),
        ("a,b\n1,2\n", {}, "no table has the column 'breast_birads'. The columns are a, b"),
    ],
)
def test_vindr_names_what_is_amiss(text: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        map_vindr([table(text)], "train", **VINDR_SETTINGS | settings)


def test_cbis_has_a_row_an_image_and_a_label_a_breast(cbis: list[pd.DataFrame]) -> None:
    rows = map_cbis_ddsm(cbis, "train", **CBIS_SETTINGS).set_index("image_id")
    assert rows.index.tolist() == [  # P_00005 is in the test: not here
        "Mass-Training_P_00001_LEFT_CC",
        "Mass-Training_P_00001_LEFT_MLO",
        "Mass-Training_P_00001_RIGHT_CC",
        "Calc-Training_P_00007_LEFT_MLO",
    ]
    assert rows["cancer"].tolist() == [1, 1, 0, 0]
    assert rows["laterality"].tolist() == ["L", "L", "R", "L"]
    assert rows["view"].tolist() == ["CC", "MLO", "CC", "MLO"]
    assert rows["BIRADS"].tolist() == [5, 4, 2, 4]
    assert rows["density"].fillna("").tolist() == ["C", "C", "C", ""]
    assert rows["patient_id"].tolist() == ["P_00001"] * 3 + ["P_00007"]
    assert rows["file"].iloc[0] == "Mass-Training_P_00001_LEFT_CC/*/*/*.dcm"


def test_cbis_splits_and_the_breast_that_is_in_both(cbis: list[pd.DataFrame]) -> None:
    test = map_cbis_ddsm(cbis, "test", **CBIS_SETTINGS)
    assert test["prediction_id"].tolist() == ["P_00005_R"]
    both = CBIS_SETTINGS | {"splits": {"train": ["Training", "Test"], "test": ["Test"]}}
    rows = map_cbis_ddsm(cbis, "train", **both).set_index("image_id")
    assert len(rows) == 6
    # Its mass is benign, its calcification is not: the breast has cancer.
    assert rows.loc["Mass-Training_P_00005_RIGHT_CC", "cancer"] == 1


def test_cbis_finds_the_mirror_by_series(cbis: list[pd.DataFrame]) -> None:
    mirror = CBIS_SETTINGS | {"file": "{series}/*.jpg"}
    rows = map_cbis_ddsm(cbis, "train", **mirror)
    assert rows["file"].iloc[0] == "1.3.6.1.4.1.9590.100.1.2.2/*.jpg"


def test_cbis_names_an_unknown_pathology(cbis: list[pd.DataFrame]) -> None:
    cbis[0].loc[0, "pathology"] = "UNPROVEN"
    with pytest.raises(InputError, match="pathology is UNPROVEN; expected MALIGNANT, BENIGN"):
        map_cbis_ddsm(cbis, "train", **CBIS_SETTINGS)


def test_cmmd_joins_headers_and_clinical_rows(cmmd_index: pd.DataFrame) -> None:
    for tables in ([cmmd_index, table(CLINICAL)], [table(CLINICAL), cmmd_index]):
        rows = map_cmmd(tables, "train", other_breasts="drop")
        assert rows["patient_id"].tolist() == ["D1-0001"] * 2 + ["D1-0002"] * 4 + ["D2-0700"] * 2
        assert rows["cancer"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert rows["view"].tolist() == ["CC", "MLO"] * 4
        assert rows["age"].tolist() == ["44"] * 2 + ["40"] * 4 + ["59"] * 2
        assert rows["file"].iloc[0].endswith("/1-1.dcm")
    rows = map_cmmd([cmmd_index, table(CLINICAL)], "train", other_breasts="negative")
    other = rows[(rows["patient_id"] == "D2-0700") & (rows["laterality"] == "R")]
    assert other["cancer"].tolist() == [0, 0]
    assert other["age"].tolist() == ["43.0", "43.0"]


def test_cmmd_takes_malignant_when_a_breast_has_two_rows(cmmd_index: pd.DataFrame) -> None:
    twice = CLINICAL + "D1-0001,R,44,2,mass,Malignant,\n"
    rows = map_cmmd([cmmd_index, table(twice)], "train", other_breasts="drop")
    assert len(rows) == 8
    assert rows["cancer"].tolist()[:2] == [1, 1]


def test_cmmd_names_what_is_amiss(cmmd_index: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"no published test split.*splits=\[train\]"):
        map_cmmd([cmmd_index, table(CLINICAL)], "test", other_breasts="drop")
    with pytest.raises(InputError, match="other_breasts=keep: choose drop or negative"):
        map_cmmd([cmmd_index, table(CLINICAL)], "train", other_breasts="keep")
    others = table(CLINICAL).assign(ID1="X")
    with pytest.raises(InputError, match=r"no image of the index \(D1-0001, .*table \(X\)"):
        map_cmmd([cmmd_index, others], "train", other_breasts="drop")
    odd = table(CLINICAL).replace("Benign", "B")
    with pytest.raises(InputError, match="classification is B; expected Benign, Malignant"):
        map_cmmd([cmmd_index, odd], "train", other_breasts="drop")


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_cmmd_is_read_from_excel_as_from_csv(
    suffix: str, cmmd_index: pd.DataFrame, tmp_path: Path
) -> None:
    clinical = tmp_path / f"CMMD_clinicaldata_revision{suffix}"
    numbers = pd.read_csv(StringIO(CLINICAL))
    numbers.to_csv(clinical, index=False) if suffix == ".csv" else numbers.to_excel(
        clinical, index=False
    )
    cmmd_index.to_csv(tmp_path / "index.csv", index=False)
    images = read_images(
        [tmp_path / "index.csv", clinical],
        "train",
        lambda tables, split: map_cmmd(tables, split, other_breasts="drop"),
    )
    assert images["age"].tolist() == [44] * 2 + [40] * 4 + [59] * 2
    assert images["prediction_id"].unique().tolist() == [
        "D1-0001_R", "D1-0002_L", "D1-0002_R", "D2-0700_L",
    ]  # fmt: skip


OWN = """\
PatientID,SOPInstanceUID,side,projection,diagnosis,path,path_of_report
007,1.2.3,Left,craniocaudal,malignant,a/1.dcm,x
007,1.2.4,LEFT,mlo,Malignant,a/2.dcm,x
8,1.2.5,right,CC,benign,b/1.dcm,x
"""
OWN_COLUMNS = {
    "patient_id": "PatientID",
    "image_id": "SOPInstanceUID",
    "laterality": "side",
    "view": "projection",
    "cancer": "diagnosis",
    "file": "path",
    "age": None,
}
OWN_VALUES: dict[str, dict[object, object] | None] = {
    "laterality": {"left": "L", "right": "R"},
    "view": {"craniocaudal": "CC", "MLO": "MLO"},
    "cancer": {"malignant": 1, "benign": 0},
}


def test_generic_maps_names_and_values(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(OWN)
    settings = GENERIC_SETTINGS | {"columns": OWN_COLUMNS, "values": OWN_VALUES}
    images = read_images(
        tmp_path / "own.csv", "train", lambda tables, split: map_generic(tables, split, **settings)
    )
    assert images["patient_id"].tolist() == ["007", "007", "8"]
    assert images["image_id"].tolist() == ["1.2.3", "1.2.4", "1.2.5"]
    assert images["laterality"].tolist() == ["L", "L", "R"]
    assert images["view"].tolist() == ["CC", "MLO", "CC"]
    assert images["cancer"].tolist() == [1, 1, 0]
    assert images["file"].tolist() == ["a/1.dcm", "a/2.dcm", "b/1.dcm"]
    assert "path_of_report" not in images


def test_generic_test_needs_no_label_and_gets_its_ids() -> None:
    settings = GENERIC_SETTINGS | {"columns": OWN_COLUMNS, "values": OWN_VALUES}
    rows = map_generic([table(OWN).drop(columns="diagnosis")], "test", **settings)
    assert rows["prediction_id"].tolist() == ["007_L", "007_L", "8_R"]
    assert "cancer" not in rows
    own_ids = table(OWN).assign(prediction_id=["a", "a", "b"])
    assert map_generic([own_ids], "test", **settings)["prediction_id"].tolist() == ["a", "a", "b"]


def test_generic_joins_labels_to_an_index() -> None:
    index = table(
        "file,patient_id,image_id,laterality,view,age\n"
        "a/1,007,1,L,CC,50\na/2,007,2,L,MLO,50\nb/1,8,3,R,CC,60\nc/1,9,4,R,CC,\n"
    )
    labels = table("who,breast,diagnosis\n007,left,malignant\n007,left,malignant\n8,right,benign\n")
    settings = GENERIC_SETTINGS | {
        "columns": {"patient_id": "who", "laterality": "breast", "cancer": "diagnosis"},
        "values": OWN_VALUES,
    }
    rows = map_generic([index, labels], "train", **settings)
    assert rows["cancer"].fillna("").tolist() == ["1", "1", "0", ""]
    assert rows["file"].tolist() == ["a/1", "a/2", "b/1", "c/1"]
    rows = map_generic([index, labels], "train", **settings | {"unlabelled": "drop"})
    assert rows["image_id"].tolist() == ["1", "2", "3"]
    twice = pd.concat([labels, table("who,breast,diagnosis\n8,right,malignant\n")])
    with pytest.raises(InputError, match="several rows that differ, 8, R among them"):
        map_generic([index, twice], "train", **settings)
    with pytest.raises(InputError, match=r"join=\['image_id'\]: image_id is not in all"):
        map_generic([index, labels], "train", **settings | {"join": ["image_id"]})
    others = labels.assign(who="P" + labels["who"])
    message = r"no image has a label.*patient_id=007 laterality=L and patient_id=P007 laterality=L"
    for unlabelled in ("refuse", "drop"):
        with pytest.raises(InputError, match=message):
            map_generic([index, others], "train", **settings | {"unlabelled": unlabelled})


def test_what_is_dropped_is_said(
    cmmd_index: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    rows = table("patient_id,image_id,laterality,view,cancer\n1,a,L,CC,1\n2,b,L,CC,\n3,c,L,CC,\n")
    left = map_generic([rows], "train", **GENERIC_SETTINGS | {"unlabelled": "drop"})
    assert left["image_id"].tolist() == ["a"]
    assert "2 of 3 images have no label and are dropped, the first is b." in caplog.text
    map_cmmd([cmmd_index, table(CLINICAL)], "train", other_breasts="drop")
    assert "2 of 10 images have no label and are dropped, the first is 1.3.6." in caplog.text
    with pytest.raises(InputError, match="no image has a label: the column cancer is empty"):
        map_generic([rows[1:]], "train", **GENERIC_SETTINGS | {"unlabelled": "drop"})


INDEX = """\
patient_id,image_id,laterality,view,file,age,result
1,a,L,CC,1.dcm,50.0,1
1,b,L,MLO,2.dcm,50.0,1
2,c,R,CC,3.dcm,,0
"""


def test_a_named_column_is_taken_from_its_table_alone() -> None:
    index, labels = table(INDEX), table("patient_id,laterality,cancer\n1,L,0\n2,R,0\n")
    for named in ({"cancer": "result"}, {"cancer": "result", "patient_id": "patient_id"}):
        settings = GENERIC_SETTINGS | {"columns": named}
        rows = map_generic([index, labels], "train", **settings)
        assert rows["cancer"].tolist() == ["1", "1", "0"]


@pytest.mark.parametrize(
    ("labels", "column", "differ"),
    [
        ("patient_id,laterality,cancer,view\n1,L,1,CC\n2,R,0,CC\n", "view", r"b \(MLO, CC\)"),
        ("patient_id,laterality,cancer,file\n2,R,0,report.pdf\n", "file", r"c \(3.dcm, report.pdf"),
        ("patient_id,laterality,cancer,image_id\n1,L,1,a\n", "image_id", r"b \(b, a\)"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(
    labels: str, column: str, differ: str
) -> None:
    tables = [table(INDEX), table(labels)]
    message = f"both tables have {column}, and they differ for 1 .*{differ}.*rows.columns.{column}="
    with pytest.raises(InputError, match=message):
        map_generic(tables, "train", **GENERIC_SETTINGS)
    rows = map_generic(tables, "train", **GENERIC_SETTINGS | {"columns": {column: column}})
    assert rows[column].tolist() == table(INDEX)[column].tolist()


def test_tables_that_agree_complete_each_other() -> None:
    labels = table("patient_id,laterality,cancer,age\n1,L,1,50\n2,R,0,60\n")
    rows = map_generic([table(INDEX), labels], "train", **GENERIC_SETTINGS)
    assert rows["age"].tolist() == ["50.0", "50.0", "60"]
    assert rows["image_id"].tolist() == ["a", "b", "c"]


def mapped_labels(text: str, mapping: dict[object, object]) -> list[Any]:
    settings = GENERIC_SETTINGS | {"values": {"cancer": mapping}}
    cancer = map_generic([table(f"image_id,cancer\n{text}")], "train", **settings)["cancer"]
    return cancer.fillna("").tolist()


def test_numbers_are_matched_as_numbers() -> None:
    # As pandas and Excel write a column of 1 and 2 once a value is missing.
    assert mapped_labels("a,1.0\nb,2.0\nc,\n", {1: 0, 2: 1}) == ["0", "1", ""]
    assert mapped_labels("a,1\nb,2.00\n", {1.0: 0, "2": 1}) == ["0", "1"]
    assert mapped_labels("a,True\nb,0.0\n", {True: 1, False: 0}) == ["1", "0"]


@pytest.mark.parametrize(
    ("text", "mapping", "unknown"),
    [
        ("a,malignant\nb,suspicious\n", {"malignant": 1, "benign": 0}, "suspicious is"),
        ("a,1.5\nb,2\n", {1: 0, 2: 1}, "1.5 is"),
        ("a,0\nb,2\n", {1: 0, 2: 1}, "0 is"),  # their 1 is not ours, nor may their 0 be
        ("a,yes\nb,no\n", {True: 1, False: 0}, "yes, no is .* knows true, false.*quote yes"),
    ],
)
def test_values_that_a_mapping_does_not_know_are_refused(
    text: str, mapping: dict[object, object], unknown: str
) -> None:
    with pytest.raises(InputError, match=rf"values\.cancer does not say what {unknown}"):
        mapped_labels(text, mapping)


def test_values_that_are_ours_need_no_mapping_and_views_of_a_test_stay() -> None:
    assert mapped_labels("a,malignant\nb,0\n", {"malignant": 1, "benign": 0}) == ["1", "0"]
    rows = table("image_id,view\na,craniocaudal\nb,mlo\nc,XCCL\n")
    settings = GENERIC_SETTINGS | {"values": {"view": {"craniocaudal": "CC"}}}
    assert map_generic([rows], "test", **settings)["view"].tolist() == ["CC", "MLO", "XCCL"]
    with pytest.raises(InputError, match=r"values\.view does not say what XCCL is"):
        map_generic([rows], "train", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"columns": {"view": "View"}},
            "columns.view=View: there is no such column, but PatientID",
        ),
        ({"columns": {"path": "path"}}, "columns.path: later stages add path"),
        ({"values": {"laterality": {"l": "L"}}}, "values.laterality: there is no column"),
        ({"unlabelled": "keep"}, "unlabelled=keep: choose refuse or drop"),
    ],
)
def test_generic_names_the_key_that_is_amiss(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        map_generic([table(OWN)], "train", **GENERIC_SETTINGS | settings)
