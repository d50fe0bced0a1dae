"""The tables of a test set: each fault costs at most its row, and becomes a failure."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables import test_set
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.test_set import read_test_tables

COLUMNS = [
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id",
    "prediction_id",
]  # fmt: skip
ROWS: list[list[Any]] = [
    [1, "7", "70", "L", "CC", 61, 0, 29, "7_L"],
    [1, "7", "71", "L", "MLO", 61, 0, 29, "7_L"],
    [1, "7", "72", "R", "CC", 61, 0, 29, "7_R"],
    [1, "7", "73", "R", "MLO", 61, 0, 29, "7_R"],
    [2, "08", "80", "L", "MLO", 44, 0, 49, "08_L"],
    [2, "08", "81", "L", "CC", 44, 0, 49, "08_L"],
    [2, "08", "82", "R", "CC", 44, 1, 49, "08_R"],
    [2, "08", "83", "R", "MLO", 44, 1, 49, "08_R"],
]
IDS = ["7_L", "7_R", "08_L", "08_R"]


def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=COLUMNS, dtype=object)


def read(folder: Path, frame: pd.DataFrame, ids: list[str] | None = IDS) -> test_set.TestTables:
    frame.to_csv(folder / "test.csv", index=False)
    if ids is not None:
        sample = pd.DataFrame({"prediction_id": ids, "cancer": 0.02})
        sample.to_csv(folder / "sample_submission.csv", index=False)
    return read_test_tables(folder / "test.csv", folder / "sample_submission.csv")


def cases(test: test_set.TestTables) -> list[tuple[str | None, str | None, str]]:
    return [(f.prediction_id, f.image_id, f.kind) for f in test.failures]


def test_read_test_tables_equals_read_images_without_faults(tmp_path: Path) -> None:
    test = read(tmp_path, table())
    plain = read_images(tmp_path / "test.csv", "test")
    pd.testing.assert_frame_equal(test.images, plain, check_dtype=False)
    assert test.failures == ()
    assert test.breasts["prediction_id"].tolist() == IDS
    assert test.breasts["patient_id"].tolist() == ["7", "7", "08", "08"]
    assert test.breasts["laterality"].tolist() == ["L", "R", "L", "R"]


def test_read_test_tables_ignores_order_and_further_columns(tmp_path: Path) -> None:
    plain = read(tmp_path, table()).images
    turned = table()[[*reversed(COLUMNS)]].assign(further="x")
    turned.columns = pd.Index([f" {column} " for column in turned])
    test = read(tmp_path, turned)
    pd.testing.assert_frame_equal(test.images[COLUMNS], plain[COLUMNS])
    assert test.failures == ()


@pytest.mark.parametrize(
    ("row", "changes", "kind", "becomes"),
    [
        (0, {"view": "XCCL"}, "unknown view", {"view": "XCCL"}),
        (0, {"view": None}, "unknown view", {}),
        (1, {"age": None}, "missing age", {}),
        (1, {"age": -3}, "missing age", {}),
        (1, {"age": "old"}, "missing age", {}),
        (1, {"machine_id": None}, "missing machine", {}),
        (2, {"laterality": None}, "unknown laterality", {"laterality": "R"}),
        (2, {"laterality": "B"}, "unknown laterality", {"laterality": "R"}),
        (2, {"laterality": "L"}, "contradiction", {"laterality": "R"}),
        (2, {"patient_id": None}, "missing patient_id", {"patient_id": "7"}),
        (2, {"patient_id": "9"}, "contradiction", {"patient_id": "7"}),
        (2, {"prediction_id": None}, "missing prediction_id", {"prediction_id": "7_R"}),
        (2, {"prediction_id": "7R"}, "contradiction", {"prediction_id": "7_R"}),
    ],
)
def test_read_test_tables_invalid_cell_costs_no_image(
    row: int, changes: dict[str, Any], kind: str, becomes: dict[str, str], tmp_path: Path
) -> None:
    plain = read(tmp_path, table()).images
    frame = table()
    for column, value in changes.items():
        frame.loc[row, column] = value
    test = read(tmp_path, frame)
    breast, image = plain.loc[row, ["prediction_id", "image_id"]]
    assert cases(test) == [(breast, image, kind)]
    for column, value in becomes.items():
        assert test.images.loc[row, column] == value
    unchanged = ["image_id", *(c for c in plain if c not in changes)]
    pd.testing.assert_frame_equal(test.images[unchanged], plain[unchanged], check_dtype=False)


@pytest.mark.parametrize(
    ("changes", "case"),
    [
        ({"image_id": None}, ("7_L", None, "unfit name")),
        ({"image_id": "../70"}, ("7_L", "../70", "unfit name")),
        ({"prediction_id": None, "laterality": None}, (None, "70", "unknown breast")),
        ({"prediction_id": "9_L", "patient_id": "9"}, ("9_L", "70", "not asked for")),
        ({"prediction_id": None, "patient_id": "9"}, (None, "70", "not asked for")),
        ({"image_id": "71"}, ("7_L", "71", "repeated row")),
        ({"image_id": "82"}, ("08_R", "82", "two breasts")),
    ],
)
def test_read_test_tables_drops_rows_without_breast_or_image(
    changes: dict[str, Any], case: tuple[str | None, str | None, str], tmp_path: Path
) -> None:
    frame = table().assign(view="CC")
    for column, value in changes.items():
        frame.loc[0, column] = value
    test = read(tmp_path, frame)
    assert cases(test) == [case]
    assert len(test.images) == len(ROWS) - 1
    assert test.images["image_id"].is_unique
    assert test.breasts["prediction_id"].tolist() == IDS


def test_read_test_tables_keeps_the_first_of_repeated_rows(tmp_path: Path) -> None:
    plain = read(tmp_path, table()).images
    repeated = table().loc[[1, 4]].assign(view=["AT", "XX"], age=None)
    test = read(tmp_path, pd.concat([table(), repeated]))
    assert cases(test) == [("7_L", "71", "repeated row"), ("08_L", "80", "repeated row")]
    assert "line 10 repeats line 3" in test.failures[0].reason
    pd.concat([table(), repeated]).to_excel(tmp_path / "test.xlsx", index=False)
    excel = read_test_tables(tmp_path / "test.xlsx", tmp_path / "sample_submission.csv")
    assert [f.reason for f in excel.failures] == [f.reason for f in test.failures]
    pd.testing.assert_frame_equal(test.images, plain, check_dtype=False)


def test_read_test_tables_keeps_expected_breasts_without_rows(tmp_path: Path) -> None:
    test = read(tmp_path, table().drop(index=[2, 3]), ids=[*IDS[::-1], "11_R"])
    assert cases(test) == [("7_R", None, "unlisted"), ("11_R", None, "unlisted")]
    assert test.breasts["prediction_id"].tolist() == [*IDS[::-1], "11_R"]
    assert test.breasts.iloc[0].tolist() == ["08_R", "08", "R"]
    assert test.breasts.iloc[-1].tolist() == ["11_R", "11", "R"]


def test_read_test_tables_reports_a_missing_standard_view(tmp_path: Path) -> None:
    frame = table().drop(index=[1])  # the MLO of 7_L
    assert cases(read(tmp_path, frame)) == [("7_L", None, "missing view")]
    frame.loc[0, "view"] = None
    assert cases(read(tmp_path, frame)) == [("7_L", "70", "unknown view")]
    only_cc = table()[table()["view"] == "CC"]  # of films that have no other view at all
    assert cases(read(tmp_path, only_cc)) == []


@pytest.mark.parametrize(
    "missing",
    [["prediction_id"], ["laterality"], ["patient_id"], ["patient_id", "laterality"], ["view"]],
)
def test_read_test_tables_derives_columns(missing: list[str], tmp_path: Path) -> None:
    plain = read(tmp_path, table()).images[COLUMNS]
    plain["view"] = plain["view"].mask(plain["view"].notna() & ("view" in missing))
    optional = ["age", "machine_id", "implant", "site_id"]  # without a failure
    test = read(tmp_path, table().drop(columns=[*missing, *optional]))
    expected = plain.drop(columns=optional)
    pd.testing.assert_frame_equal(test.images[[*expected]], expected, check_dtype=False)
    assert cases(test) == [(None, None, "missing column")] * len(missing)
    assert missing[0] in test.failures[0].reason


def test_read_test_tables_removes_decimals_of_identifiers(tmp_path: Path) -> None:
    frame = table().assign(image_id=[f"{image}.0" for image in table()["image_id"]])
    frame.loc[8] = [1, "7", None, "R", "CC", 61, 0, 29, "7_R"]
    test = read(tmp_path, frame)
    assert cases(test) == [("7_R", None, "unfit name")]
    assert test.images["image_id"].tolist() == table()["image_id"].tolist()


def test_match_breasts_with_ids_of_another_form(tmp_path: Path) -> None:
    names = dict(zip(IDS, "abcd", strict=True))
    frame = table().assign(prediction_id=table()["prediction_id"].map(names))
    frame.loc[0, ["prediction_id", "age"]] = None, 61
    frame.loc[3, "laterality"] = None
    test = read(tmp_path, frame, ids=["d", "c", "b", "a"])
    assert cases(test) == [("a", "70", "missing prediction_id"), ("b", "73", "unknown laterality")]
    assert test.images["prediction_id"].tolist() == list("aabbccdd")
    assert test.images["laterality"].tolist() == table()["laterality"].tolist()


@pytest.mark.parametrize("content", [None, "", "prediction_id,cancer\n", "id,cancer\n7_L,0\n"])
def test_read_test_tables_without_sample_takes_the_breasts_of_the_table(
    content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "sample_submission.csv").write_text(content)
    test = read(tmp_path, table(), ids=None)
    assert test.breasts["prediction_id"].tolist() == IDS
    wanted = [] if content is None else [(None, None, "unfit sample")]
    assert cases(test) == wanted


def test_read_test_tables_damaged_lines_cost_themselves(tmp_path: Path) -> None:
    read(tmp_path, table())
    lines = (tmp_path / "test.csv").read_text().splitlines()
    lines[1] = lines[1].replace("CC", "CC,CC")  # a cell too many
    lines[3] = lines[3].rsplit(",", 1)[0]  # one too few
    lines[5] += ",,"
    lines[6] = '"' + lines[6]
    lines.insert(4, "")
    text = "\r\n".join(lines).encode() + b"\r\n2,08,8\xff4,R,CC,44,1,49,08_R\r\n"
    (tmp_path / "test.csv").write_bytes(b"\xef\xbb\xbf" + text)
    test = read_test_tables(tmp_path / "test.csv", tmp_path / "sample_submission.csv")
    assert cases(test) == [
        (None, None, "damaged row"),
        ("7_R", "72", "missing prediction_id"),
        ("08_R", "8\N{REPLACEMENT CHARACTER}4", "unfit name"),
        ("7_L", None, "missing view"),
    ]
    assert "line 2 has 10 cells instead of 9" in test.failures[0].reason
    assert test.images["image_id"].tolist() == table()["image_id"].tolist()[1:]


HEADER = ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        (HEADER, "no row with an image"),
        (HEADER + "1,9,90,L,CC,61,0,29,9_L\n", "no row with an image of a breast of"),
        (HEADER.replace("image_id", "name"), r"lacks the column\(s\) image_id"),
        ("image_id,patient_id\n", r"lacks the column\(s\) laterality, prediction_id"),
        ("image_id,laterality\n", r"lacks the column\(s\) patient_id, prediction_id"),
    ],
)
def test_read_test_tables_refuses(content: str | None, key: str, tmp_path: Path) -> None:
    read(tmp_path, table())
    csv = tmp_path / "test.csv"
    csv.unlink() if content is None else csv.write_text(content)
    with pytest.raises(InputError, match=key):
        read_test_tables(csv, tmp_path / "sample_submission.csv")


def test_read_test_tables_drops_invalid_files(tmp_path: Path) -> None:
    files: Any = ["a.dcm", None, "../c.dcm", "a.dcm", "b/*.dcm", "b/*.dcm", "d.dcm", "a.dcm"]
    test = read(tmp_path, table().assign(file=files, view="CC"))
    assert cases(test) == [
        ("7_L", "71", "unfit name"),
        ("7_R", "72", "unfit name"),
        ("7_R", "73", "two breasts"),
        ("08_R", "83", "two breasts"),
    ]
