"""Mappings of other datasets, on rows in the format in which each was published."""

from collections.abc import Callable
from functools import partial
from io import StringIO
from typing import Any

import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.datasets import map_cbis_ddsm, map_cmmd, map_generic, map_rsna, map_vindr

# Study, series and image are hashes of 32 digits; one without letters is no number.
STUDIES = ("5e" * 16, "0a" * 16)
IMAGES = ("d1" * 16, "29" * 16, "cd" * 16, "71" * 16, "0" * 30 + "12")
VINDR = (
    "study_id,image_id,laterality,view_position,breast_birads,breast_density,split\n"
    f"{STUDIES[0]},{IMAGES[0]},L,CC,BI-RADS 2,DENSITY C,training\n"
    f"{STUDIES[0]},{IMAGES[1]},L,MLO,BI-RADS 2,DENSITY C,training\n"
    f"{STUDIES[0]},{IMAGES[2]},R,MLO,BI-RADS 5,DENSITY C,training\n"
    f"{STUDIES[0]},{IMAGES[3]},R,CC,BI-RADS 5,DENSITY C,training\n"
    f"{STUDIES[1]},{IMAGES[4]},R,CC,BI-RADS 4,DENSITY D,test\n"
)
METADATA = (
    "SOP Instance UID,Patient's Age,Manufacturer,Manufacturer's Model Name\n"
    f"{IMAGES[0]},053Y,SIEMENS,Mammomat Inspiration\n"
    f"{IMAGES[4]},,IMS s.r.l.,GIOTTO IMAGE 3DL\n"
)
VINDR_SETTINGS: dict[str, Any] = {
    "positive": [5],
    "splits": {"train": ["training"], "test": ["test"]},
    "file": "{study_id}/{image_id}.dicom",
}
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


CBIS = (
    ("Mass-Training_P_00001_LEFT_CC", "3", "3", "BENIGN"),
    ("Mass-Training_P_00001_LEFT_CC", "3", "5", "MALIGNANT"),
    ("Mass-Training_P_00001_LEFT_MLO", "3", "4", "BENIGN"),
    ("Mass-Training_P_00001_RIGHT_CC", "3", "2", "BENIGN_WITHOUT_CALLBACK"),
    ("Mass-Training_P_00005_RIGHT_CC", "1", "4", "BENIGN"),
    ("Calc-Training_P_00007_LEFT_MLO", "0", "4", "BENIGN"),
    ("Calc-Test_P_00005_RIGHT_CC", "1", "4", "MALIGNANT"),  # its mass is benign
)


def cbis_tables() -> list[pd.DataFrame]:
    """The four tables: they call one column differently, and their paths end in a line break."""
    tables = []
    for kind in ("Mass-Training", "Calc-Training", "Mass-Test", "Calc-Test"):
        rows = []
        for folder, density, assessment, pathology in CBIS:
            own, _, number, side, view = folder.split("_")
            path = f"{folder}/1.3.6.1/1.3.6.2/000000.dcm\n"
            if own == kind:
                rows.append([f"P_{number}", density, side, view, assessment, pathology, path])
        density = "breast_density" if "Mass" in kind else "breast density"
        columns = ["patient_id", density, "left or right breast", "image view", "assessment",
                   "pathology", "image file path"]  # fmt: skip
        tables.append(pd.DataFrame(rows, columns=columns, dtype="string"))
    return tables


def cmmd_tables(**changes: str) -> list[pd.DataFrame]:
    """Two images per breast; the right breast of D2-0700 has no clinical row."""
    breasts = [("D1-0001", "R"), ("D1-0002", "L"), ("D1-0002", "R"), ("D2-0700", "L"),
               ("D2-0700", "R")]  # fmt: skip
    rows = [
        (f"{patient}/{k}/1-{i}.dcm", patient, f"1.3.6.{k}{i}", side, view, "43.0", None)
        for k, (patient, side) in enumerate(breasts)
        for i, view in enumerate(("CC", "MLO"), start=1)
    ]
    columns = ["file", "patient_id", "image_id", "laterality", "view", "age", "machine"]
    index = pd.DataFrame(rows, columns=columns, dtype="string")
    return [index, table(CLINICAL).assign(**changes)]


def vindr(*texts: str, split: Any = "train", **changes: Any) -> pd.DataFrame:
    tables = [table(text) for text in texts or (VINDR,)]
    return map_vindr(tables, split, **VINDR_SETTINGS | changes)


