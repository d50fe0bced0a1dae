"""Who is in a report: breasts with what is recorded of them, and how often each thing occurs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.tables.images import TRAIN_COLUMNS

NOT_RECORDED = "not recorded"
_STANDARD = frozenset(("CC", "MLO"))
_AGES = ((0, 50, "under 50"), (50, 60, "50 to 59"), (60, 70, "60 to 69"), (70, 200, "70 and over"))
_MOST = 12  # levels of a factor; the rest are counted together
_OTHERS = "others"

# Column of `facts_of`, and what the page calls it, in the order of showing.
FACTORS: dict[str, str] = {
    "site": "Site",
    "machine": "Machine",
    "density": "Breast density",
    "age": "Age",
    "implant": "Implant",
    "views": "Views",
}


@dataclass(frozen=True)
class Level:
    """One value of a factor.

    Attributes:
        name: as the page shows it.
        breasts: that have it.
        cancers: of these.
    """

    name: str
    breasts: int
    cancers: int


@dataclass(frozen=True)
class Factor:
    """Something that is recorded of breasts.

    Attributes:
        name: as the page shows it.
        levels: its values, `not recorded` last.
    """

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Cohort:
    """The breasts of a report.

    Attributes:
        patients: number of them.
        breasts: likewise.
        cancers: breasts with cancer.
        bilateral: patients with cancer in both breasts.
        images: in the table of images.
        by_view: images by view, the most frequent first.
        factors: what is recorded.
        missing: by column of the table, the share of images without a value; complete columns are
            left out.
        absent: columns that the table lacks.
        ages_with: (C,), of breasts with cancer, where it is known.
        ages_without: (H,), of the others.
    """

    patients: int
    breasts: int
    cancers: int
    bilateral: int
    images: int
    by_view: dict[str, int]
    factors: tuple[Factor, ...]
    missing: dict[str, float]
    absent: tuple[str, ...]
    ages_with: NDArray[np.float64]
    ages_without: NDArray[np.float64]

    @property
    def prevalence(self) -> float:
        """Share of breasts with cancer."""
        return self.cancers / self.breasts


def facts_of(images: pd.DataFrame, breasts: Sequence[str]) -> pd.DataFrame:
    """What is recorded of each breast.

    Args:
        images: table from `read_images`; columns of one's own may be absent.
        breasts: `prediction_id` of those wanted, in this order.

    Returns:
        One row a breast, indexed by `prediction_id`: `site, machine, density, age, implant, views`
        as words, `not recorded` where there is no value; `years`, `invasive` and `difficult` as
        numbers, NaN where there is none. A breast whose images differ has the value of the first.
    """
    of_breast = images.groupby("prediction_id", sort=False)
    first = of_breast.first().reindex(list(breasts))  # the first that is not missing

    def recorded(column: str) -> pd.Series:
        if column not in first:
            return pd.Series(np.nan, index=first.index, dtype="float64")
        return first[column]

    years = pd.to_numeric(recorded("age"), errors="coerce")
    years = years.where(years.between(1, 120))
    facts = pd.DataFrame(index=first.index)
    facts["site"] = _words(recorded("site_id"))
    facts["machine"] = _words(recorded("machine_id"))
    facts["density"] = _words(recorded("density"))
    facts["age"] = _bands(years)
    implant = _flag(recorded("implant"))
    facts["implant"] = implant.map({1.0: "with", 0.0: "without"}).fillna(NOT_RECORDED)
    facts["views"] = _view_sets(images).reindex(first.index).fillna(NOT_RECORDED)
    facts["years"] = years
    facts["invasive"] = _flag(recorded("invasive"))
    facts["difficult"] = _flag(recorded("difficult_negative_case"))
    return facts


def describe(images: pd.DataFrame, oof: pd.DataFrame, facts: pd.DataFrame) -> Cohort:
    """Count the breasts of a report.

    Args:
        images: table from `read_images`.
        oof: one row a breast, `OOF_COLUMNS`.
        facts: from `facts_of`, in the order of `oof`.
    """
    own = images[images["prediction_id"].isin(oof["prediction_id"])]
    labels = oof["label"].to_numpy()
    cancers = oof[oof["label"] == 1]
    years = facts["years"].to_numpy(dtype=np.float64)
    known = np.isfinite(years)
    shares = own[[c for c in TRAIN_COLUMNS if c in own]].isna().mean()
    return Cohort(
        patients=int(oof["patient_id"].nunique()),
        breasts=len(oof),
        cancers=len(cancers),
        bilateral=int((cancers["patient_id"].value_counts() > 1).sum()),
        images=len(own),
        by_view={str(view): int(n) for view, n in own["view"].value_counts().items()},
        factors=tuple(
            Factor(name, _levels(facts[column], labels))
            for column, name in FACTORS.items()
            if (facts[column] != NOT_RECORDED).any()
        ),
        missing={str(c): float(s) for c, s in shares.items() if s > 0},
        absent=tuple(column for column in TRAIN_COLUMNS if column not in own),
        ages_with=years[known & (labels == 1)],
        ages_without=years[known & (labels == 0)],
    )


def sample_images(images: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose images to show: the machines take turns, with cancer first, by a hash of the id.

    Args:
        images: table from `read_images`, with `path` where there is a crop.
        n: at most.

    Returns:
        Rows of `images`.
    """
    rows = images[images["path"].notna()].copy()
    rows["hash"] = [hashlib.sha256(str(i).encode()).hexdigest() for i in rows["image_id"]]
    machine = rows["machine_id"].astype("string") if "machine_id" in rows else "all"
    rows = rows.assign(machine=machine).sort_values("hash")
    rows["turn"] = rows.groupby(["machine", "cancer"], dropna=False).cumcount()
    rows["size"] = -rows.groupby("machine", dropna=False)["hash"].transform("size")
    rows["healthy"] = 1 - rows["cancer"]
    return rows.sort_values(["turn", "size", "machine", "healthy"]).head(n)[images.columns]


