"""Breasts of a report: what is recorded of them, the scores of subgroups, and their differences.

A subgroup that is too small is shown with its counts and without a score.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.intervals import (
    Interval,
    Score,
    bootstrap_distributions,
    bootstrap_interval,
    delong,
    nan_if_degenerate,
    percentile_interval,
    wilson_if_degenerate,
)
from rsna_bcd.scoring.metrics import auroc, sensitivity, specificity
from rsna_bcd.tables.images import TRAIN_COLUMNS

MIN_BREASTS = 10  # of a class; below that a proportion or an AUROC says next to nothing
NOT_RECORDED, _OTHERS = "not recorded", "others"
# Column of `breast_facts`: its name on the page, in the order of showing.
FACTORS: dict[str, str] = {
    "site": "Site",
    "machine": "Machine",
    "density": "Breast density",
    "age": "Age",
    "implant": "Implant",
    "views": "Views",
}
SITE, CANCER, _NO_CANCER = FACTORS["site"], "Cancer", "Without cancer"
_AGES = {0: "under 50", 50: "50 to 59", 60: "60 to 69", 70: "70 and over"}  # from
_MAX_LEVELS = 12  # of a factor; the rarest are counted together


@dataclass(frozen=True)
class ScoredBreasts:
    """Arrays of shape (N,), one value per breast.

    Attributes:
        labels: 0 or 1.
        probabilities: out of fold; thresholds apply to them.
        decisions: 0 or 1, by thresholds that were fitted on other patients.
        patients: ids.
        folds: that held the breast out.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    decisions: NDArray[np.int64]
    patients: NDArray[np.str_]
    folds: NDArray[np.int64]

    @classmethod
    def from_table(cls, oof: pd.DataFrame, decisions: ArrayLike) -> Self:
        """From a table with `OOF_COLUMNS`, and a decision for each of its rows."""
        return cls(
            labels=oof["label"].to_numpy(np.int64),
            probabilities=oof["probability"].to_numpy(np.float64),
            decisions=np.asarray(decisions, dtype=np.int64),
            patients=oof["patient_id"].to_numpy(dtype=str),
            folds=oof["fold"].to_numpy(np.int64),
        )

    def select(self, rows: NDArray[np.bool_]) -> "ScoredBreasts":
        """The breasts of some rows."""
        return ScoredBreasts(*(values[rows] for values in vars(self).values()))


@dataclass(frozen=True)
class Level:
    """A value of a factor, with its counts."""

    name: str
    breasts: int
    cancers: int


@dataclass(frozen=True)
class Factor:
    """A property of breasts: `Site`; `not recorded` is the last level."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Cohort:
    """The breasts of a report.

    Attributes:
        patients: number of them.
        breasts: number of them.
        cancers: breasts with cancer.
        bilateral: patients with cancer in both breasts.
        images: in the table of images.
        by_view: images by view, the most frequent first.
        factors: those that are recorded.
        missing: by column, the share of images without a value; complete columns are left out.
        absent: columns that the table lacks.
        ages_with: (C,), of breasts with cancer, where known.
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


@dataclass(frozen=True)
class Part:
    """The breasts of a subgroup.

    Attributes:
        factor: that divides: `Site`.
        name: of the level: `1`.
        inside: (N,), of all breasts.
        label: 1 if the factor is recorded of cancers alone, 0 if of the others alone; else None.
    """

    factor: str
    name: str
    inside: NDArray[np.bool_]
    label: int | None = None

    @property
    def title(self) -> str:
        """Its name within a sentence."""
        if self.label is not None:
            return f"{self.name} {'cancers' if self.label else 'breasts'}"
        return f"{self.factor.lower()} {self.name}".strip()


@dataclass(frozen=True)
class Subgroup:
    """A part of the breasts, with its scores; None where it has too few breasts.

    Attributes:
        title: within a sentence.
        factor: `Site`.
        name: `1`; empty for all breasts.
        breasts: in it.
        cancers: of these.
        auroc: of its cancers against its other breasts, by DeLong's formula.
        sensitivity: of the decisions.
        specificity: of the decisions.
        remark: the breasts that an AUROC was computed against, where they are not in the subgroup.
    """

    title: str
    factor: str
    name: str
    breasts: int
    cancers: int
    auroc: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None
    remark: str = ""

    @property
    def scored(self) -> bool:
        """Whether it has any score."""
        return any((self.auroc, self.sensitivity, self.specificity))