def cbis_ddsm(split: Any = "train", cells: dict[str, str] | None = None, **changes: Any) -> Any:
    tables = [rows.assign(**cells or {}) for rows in cbis_tables()]
    return map_cbis_ddsm(tables, split, **CBIS_SETTINGS | changes).set_index("image_id")


def cmmd(split: Any = "train", other_breasts: Any = "drop", **changes: str) -> pd.DataFrame:
    return map_cmmd(cmmd_tables(**changes), split, other_breasts=other_breasts)


def generic(*texts: str, split: Any = "train", **settings: Any) -> pd.DataFrame:
    return map_generic([table(text) for text in texts], split, **GENERIC_SETTINGS | settings)


OWN = """\
PatientID,SOPInstanceUID,side,projection,diagnosis,path,path_of_report
007,1.2.3,Left,craniocaudal,malignant,a/1.dcm,x
007,1.2.4,LEFT,mlo,Malignant,a/2.dcm,x
8,1.2.5,right,CC,benign,b/1.dcm,x
"""
OWN_SETTINGS: dict[str, Any] = {
    "columns": {
        "patient_id": "PatientID",
        "image_id": "SOPInstanceUID",
        "laterality": "side",
        "view": "projection",
        "cancer": "diagnosis",
        "file": "path",
        "age": None,
    },
    "values": {
        "laterality": {"left": "L", "right": "R"},
        "view": {"craniocaudal": "CC", "MLO": "MLO"},
        "cancer": {"malignant": 1, "benign": 0},
    },
}
INDEX = """\
patient_id,image_id,laterality,view,file,age,result
1,a,L,CC,1.dcm,50.0,1
1,b,L,MLO,2.dcm,50.0,1
2,c,R,CC,3.dcm,,0
3,d,R,CC,4.dcm,,
"""
LABELS = "who,breast,diagnosis\n1,left,malignant\n1,left,malignant\n2,right,benign\n"
NO_LABELS = "who,breast,diagnosis\nP1,left,malignant\n"
LABEL_SETTINGS: dict[str, Any] = {
    "columns": {"patient_id": "who", "laterality": "breast", "cancer": "diagnosis"},
    "values": OWN_SETTINGS["values"],
}


def labelled(labels: str = LABELS, **settings: Any) -> pd.DataFrame:
    return generic(INDEX, labels, **LABEL_SETTINGS | settings)


def test_map_rsna_keeps_the_table() -> None:
    frame = pd.DataFrame({"patient_id": ["1"]}, index=[7])
    assert map_rsna([frame], "train").equals(frame)
    assert map_rsna([frame, frame], "train").index.tolist() == [0, 1]


def test_map_vindr_labels_breasts_by_their_birads() -> None:
    rows = vindr()
    assert rows["cancer"].tolist() == [0, 0, 1, 1]
    assert rows["BIRADS"].tolist() == ["2", "2", "5", "5"]
    assert rows["view"].tolist() == ["CC", "MLO", "MLO", "CC"]
    first = rows[["patient_id", "density", "file"]].iloc[0].tolist()
    assert first == [STUDIES[0], "C", f"{STUDIES[0]}/{IMAGES[0]}.dicom"]
    test = vindr(split="test", positive=[4, 5])[["image_id", "prediction_id", "cancer"]]
    assert test.to_numpy().tolist() == [[IMAGES[4], f"{STUDIES[1]}_R", 1]]
    higher = vindr(VINDR.replace("BI-RADS 2", "BI-RADS 5", 1))  # of two categories of one breast
    assert higher["cancer"].tolist() == [1] * 4


def test_map_vindr_for_pretraining_has_both_splits_and_the_metadata() -> None:
    rows = vindr(VINDR, METADATA, splits={"train": ["training", "test"]})
    assert rows["age"].fillna("").tolist() == ["053", "", "", "", ""]
    assert rows["machine_id"].iloc[[0, -1]].tolist() == ["Mammomat Inspiration", "GIOTTO IMAGE 3DL"]


def test_map_cbis_ddsm_has_one_row_per_image_and_one_label_per_breast() -> None:
    rows = cbis_ddsm()
    # Patient 5 is in the test split too: left out.
    assert rows.index.tolist() == [CBIS[0][0], CBIS[2][0], CBIS[3][0], CBIS[5][0]]
    assert rows["cancer"].tolist() == [1, 1, 0, 0]
    assert rows["prediction_id"].tolist() == ["P_00001_L", "P_00001_L", "P_00001_R", "P_00007_L"]
    assert rows["view"].tolist() == ["CC", "MLO", "CC", "MLO"]
    assert rows["BIRADS"].tolist() == [5, 4, 2, 4]
    assert rows["density"].fillna("").tolist() == ["C", "C", "C", ""]
    assert rows["file"].iloc[0] == f"{CBIS[0][0]}/*/*/*.dcm"
    assert cbis_ddsm(file="{series}/*.jpg")["file"].iloc[0] == "1.3.6.2/*.jpg"