def merged_levels(column: pd.Series) -> pd.Series:
    """A factor with its rarest values as one, so that a table of it stays short."""
    counts = column[column != NOT_RECORDED].value_counts()
    if len(counts) <= _MOST:
        return column
    kept = [*counts.index[: _MOST - 1], NOT_RECORDED]
    return column.where(column.isin(kept), _OTHERS)


def order_of(level: str) -> tuple[int, float, str]:
    """Sorts numbers as numbers, then words; `others` and `not recorded` last."""
    last = {_OTHERS: 2, NOT_RECORDED: 3}.get(level, 0)
    number = float(level) if level.replace(".", "", 1).isdecimal() else np.inf
    bands = [name for *_, name in _AGES]
    return last, bands.index(level) if level in bands else number, level


def _levels(column: pd.Series, labels: NDArray[np.int64]) -> tuple[Level, ...]:
    values = merged_levels(column).to_numpy()
    return tuple(
        Level(name, int((values == name).sum()), int(labels[values == name].sum()))
        for name in sorted(set(values), key=order_of)
    )


def _words(column: pd.Series) -> pd.Series:
    """Identifiers as text: pandas makes floats of integers where one is missing."""
    words = column.astype("object").map(lambda value: str(value).removesuffix(".0"), "ignore")
    return words.where(column.notna(), NOT_RECORDED)


def _flag(column: pd.Series) -> pd.Series:
    """0 or 1, NaN where it is neither: a table may have True and False."""
    words = column.astype("string").str.lower().map({"true": "1", "false": "0"}, "ignore")
    words = words.fillna(column.astype("string"))
    number = pd.to_numeric(words, errors="coerce").astype("float64")
    return number.where(number.isin([0, 1]))


def _bands(years: pd.Series) -> pd.Series:
    """Ages as words."""
    edges = [low for low, *_ in _AGES] + [_AGES[-1][1]]
    bands = pd.cut(years, edges, right=False, labels=[name for *_, name in _AGES])
    return bands.astype("object").fillna(NOT_RECORDED)


def _view_sets(images: pd.DataFrame) -> pd.Series:
    """Which views a breast has, in words, by `prediction_id`; breasts of unknown views lack."""
    known = images[images["view"].notna()]
    table = pd.crosstab(known["prediction_id"], known["view"])
    standard = table.reindex(columns=sorted(_STANDARD), fill_value=0)
    cc, mlo = (standard[view] > 0 for view in ("CC", "MLO"))
    rare = table.drop(columns=list(_STANDARD), errors="ignore").any(axis=1)
    repeated = standard.sum(axis=1) > len(_STANDARD)
    words = np.select(
        [rare, cc & mlo & repeated, cc & mlo, cc, mlo],
        ["with rare views", "CC and MLO, repeated", "CC and MLO", "CC only", "MLO only"],
        NOT_RECORDED,
    )
    return pd.Series(words, index=table.index)