@dataclass(frozen=True)
class SubgroupDifference:
    """A score of a subgroup beside that of the rest of its factor.

    Attributes:
        title: of the subgroup, within a sentence.
        rest: of the others.
        score: `sensitivity`, `specificity` or `AUROC`.
        inside: the score of the subgroup.
        outside: the score of the rest.
        difference: `inside - outside`, over resampled patients.
        always: whether it is reported even if it is within chance.
    """

    title: str
    rest: str
    score: str
    inside: float
    outside: float
    difference: Interval
    always: bool

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


def breast_facts(images: pd.DataFrame, breasts: Sequence[str]) -> pd.DataFrame:
    """Properties of breasts.

    Args:
        images: table from `read_images`; optional columns may be absent.
        breasts: `prediction_id`, in the order of the result.

    Returns:
        One row per breast, indexed by `prediction_id`: `site, machine, density, age, implant,
        views` as text, `not recorded` where there is no value; `years`, `invasive` and `difficult`
        as numbers or NaN. Where the images of a breast differ, the first value counts.
    """
    first = images.groupby("prediction_id", sort=False).first().reindex(list(breasts))

    def column(name: str) -> pd.Series:
        return first[name] if name in first else pd.Series(np.nan, index=first.index)

    def text(name: str) -> pd.Series:  # 2.0 is 2: pandas' integers beside missing values
        words = column(name).astype("object").map(lambda v: str(v).removesuffix(".0"), "ignore")
        return words.where(column(name).notna(), NOT_RECORDED)

    def flag(name: str) -> pd.Series:  # 0, 1, or NaN; a table may have True and False
        words = column(name).astype("string").str.lower().replace({"true": "1", "false": "0"})
        number = pd.to_numeric(words, errors="coerce").astype("float64")
        return number.where(number.isin([0, 1]))

    years = pd.to_numeric(column("age"), errors="coerce")
    years = years.where(years.between(1, 120))
    ages = pd.cut(years, [*_AGES, np.inf], right=False, labels=list(_AGES.values()))
    implant = flag("implant").map({1.0: "with", 0.0: "without"})
    return pd.DataFrame(
        {
            "site": text("site_id"),
            "machine": text("machine_id"),
            "density": text("density"),
            "age": ages.astype("object").fillna(NOT_RECORDED),
            "implant": implant.fillna(NOT_RECORDED),
            "views": _view_sets(images).reindex(first.index).fillna(NOT_RECORDED),
            "years": years,
            "invasive": flag("invasive"),
            "difficult": flag("difficult_negative_case"),
        }
    )


def _view_sets(images: pd.DataFrame) -> pd.Series:
    """The views of each breast as text, by `prediction_id`; without breasts of unknown views."""
    known = images[images["view"].notna()]
    table = pd.crosstab(known["prediction_id"], known["view"])
    standard = table.reindex(columns=["CC", "MLO"], fill_value=0)
    cc, mlo = standard["CC"] > 0, standard["MLO"] > 0
    rare = table.drop(columns=["CC", "MLO"], errors="ignore").any(axis=1)
    words = np.select(
        [rare, cc & mlo & (standard.sum(axis=1) > 2), cc & mlo, cc, mlo],
        ["with rare views", "CC and MLO, repeated", "CC and MLO", "CC only", "MLO only"],
        NOT_RECORDED,
    )
    return pd.Series(words, index=table.index)