def test_map_cbis_ddsm_breast_in_both_splits() -> None:
    assert cbis_ddsm("test")["prediction_id"].tolist() == ["P_00005_R"]
    rows = cbis_ddsm(splits={"train": ["Training", "Test"], "test": ["Test"]})
    assert len(rows) == 6
    assert rows.loc[CBIS[4][0], "cancer"] == 1


def test_map_cmmd_joins_headers_and_clinical_rows() -> None:
    for tables in (cmmd_tables(), cmmd_tables()[::-1]):
        rows = map_cmmd(tables, "train", other_breasts="drop")
        assert rows["patient_id"].tolist() == ["D1-0001"] * 2 + ["D1-0002"] * 4 + ["D2-0700"] * 2
        assert rows["cancer"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert rows["view"].tolist() == ["CC", "MLO"] * 4
        assert rows["age"].tolist() == ["44"] * 2 + ["40"] * 4 + ["59"] * 2
        assert rows["file"].iloc[0] == "D1-0001/0/1-1.dcm"
    rows = cmmd(other_breasts="negative")
    assert rows[["cancer", "age"]].iloc[-2:].to_numpy().tolist() == [[0, "43.0"]] * 2
    twice = table(CLINICAL + "D1-0001,R,44,2,mass,Malignant,\n")
    rows = map_cmmd([cmmd_tables()[0], twice], "train", other_breasts="drop")
    assert rows["cancer"].tolist() == [1, 1, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (partial(vindr, VINDR.replace("BI-RADS 4", "4")), "is 4; expected BI-RADS 0 to 6"),
        (partial(vindr, VINDR.replace("split\n", "fold\n")), "lacks split; it has study_id"),
        (partial(vindr, splits={"train": ["a"]}), r"splits.train=\['a'\].*but training, test"),
        (partial(vindr, file="{study}.dicom"), r"rows.file=\{study\}.dicom: .*\{study_id\}"),
        (partial(vindr, "a,b\n1,2\n"), "column 'breast_birads'. The columns are a, b"),
        (
            partial(cbis_ddsm, cells={"pathology": "?"}),
            "pathology is [?]; expected MALIGNANT, BENIGN",
        ),
        (partial(cmmd, "test"), r"splits=\[train\]"),
        (partial(cmmd, ID1="X"), r"no image of the index \(D1-0001, .*table \(X\)"),
        (partial(cmmd, classification="B"), "classification is B; expected Benign, Malignant"),
        (partial(generic, OWN, columns={"view": "View"}), "columns.view=View: .* PatientID"),
        (partial(generic, OWN, columns={"path": "path"}), "columns.path: later stages add path"),
        (partial(generic, OWN, values={"laterality": {"l": "L"}}), "laterality: there is no col"),
        (partial(labelled, LABELS + "2,right,malignant\n"), "several rows .* differ, 2, R among"),
        (partial(labelled, join=["image_id"]), r"join=\['image_id'\]: image_id is not in all"),
        (partial(labelled, NO_LABELS), r"no image has a label.*=1 laterality=L and patient_id=P1 "),
        (partial(labelled, NO_LABELS, unlabelled="drop"), "no image has a label"),
    ],
)
def test_mapping_refuses(call: Callable[[], pd.DataFrame], key: str) -> None:
    with pytest.raises(InputError, match=key):
        call()


def test_map_generic_maps_names_and_values() -> None:
    assert generic(OWN, **OWN_SETTINGS).to_dict("list") == {
        "patient_id": ["007", "007", "8"],
        "image_id": ["1.2.3", "1.2.4", "1.2.5"],
        "laterality": ["L", "L", "R"],
        "view": ["CC", "MLO", "CC"],
        "cancer": ["1", "1", "0"],
        "file": ["a/1.dcm", "a/2.dcm", "b/1.dcm"],
    }


def test_map_generic_test_needs_no_label_and_gets_its_ids() -> None:
    rows = generic(OWN.replace("diagnosis", "report"), split="test", **OWN_SETTINGS)
    assert rows["prediction_id"].tolist() == ["007_L", "007_L", "8_R"]
    assert "cancer" not in rows
    own_ids = OWN.replace("path_of_report", "prediction_id")
    rows = generic(own_ids, split="test", **OWN_SETTINGS)
    assert rows["prediction_id"].tolist() == ["x", "x", "x"]


