"""A test set with seeded faults of every kind, and the rows of `failures.csv` for them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dicom_files import SYNTAXES, write_dicom

# kind, prediction_id, image_id; "" where there is none.
Case = tuple[str, str, str]
Row = dict[str, Any]

MANY = 8  # images of a breast that the breast network of the test looks at


@dataclass
class Planted:
    """A competition folder with faults.

    Attributes:
        data: the folder.
        cases: the rows that `failures.csv` must have.
        touched: breasts whose prediction may differ from that of the clean set.
    """

    data: Path
    cases: Counter[Case] = field(default_factory=Counter)
    touched: set[str] = field(default_factory=set)


class Planter:
    """Copies a clean competition folder by links, and plants faults, each in patients of its own.

    Args:
        clean: the folder: `test.csv`, `sample_submission.csv`, `test_images`.
        data: the new folder.
        seed: of everything.
    """

    def __init__(self, clean: Path, data: Path, seed: int) -> None:
        self.planted = Planted(data)
        self.rng = np.random.default_rng(seed)
        table = pd.read_csv(clean / "test.csv", dtype=str)
        self._left = [str(p) for p in self.rng.permutation(table["patient_id"].unique())]
        places = {patient: self.rng.random() for patient in self._left}
        shuffled = table.iloc[table["patient_id"].map(places).argsort(kind="stable")]
        self.rows: list[Row] = [
            dict(zip(table.columns, cells, strict=True))
            for cells in shuffled.to_numpy(dtype=object)
        ]
        self.sample = pd.read_csv(clean / "sample_submission.csv", dtype=str)
        self.lines: list[str] = []  # put below the table as they are
        for source in sorted((clean / "test_images").glob("*/*.dcm")):
            target = self.file(source.parent.name, source.stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())

    def plant(self, names: list[str]) -> Planted:
        """Plant faults and write the tables."""
        for name in names:
            FAULTS[name](self)
        self._write()
        return self.planted

    def patient(self) -> list[Row]:
        """The rows of a patient that no other fault has."""
        chosen = self._left.pop()
        return [row for row in self.rows if row["patient_id"] == chosen]

    def choose(self, rows: list[Row]) -> Row:
        """One of some rows."""
        return rows[int(self.rng.integers(len(rows)))]

    def breast(self) -> list[Row]:
        """The rows of one breast of such a patient."""
        rows = self.patient()
        chosen = self.choose(rows)["prediction_id"]
        return [row for row in rows if row["prediction_id"] == chosen]

    def file(self, patient_id: str, image_id: str) -> Path:
        """Where an image is."""
        return self.planted.data / "test_images" / patient_id / f"{image_id}.dcm"

    def of(self, row: Row) -> Path:
        """Where the image of a row is."""
        return self.file(row["patient_id"], row["image_id"])

    def expect(self, kind: str, prediction_id: str = "", image_id: str = "") -> None:
        """A row of `failures.csv`; its breast may have another prediction."""
        self.planted.cases[kind, prediction_id, image_id] += 1
        self.planted.touched.add(prediction_id)

    def expect_image(self, kind: str, row: Row) -> None:
        """A row of `failures.csv` of the image of a row."""
        self.expect(kind, row["prediction_id"], row["image_id"])

    def new_id(self) -> str:
        """An identifier that nothing has."""
        return str(3_000_000_000 + int(self.rng.integers(10**9)))

    def lose(self, kind: str, damage: Callable[[Path, bytes], object]) -> None:
        """Delete the file of one image of a breast, or of all of them; write a damaged one."""
        rows = self.breast()
        lost = rows if self.rng.random() < 0.3 else [self.choose(rows)]
        for row in lost:
            file = self.of(row)
            whole = file.read_bytes()
            file.unlink()
            damage(file, whole)
            self.expect_image(kind, row)
        if len(lost) == len(rows):
            self.expect("nothing readable", rows[0]["prediction_id"])

    def _write(self) -> None:
        """Columns in another order, some more, and one less that no network takes."""
        frame = pd.DataFrame(self.rows).assign(remark="x", label=range(len(self.rows)), fold="")
        if self.rng.random() < 0.5:
            frame = frame.drop(columns="implant")
        columns = [str(column) for column in self.rng.permutation(frame.columns)]
        text = frame[columns].to_csv(index=False, lineterminator="\r\n")
        text += "".join(f"{line}\r\n" for line in self.lines)
        (self.planted.data / "test.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        self.sample.to_csv(self.planted.data / "sample_submission.csv", index=False)


def _flat(planter: Planter) -> None:
    """Of whatever format; large ones compress to next to nothing."""
    size = ((90, 70), (1600, 1200))[int(planter.rng.integers(2))]
    pixels = np.full(size, int(planter.rng.integers(4000)), np.uint16)
    syntax = ["raw", *SYNTAXES][int(planter.rng.integers(1 + len(SYNTAXES)))]
    planter.lose("flat", lambda file, _: write_dicom(file, pixels, bits=12, syntax=syntax))


def _folder_gone(planter: Planter) -> None:
    """Or there, and empty."""
    rows = planter.patient()
    for row in rows:
        planter.of(row).unlink()
        planter.expect_image("absent", row)
    if planter.rng.random() < 0.5:
        planter.of(rows[0]).parent.rmdir()
    for breast in {row["prediction_id"] for row in rows}:
        planter.expect("nothing readable", breast)


def _repeated_row(planter: Planter) -> None:
    row = planter.choose(planter.patient())
    again = dict(row)
    if planter.rng.random() < 0.5:
        again |= {"age": "12", "view": "AT"}
    planter.rows.append(again)
    planter.expect_image("repeated row", row)
    planter.planted.touched.discard(row["prediction_id"])  # the first row counts


def _two_breasts(planter: Planter) -> None:
    """An image is also named as one of another breast, below."""
    rows = planter.patient()
    row = planter.choose(rows)
    others = [r for r in rows if r["prediction_id"] != row["prediction_id"]]
    other = planter.choose(others if planter.rng.random() < 0.5 else planter.patient())
    planter.rows.append({**other, "image_id": row["image_id"]})
    planter.expect("two breasts", other["prediction_id"], row["image_id"])
    planter.planted.touched.discard(other["prediction_id"])  # the first row counts


def _cell(kind: str, column: str, *values: str | None) -> Callable[[Planter], None]:
    def plant(planter: Planter) -> None:
        row = planter.choose(planter.patient())
        case = (kind, row["prediction_id"], row["image_id"])
        row[column] = values[int(planter.rng.integers(len(values)))]
        planter.expect(*case)
        if column in ("laterality", "patient_id", "prediction_id"):  # others tell it
            planter.planted.touched.discard(case[1])

    return plant


def _no_image_id(planter: Planter) -> None:
    rows = planter.breast()
    row = planter.choose(rows)
    row["image_id"] = None if planter.rng.random() < 0.5 else "../../etc/passwd"
    planter.expect("unfit name", row["prediction_id"], row["image_id"] or "")
    if len(rows) == 1:
        planter.expect("nothing readable", row["prediction_id"])


def _unknown_breast(planter: Planter) -> None:
    """Nothing but the patient is known of a further image."""
    rows = planter.patient()
    image_id = planter.new_id()
    planter.rows.append({**rows[0], "image_id": image_id, "laterality": "B", "prediction_id": None})
    planter.planted.cases["unknown breast", "", image_id] += 1


def _missing_age(planter: Planter) -> None:
    """Of all images of a patient, or of one."""
    rows = planter.patient()
    for row in rows if planter.rng.random() < 0.5 else [planter.choose(rows)]:
        row["age"] = [None, "0", "250", "-5", "unknown"][int(planter.rng.integers(5))]
        planter.expect_image("missing age", row)


def _new_machine(planter: Planter) -> None:
    for row in planter.patient():
        row["machine_id"] = "987" if planter.rng.random() < 0.5 else "Mammomat X"
        planter.expect_image("new machine", row)


def _view_gone(planter: Planter) -> None:
    """Only one of the two standard views is there, and only that."""
    rows = planter.breast()
    view = ("CC", "MLO")[int(planter.rng.integers(2))]
    planter.rows = [r for r in planter.rows if not (r in rows and r["view"] != view)]
    planter.expect("missing view", rows[0]["prediction_id"])


def _one_image(planter: Planter) -> None:
    """All that a patient has."""
    rows = planter.patient()
    row = planter.choose([r for r in rows if r["view"] in ("CC", "MLO")])
    planter.rows = [r for r in planter.rows if r is row or r["patient_id"] != row["patient_id"]]
    planter.expect("missing view", row["prediction_id"])
    for breast in {r["prediction_id"] for r in rows} - {row["prediction_id"]}:
        planter.expect("unlisted", breast)


def _fourteen_images(planter: Planter) -> None:
    """Of one patient: copies, of one breast or in turns of both."""
    rows = planter.patient()
    one = planter.rng.random() < 0.5
    sources = [row for row in rows if row["prediction_id"] == rows[0]["prediction_id"] or not one]
    for number in range(14 - len(rows)):
        source = sources[number % len(sources)]
        copy = {**source, "image_id": planter.new_id()}
        planter.of(copy).write_bytes(planter.of(source).read_bytes())
        planter.rows.append(copy)
    breasts = Counter(
        r["prediction_id"] for r in planter.rows if r["patient_id"] == rows[0]["patient_id"]
    )
    assert sum(breasts.values()) == 14
    planter.planted.touched |= breasts.keys()
    for breast, count in breasts.items():
        if count > MANY:
            planter.expect("many images", breast)


def _unrequested(planter: Planter) -> None:
    for row in planter.patient():
        planter.expect_image("not asked for", row)
        planter.sample = planter.sample[planter.sample["prediction_id"] != row["prediction_id"]]


def _unlisted(planter: Planter) -> None:
    """A patient without rows; another one of whom the table knows nothing at all."""
    rows = planter.patient()
    planter.rows = [row for row in planter.rows if row not in rows]
    new = pd.DataFrame({"prediction_id": [f"{planter.new_id()}_R"], "cancer": ["0"]})
    planter.sample = pd.concat([planter.sample, new])
    for breast in {*(row["prediction_id"] for row in rows), *new["prediction_id"]}:
        planter.expect("unlisted", breast)


def _damaged_row(planter: Planter) -> None:
    planter.lines.append(",".join(["17", "", "CC"] * 9))
    planter.planted.cases["damaged row", "", ""] += 1


def _unknown_views(planter: Planter) -> None:
    """Of all images of a breast."""
    for row in planter.breast():
        row["view"] = ["XCCL", None, "7"][int(planter.rng.integers(3))]
        planter.expect_image("unknown view", row)


def _other_laterality(planter: Planter) -> None:
    row = planter.choose(planter.patient())
    row["laterality"] = {"L": "R", "R": "L"}[row["laterality"]]
    planter.expect_image("contradiction", row)
    planter.planted.touched.discard(row["prediction_id"])  # its id tells


FAULTS: dict[str, Callable[[Planter], None]] = {
    "absent": lambda p: p.lose("absent", lambda file, whole: None),
    "dangling link": lambda p: p.lose("unreadable", lambda file, _: file.symlink_to("nowhere")),
    "a folder": lambda p: p.lose("unreadable", lambda file, _: file.mkdir()),
    "empty": lambda p: p.lose("empty", lambda file, _: file.write_bytes(b"")),
    "text": lambda p: p.lose("unreadable", lambda file, _: file.write_bytes(b"no DICOM" * 99)),
    "truncated": lambda p: p.lose(
        "unreadable", lambda file, whole: file.write_bytes(whole[: len(whole) // 2])
    ),
    "random bytes": lambda p: p.lose(
        "unreadable", lambda file, whole: file.write_bytes(whole[:132] + p.rng.bytes(5000))
    ),
    "flat": _flat,
    "no folder": _folder_gone,
    "repeated row": _repeated_row,
    "two breasts": _two_breasts,
    "unknown view": _cell("unknown view", "view", "XCCL", "cranial", "1"),
    "no view": _cell("unknown view", "view", None),
    "no known view": _unknown_views,
    "missing view": _view_gone,
    "laterality": _cell("unknown laterality", "laterality", None, "B", "left-ish"),
    "other laterality": _other_laterality,
    "prediction_id": _cell("missing prediction_id", "prediction_id", None),
    "other prediction_id": _cell("contradiction", "prediction_id", "unknown_L", "17"),
    "patient_id": _cell("missing patient_id", "patient_id", None),
    "other patient_id": _cell("contradiction", "patient_id", "../..", "1"),
    "image_id": _no_image_id,
    "unknown breast": _unknown_breast,
    "age": _missing_age,
    "machine": _cell("missing machine", "machine_id", None),
    "new machine": _new_machine,
    "one image": _one_image,
    "fourteen images": _fourteen_images,
    "not asked for": _unrequested,
    "unlisted": _unlisted,
    "damaged row": _damaged_row,
}