def describe_cohort(images: pd.DataFrame, oof: pd.DataFrame, facts: pd.DataFrame) -> Cohort:
    """Count the breasts of a report.

    Args:
        images: table from `read_images`.
        oof: one row per breast, `OOF_COLUMNS`.
        facts: from `breast_facts`, in the order of `oof`.
    """
    own = images[images["prediction_id"].isin(oof["prediction_id"])]
    labels = oof["label"].to_numpy()
    cancers = oof[oof["label"] == 1]
    years = facts["years"].to_numpy(dtype=np.float64)
    known = np.isfinite(years)
    shares = own[[c for c in TRAIN_COLUMNS if c in own]].isna().mean()
    factors: dict[str, list[Level]] = {}
    for part in split(facts, labels):
        if part.label is None:
            counts = int(part.inside.sum()), int(labels[part.inside].sum())
            factors.setdefault(part.factor, []).append(Level(part.name, *counts))
    return Cohort(
        patients=int(oof["patient_id"].nunique()),
        breasts=len(oof),
        cancers=len(cancers),
        bilateral=int((cancers["patient_id"].value_counts() > 1).sum()),
        images=len(own),
        by_view={str(view): int(n) for view, n in own["view"].value_counts().items()},
        factors=tuple(Factor(name, tuple(levels)) for name, levels in factors.items()),
        missing={str(c): float(s) for c, s in shares.items() if s > 0},
        absent=tuple(column for column in TRAIN_COLUMNS if column not in own),
        ages_with=years[known & (labels == 1)],
        ages_without=years[known & (labels == 0)],
    )