def test_map_generic_joins_labels_to_an_index() -> None:
    rows = labelled()
    assert rows["cancer"].fillna("").tolist() == ["1", "1", "0", ""]
    assert rows["file"].tolist() == ["1.dcm", "2.dcm", "3.dcm", "4.dcm"]
    rows = labelled(unlabelled="drop")
    assert rows["image_id"].tolist() == ["a", "b", "c"]
    # A column of both tables is completed where they agree.
    rows = generic(INDEX, "patient_id,laterality,cancer,age\n1,L,1,50\n2,R,0,60\n")
    assert rows["age"].fillna("").tolist() == ["50.0", "50.0", "60", ""]


@pytest.mark.parametrize(
    ("labels", "column", "differ"),
    [
        ("patient_id,laterality,cancer,view\n1,L,1,CC\n2,R,0,CC\n", "view", r"b \(MLO, CC\)"),
        ("patient_id,laterality,cancer,file\n2,R,0,report.pdf\n", "file", r"c \(3.dcm, report.pdf"),
        ("patient_id,laterality,cancer,image_id\n1,L,1,a\n", "image_id", r"b \(b, a\)"),
    ],
)
def test_map_generic_refuses_tables_that_contradict_each_other(
    labels: str, column: str, differ: str
) -> None:
    with pytest.raises(InputError, match=f"differ for 1 .*{differ}.*rows.columns.{column}="):
        generic(INDEX, labels)
    rows = generic(INDEX, labels, columns={column: column})
    assert rows[column].tolist() == table(INDEX)[column].tolist()


def test_map_generic_takes_a_named_column_from_its_table_alone() -> None:
    labels = "patient_id,laterality,cancer\n1,L,0\n2,R,0\n"
    for columns in ({"cancer": "result"}, {"cancer": "result", "patient_id": "patient_id"}):
        rows = generic(INDEX, labels, columns=columns)
        assert rows["cancer"].fillna("").tolist() == ["1", "1", "0", ""]


def test_dropped_images_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    rows = "image_id,cancer\na,1\nb,\nc,\n"
    assert generic(rows, unlabelled="drop")["image_id"].tolist() == ["a"]
    assert "2 of 3 images have no label and are dropped, the first is b." in caplog.text
    cmmd()
    assert "2 of 10 images have no label" in caplog.text
    with pytest.raises(InputError, match="the column cancer is empty"):
        generic("image_id,cancer\nb,\n", unlabelled="drop")


@pytest.mark.parametrize(
    ("cells", "mapping", "expected"),
    [
        # As pandas and Excel write a column of 1 and 2 once a value is missing.
        (["1.0", "2.0", ""], {1: 0, 2: 1}, ["0", "1", ""]),
        (["1", "2.00"], {1.0: 0, "2": 1}, ["0", "1"]),
        (["True", "0.0"], {True: 1, False: 0}, ["1", "0"]),
        (["malignant", "0"], {"malignant": 1, "benign": 0}, ["1", "0"]),  # 0 is ours
        (
            ["malignant", "no", "unknown"],
            {"malignant": 1, "no": 0, "Unknown": None},
            ["1", "0", ""],
        ),
        (["malignant", "suspicious"], {"malignant": 1, "benign": 0}, "suspicious;"),
        (["0", "2"], {1: 0, 2: 1}, "0;"),  # their 1 is not ours, nor may their 0 be
        (["yes", "no"], {True: 1, False: 0}, "yes, no; it has true, false.*quote yes"),
    ],
)
def test_map_generic_values(
    cells: list[str], mapping: dict[object, object], expected: list[str] | str
) -> None:
    text = "image_id,cancer\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=rf"values\.cancer has no entry for {expected}"):
            generic(text, values={"cancer": mapping})
    else:
        rows = generic(text, values={"cancer": mapping})
        assert rows["cancer"].fillna("").tolist() == expected


def test_map_generic_keeps_unknown_views_of_a_test() -> None:
    rows = "image_id,view\na,craniocaudal\nb,mlo\nc,XCCL\n"
    values = {"view": {"craniocaudal": "CC"}}
    assert generic(rows, split="test", values=values)["view"].tolist() == ["CC", "MLO", "XCCL"]
    with pytest.raises(InputError, match=r"values\.view has no entry for XCCL"):
        generic(rows, values=values)
