"""Subgroups of breasts: their properties, scores and differences.

A subgroup that is too small has counts and no score.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

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
from rsna_bcd.scoring.metrics import Metric, auroc, sensitivity, specificity
from rsna_bcd.tables.images import TRAIN_COLUMNS

MIN_BREASTS = 10  # of a class; fewer give no useful proportion or AUROC
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
    """Arrays of shape (N,), one value per breast."""

    labels: NDArray[np.int64]  # 0 or 1
    probabilities: NDArray[np.float64]  # out of fold; thresholds apply to them
    decisions: NDArray[np.int64]  # 0 or 1
    patients: NDArray[np.str_]  # ids
    folds: NDArray[np.int64]  # that held the breast out

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


class FactorLevel(NamedTuple):
    """A value of a factor, with its counts."""

    name: str
    breasts: int
    cancers: int


class Factor(NamedTuple):
    """A property of breasts: `Site`; `not recorded` is the last level."""

    name: str
    levels: tuple[FactorLevel, ...]


@dataclass(frozen=True)
class Cohort:
    """The breasts of a report."""

    patients: int
    breasts: int
    cancers: int  # breasts
    bilateral: int  # patients with cancer in both breasts
    images: int
    by_view: dict[str, int]  # images, the most frequent view first
    factors: tuple[Factor, ...]  # that are recorded
    missing: dict[str, float]  # share of images without a value, of incomplete columns
    absent: tuple[str, ...]  # columns
    ages_with: NDArray[np.float64]  # of breasts with cancer, where known
    ages_without: NDArray[np.float64]

    @property
    def prevalence(self) -> float:
        """Proportion of breasts with cancer."""
        return self.cancers / self.breasts


@dataclass(frozen=True)
class Part:
    """The breasts of a subgroup."""

    factor: str  # `Site`
    name: str  # of the level: `1`
    inside: NDArray[np.bool_]  # (N,), of all breasts
    label: int | None = None  # 1 if the factor is recorded of cancers only, 0 if of the others only

    @property
    def title(self) -> str:
        """Its name within a sentence."""
        if self.label is not None:
            return f"{self.name} {'cancers' if self.label else 'breasts'}"
        return f"{self.factor.lower()} {self.name}".strip()


@dataclass(frozen=True)
class Subgroup:
    """A part of the breasts with its scores; None where it has too few breasts."""

    title: str  # within a sentence
    factor: str  # `Site`
    name: str  # `1`; empty for all breasts
    breasts: int
    cancers: int
    auroc: Interval | None  # of its cancers against its other breasts, by DeLong's formula
    sensitivity: Interval | None
    specificity: Interval | None
    remark: str = ""  # breasts outside of the subgroup that the AUROC was computed against

    @property
    def scored(self) -> bool:
        """Whether it has any score."""
        return any((self.auroc, self.sensitivity, self.specificity))


@dataclass(frozen=True)
class SubgroupDifference:
    """A score of a subgroup beside that of the rest of its factor."""

    title: str  # of the subgroup, within a sentence
    rest: str  # title of the rest
    score: str  # `sensitivity`, `specificity` or `AUROC`
    inside: float  # score of the subgroup
    outside: float  # score of the rest
    difference: Interval  # `inside - outside`, over resampled patients
    always: bool  # reported even if it is within chance

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
        values = column(name).astype("object").map(lambda v: str(v).removesuffix(".0"), "ignore")
        return values.where(column(name).notna(), NOT_RECORDED)

    def flag(name: str) -> pd.Series:  # 0, 1, or NaN; a table may have True and False
        values = column(name).astype("string").str.lower().replace({"true": "1", "false": "0"})
        number = pd.to_numeric(values, errors="coerce").astype("float64")
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
    """The views of each breast as text, by `prediction_id`, for breasts with a known view."""
    known = images[images["view"].notna()]
    table = pd.crosstab(known["prediction_id"], known["view"])
    standard = table.reindex(columns=["CC", "MLO"], fill_value=0)
    cc, mlo = standard["CC"] > 0, standard["MLO"] > 0
    rare = table.drop(columns=["CC", "MLO"], errors="ignore").any(axis=1)
    sets = {
        "with rare views": rare,
        "CC and MLO, repeated": cc & mlo & (standard.sum(axis=1) > 2),
        "CC and MLO": cc & mlo,
        "CC only": cc,
        "MLO only": mlo,
    }
    return pd.Series(np.select(list(sets.values()), list(sets), NOT_RECORDED), index=table.index)


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
    factors: dict[str, list[FactorLevel]] = {}
    for part in split(facts, labels):
        if part.label is None:
            counts = int(part.inside.sum()), int(labels[part.inside].sum())
            factors.setdefault(part.factor, []).append(FactorLevel(part.name, *counts))
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
    """Choose at most `n` images that have a `path`: machines alternate, cancers first, by hash."""
    rows = images[images["path"].notna()].copy()
    rows["hash"] = [hashlib.sha256(str(i).encode()).hexdigest() for i in rows["image_id"]]
    rows["machine"] = rows["machine_id"].astype("string") if "machine_id" in rows else "all"
    rows = rows.sort_values("hash")
    rows["turn"] = rows.groupby(["machine", "cancer"], dropna=False).cumcount()
    rows["size"] = -rows.groupby("machine", dropna=False)["hash"].transform("size")
    rows["negative"] = 1 - rows["cancer"]
    return rows.sort_values(["turn", "size", "machine", "negative"]).head(n)[images.columns]


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
    """Merge the rarest values of a factor into `others`."""
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
    pairs: list[tuple[Part, str, str]] = []  # the subgroup, title of the rest, name of the score
    scores: dict[str, Score] = {}
    for part, rest, title in _compared_parts(split(facts, breasts.labels)):
        for name, metric, values, sides, classes in _paired_scores(breasts, part, rest):
            n = min((side & (breasts.labels == k)).sum() for side in sides for k in classes)
            if n >= MIN_BREASTS:
                for side, rows in zip(("inside", "outside"), sides, strict=True):
                    scores[f"{side} {len(pairs)}"] = Score(metric, values, rows)
                pairs.append((part, title, name))
    resampled = bootstrap_distributions(scores, breasts.labels, breasts.patients, resamples, seed)
    differences = []
    for number, (part, title, name) in enumerate(pairs):
        keys = f"inside {number}", f"outside {number}"
        first, second = (
            s.metric(breasts.labels[s.rows], np.asarray(s.probabilities)[s.rows])
            for s in (scores[key] for key in keys)
        )
        ends = percentile_interval(resampled[keys[0]] - resampled[keys[1]])
        interval = nan_if_degenerate(Interval(first - second, *ends))
        always = part.factor in (CANCER, SITE)
        differences.append(
            SubgroupDifference(part.title, title, name, first, second, interval, always)
        )
    return differences


def _compared_parts(parts: Sequence[Part]) -> Iterator[tuple[Part, NDArray[np.bool_], str]]:
    """Each subgroup, the rest of its factor and the title of that."""
    for factor in dict.fromkeys(part.factor for part in parts):
        own = [part for part in parts if part.factor == factor]
        whole = np.any([part.inside for part in own], axis=0)
        is_pair = len(own) == 2
        for part in own[:1] if is_pair else own:
            yield part, whole & ~part.inside, own[1].title if is_pair else "the others"


def _paired_scores(
    breasts: ScoredBreasts, part: Part, rest: NDArray[np.bool_]
) -> Iterator[tuple[str, Metric, NDArray[Any], Sequence[NDArray[np.bool_]], Sequence[int]]]:
    """Name, metric, values, rows of both sides, and classes that both need, of each score."""
    cancer, sides = breasts.labels == 1, (part.inside, rest)
    yield "sensitivity", sensitivity, breasts.decisions, [s & cancer for s in sides], [1]
    yield "specificity", specificity, breasts.decisions, [s & ~cancer for s in sides], [0]
    # A property of one class only: its AUROC is against all breasts of the other class.
    other = np.zeros_like(cancer) if part.label is None else breasts.labels != part.label
    yield "AUROC", auroc, breasts.probabilities, [s | other for s in sides], [0, 1]