def sample_images(images: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose images to show: machines alternate, cancers first, by a hash of the id.

    Args:
        images: table from `read_images`, with `path` where there is a crop.
        n: at most.

    Returns:
        Rows of `images`.
    """
    rows = images[images["path"].notna()].copy()
    rows["hash"] = [hashlib.sha256(str(i).encode()).hexdigest() for i in rows["image_id"]]
    rows["machine"] = rows["machine_id"].astype("string") if "machine_id" in rows else "all"
    rows = rows.sort_values("hash")
    rows["turn"] = rows.groupby(["machine", "cancer"], dropna=False).cumcount()
    rows["size"] = -rows.groupby("machine", dropna=False)["hash"].transform("size")
    rows["healthy"] = 1 - rows["cancer"]
    return rows.sort_values(["turn", "size", "machine", "healthy"]).head(n)[images.columns]


def split(facts: pd.DataFrame, labels: NDArray[np.int64]) -> list[Part]:
    """Split (N,) breasts by each property that is recorded; the rarest levels are merged."""
    parts = []
    for column, factor in FACTORS.items():
        values = merge_rare_levels(facts[column]).to_numpy()
        levels = sorted(set(values), key=level_order)
        if levels != [NOT_RECORDED]:
            parts += [Part(factor, level, values == level) for level in levels]
    for column, factor, names, label in (
        ("invasive", CANCER, ("not invasive", "invasive"), 1),
        ("difficult", _NO_CANCER, ("not difficult", "difficult negative"), 0),
    ):
        value = facts[column].to_numpy(np.float64)
        if not ((labels == label) & (value == 1)).any():
            continue
        for number in (1, 0):
            inside = (labels == label) & (value == number)
            if inside.any():
                parts.append(Part(factor, names[number], inside, label))
    return parts


def merge_rare_levels(column: pd.Series) -> pd.Series:
    """The factor with its rarest values as `others`, so that its table stays short."""
    counts = column[column != NOT_RECORDED].value_counts()
    if len(counts) <= _MAX_LEVELS:
        return column
    return column.where(column.isin([*counts.index[: _MAX_LEVELS - 1], NOT_RECORDED]), _OTHERS)


def level_order(level: str) -> tuple[int, float, str]:
    """Sort key: numbers, then words; `others` and `not recorded` last."""
    last = {_OTHERS: 2, NOT_RECORDED: 3}.get(level, 0)
    ages = list(_AGES.values())
    if level in ages:
        return last, ages.index(level), level
    return last, float(level) if level.replace(".", "", 1).isdecimal() else np.inf, level


def score_subgroups(
    breasts: ScoredBreasts, facts: pd.DataFrame, resamples: int = 500, seed: int = 0
) -> list[Subgroup]:
    """Score all breasts, then each part of them.

    Properties of cancers alone (invasive) divide the cancers, and each part is compared with all
    breasts without cancer; properties of the others (difficult negatives) the other way round.

    Args:
        breasts: (N,).
        facts: from `breast_facts`, in their order.
        resamples: of the patients, for sensitivity and specificity.
        seed: of the resamples.
    """

    def rate(rows: NDArray[np.bool_], label: int) -> Interval | None:
        own = breasts.select(rows & (breasts.labels == label))
        if len(own.labels) < MIN_BREASTS:
            return None
        metric = sensitivity if label else specificity
        interval = bootstrap_interval(
            metric, own.labels, own.decisions, own.patients, resamples, seed
        )
        return nan_if_degenerate(wilson_if_degenerate(interval, len(np.unique(own.patients))))

    def score(part: Part) -> Subgroup:
        rows = part.inside if part.label is None else part.inside | (breasts.labels != part.label)
        counts = np.bincount(breasts.labels[rows], minlength=2)
        without = "out" if part.label else ""
        return Subgroup(
            part.title,
            part.factor,
            part.name,
            breasts=int(part.inside.sum()),
            cancers=int(breasts.labels[part.inside].sum()),
            auroc=auroc_interval(breasts.select(rows)) if counts.min() >= MIN_BREASTS else None,
            sensitivity=rate(part.inside, 1),
            specificity=rate(part.inside, 0),
            remark="" if part.label is None else f"AUROC against all breasts with{without} cancer",
        )

    everything = Part("All breasts", "", np.ones(len(breasts.labels), dtype=bool))
    return [score(part) for part in [everything, *split(facts, breasts.labels)]]


def auroc_interval(
    breasts: ScoredBreasts, probabilities: ArrayLike | None = None
) -> Interval | None:
    """AUROC with DeLong's interval by patient; None where it is undefined.

    The ends are NaN where the formula has no variance: all breasts are in order, or a class has
    fewer than two patients.
    """
    p = breasts.probabilities if probabilities is None else np.asarray(probabilities)
    try:
        return nan_if_degenerate(delong(breasts.labels, p, breasts.patients))
    except InputError:
        value = auroc(breasts.labels, p)
        return Interval(value, float("nan"), float("nan")) if np.isfinite(value) else None


def subgroup_differences(
    breasts: ScoredBreasts, facts: pd.DataFrame, resamples: int = 500, seed: int = 0
) -> list[SubgroupDifference]:
    """Compare each subgroup with the rest of its factor, over the same resampled patients.

    Of two subgroups that make up a factor, the first is compared with the second. Both sides need
    `MIN_BREASTS` of the class that the score is about, for the AUROC of both classes.

    Args:
        breasts: (N,).
        facts: from `breast_facts`, in their order.
        resamples: of the patients.
        seed: of the resamples.
    """
    cancer = breasts.labels == 1
    parts = split(facts, breasts.labels)
    pairs: list[tuple[Part, str, str]] = []  # the subgroup, the rest's title, the score
    scores: dict[str, Score] = {}
    for factor in dict.fromkeys(part.factor for part in parts):
        own = [part for part in parts if part.factor == factor]
        whole = np.any([part.inside for part in own], axis=0)
        title = own[1].title if len(own) == 2 else "the others"
        for part in own[:1] if len(own) == 2 else own:
            # A property of one class alone is ranked against all breasts of the other class.
            other = np.zeros_like(cancer) if part.label is None else breasts.labels != part.label
            inside, outside = part.inside, whole & ~part.inside
            for name, sides, classes, values, metric in (
                ("sensitivity", (inside & cancer, outside & cancer), [1], breasts.decisions,
                 sensitivity),
                ("specificity", (inside & ~cancer, outside & ~cancer), [0], breasts.decisions,
                 specificity),
                ("AUROC", (inside | other, outside | other), [0, 1], breasts.probabilities, auroc),
            ):  # fmt: skip
                n = min((side & (breasts.labels == k)).sum() for side in sides for k in classes)
                if n >= MIN_BREASTS:
                    for side, rows in zip(("inside", "outside"), sides, strict=True):
                        scores[f"{side} {len(pairs)}"] = Score(metric, values, rows)
                    pairs.append((part, title, name))
    resampled = bootstrap_distributions(scores, breasts.labels, breasts.patients, resamples, seed)
    found = []
    for number, (part, rest, name) in enumerate(pairs):
        keys = f"inside {number}", f"outside {number}"
        first, second = (
            s.metric(breasts.labels[s.rows], np.asarray(s.probabilities)[s.rows])
            for s in (scores[key] for key in keys)
        )
        low, high = percentile_interval(resampled[keys[0]] - resampled[keys[1]])
        difference = nan_if_degenerate(Interval(first - second, low, high))
        always = part.factor in (CANCER, SITE)
        found.append(SubgroupDifference(part.title, rest, name, first, second, difference, always))
    return found
