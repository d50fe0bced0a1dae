"""A report as one page of HTML that needs nothing else, and as a model card."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rsna_bcd.reporting import captions
from rsna_bcd.reporting.contents import Contents
from rsna_bcd.reporting.figures import learning_caption, learning_figure
from rsna_bcd.reporting.figures_groups import Row, axis_start, correlation_figure, forest
from rsna_bcd.reporting.figures_scores import (
    ages_figure,
    beyond_edge,
    distribution_figure,
    precision_figure,
    reliability_figure,
    roc_figure,
    screening_figure,
    threshold_figure,
)
from rsna_bcd.reporting.formatting import (
    THIN,
    decimal,
    decimal_range,
    decimals,
    listed,
    p_value,
    percent,
    share_range,
    shares,
    signed,
    with_minus,
)
from rsna_bcd.reporting.performance import PUBLISHED
from rsna_bcd.reporting.subgroups import LEAST, Subgroup
from rsna_bcd.scoring.intervals import Interval

TEMPLATES = Path(__file__).parent / "templates"

# Of the bar at the top, which has little room.
_SHORT: Mapping[str, str] = {
    "data": "Data", "ranking": "ROC", "operating": "Operating points", "scores": "Calibration",
    "baseline": "Baseline",
}  # fmt: skip
SECTIONS: Mapping[str, str] = {
    "summary": "Summary",
    "data": "The data",
    "ranking": "ROC and precision",
    "threshold": "Threshold",
    "operating": "Operating points",
    "scores": "Scores and calibration",
    "groups": "Groups",
    "folds": "Folds",
    "members": "Members",
    "baseline": "Comparison with a baseline",
    "preparation": "Preparation",
    "gallery": "Gallery",
}
_CASES: Mapping[str, str] = {
    "miss": "Worst misses: cancer, lowest scores",
    "false alarm": "Worst false alarms: no cancer, highest scores",
    "find": "Best finds: cancer, highest scores",
}
# Score: its name, whether it is a share for radiologists, what it means.
_SCORES: Mapping[str, tuple[str, bool, str]] = {
    "auroc": ("AUROC", False, "chance that a breast with cancer is scored above one without"),
    "average_precision": ("Average precision", False, "mean PPV over all sensitivities"),
    "sensitivity": ("Sensitivity", True, "breasts with cancer that are flagged"),
    "specificity": ("Specificity", True, "breasts without cancer that are not flagged"),
    "ppv": ("PPV", True, "flagged breasts that have cancer"),
    "recall_rate": ("Recall rate", True, "breasts that are flagged, of all"),
    "accuracy": ("Accuracy", True, "breasts decided rightly, of all"),
    "balanced_accuracy": ("Balanced accuracy", True, "mean of sensitivity and specificity"),
    "pf1": ("pF1", False, "the challenge’s metric: harmonic mean of PPV and sensitivity"),
}
_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029 ]+")
_MARKUP = re.compile(r"[\\`\[|]|<(?=[A-Za-z/!?])")
_TILES = ("auroc", "sensitivity", "specificity", "pf1")
_OPTIMISM = ("pf1", "sensitivity", "specificity", "ppv", "recall_rate")


@dataclass(frozen=True)
class ScoreRow:
    """A line of the first table, in words."""

    name: str
    value: str
    range: str
    meaning: str
    interval: Interval


def render_page(contents: Contents) -> str:
    """The page: text, style, script, figures and pictures in one HTML document."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    _furnish(environment)
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    words = _words(contents) | {"figures": draw(contents), "css": css}
    return _typeset(environment.get_template("report.html.j2").render(words)) + "\n"


def render_card(contents: Contents) -> str:
    """The model card, in Markdown."""
    environment = Environment(  # Markdown, not HTML
        loader=FileSystemLoader(TEMPLATES), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_in_a_cell,
    )  # fmt: skip
    _furnish(environment)
    card = environment.get_template("model_card.md.j2").render(_words(contents))
    return _typeset(card) + "\n"


def draw(contents: Contents) -> dict[str, str]:
    """The figures, by name; those that have nothing to show are left out."""
    c, ensemble = contents, contents.sources.ensemble
    sensitivity, false = c.scores["sensitivity"].value, 1 - c.scores["specificity"].value
    rows = [_row(group) for group in c.groups]
    panels = ("AUROC", "Sensitivity", "Specificity")
    shared = axis_start(one for row in rows for one in row.intervals[1:])  # shares compare
    starts = (axis_start(row.intervals[0] for row in rows), shared, shared)
    figures = {
        "roc": roc_figure(c.roc, (false, sensitivity)),
        "precision": precision_figure(
            c.precision, (sensitivity, c.scores["ppv"].value), c.cohort.prevalence
        ),
        "screening": screening_figure(c.screening, (false, sensitivity)),
        "threshold": threshold_figure(
            c.curve, ensemble.plateau, ensemble.threshold, ensemble.cross_fitted_thresholds,
            (c.in_sample["pf1"].value, c.scores["pf1"].value),
        ),
        "distribution": distribution_figure(c.blended, ensemble.threshold),
        "reliability": reliability_figure(c.reliability),
        "forest": forest(rows, panels, starts, "forest", "Scores of groups, with 95 % intervals"),
        "ages": "",
        "correlation": "",
    }  # fmt: skip
    for number, (panel, concerned) in enumerate(
        zip(panels, (c.groups, _of_class(c.groups, 1), _of_class(c.groups, 0)), strict=True)
    ):
        narrow = [replace(row, intervals=row.intervals[number : number + 1])
                  for row in map(_row, concerned)]  # fmt: skip
        key, label = f"forest_{panel.lower()}", f"{panel} of groups, with 95 % intervals"
        figures[key] = forest(
            narrow, (panel,), starts[number : number + 1], key.replace("_", "-"), label, narrow=True
        )
    if len(c.cohort.ages_with) + len(c.cohort.ages_without):
        figures["ages"] = ages_figure(c.cohort.ages_with, c.cohort.ages_without)
    if len(c.members) > 1:
        figures["correlation"] = correlation_figure([m.name for m in c.members], c.correlation)
    for number, (name, folds) in enumerate(c.sources.histories.items()):
        figures[f"learning_{number}"] = learning_figure(folds, f"learning-{number}", name)
    return figures


def _row(group: Subgroup) -> Row:
    """A line of the forest plot."""
    return Row(
        group.name or group.factor,
        (group.breasts, group.cancers),
        (group.auroc, group.sensitivity, group.specificity),
        group.factor if group.name else "",
    )


def _of_class(groups: Sequence[Subgroup], label: int) -> list[Subgroup]:
    """Groups that are not made of the other class alone."""
    return [g for g in groups if (g.cancers if label else g.breasts - g.cancers)]


def _words(contents: Contents) -> dict[str, Any]:
    """What the templates fill in."""
    c, ensemble = contents, contents.sources.ensemble
    kind = "Run" if c.sources.is_run else "Ensemble"
    own = [f"site {site} {decimal(v)}" for site, v in ensemble.thresholds.sites.items()]
    return {
        "name": c.name,
        "is_run": c.sources.is_run,
        "sections": SECTIONS,
        "short": {key: _SHORT.get(key, title) for key, title in SECTIONS.items()},
        "summary": captions.summary(f"{kind} {c.name}", c.scores),
        "certainty": captions.certainty(c.cohort, c.scores),
        "notices": c.notices,
        "tiles": score_rows(c.scores, _TILES),
        "score_rows": score_rows(c.scores, tuple(_SCORES)),
        "optimism_rows": _optimism_rows(c),
        "optimism": with_minus(c.optimism),
        "threshold": ensemble.threshold,
        "site_thresholds": ", ".join(own),
        "resamples": c.sources.resamples,
        "band_resamples": c.sources.band_resamples,
        "cohort": c.cohort,
        "scores": c.scores,
        "in_sample": c.in_sample,
        "delong": c.delong,
        "samples": c.sources.samples,
        "operating": c.operating,
        "published": PUBLISHED,
        "worth": captions.worth(c.scores, c.cohort.prevalence),
        "calibrated": "calibrated" in c.calibration,
        "groups": c.groups,
        "differences": captions.differences(c.contrasts),
        "least": LEAST,
        "folds": c.folds,
        "members": list(zip(ensemble.members, c.members, strict=True)),
        "learning": [f"learning_{number}" for number in range(len(c.sources.histories))],
        "blend": ensemble.blend.replace("_", " "),
        "comparisons": c.comparisons,
        "preparation": c.sources.preparation,
        "cases": c.sources.cases,
        "case_titles": _CASES,
        "seed": c.sources.seed,
        "version": version("rsna_bcd"),
        "reading": _readings(c),
    }


def _readings(c: Contents) -> dict[str, str]:
    ensemble, prevalence = c.sources.ensemble, c.cohort.prevalence
    return {
        "data": captions.data(c.cohort),
        "ages": captions.ages(c.cohort),
        "roc": captions.roc(c.scores, c.delong),
        "precision": captions.precision(c.scores, prevalence),
        "screening": captions.screening(c.screening, prevalence) + _edge(c),
        "threshold": captions.threshold(
            ensemble.plateau, ensemble.threshold, ensemble.cross_fitted_thresholds, c.optimism
        ),
        "distribution": captions.distributions(c.blended),
        "reliability": captions.calibration(c.calibration, prevalence),
        "groups": captions.groups(c.groups, c.contrasts),
        "folds": captions.folds(c.folds),
        "members": captions.members(c.members, c.delong),
        "correlation": captions.correlation([m.name for m in c.members], c.correlation),
        "baseline": captions.baseline(c.comparisons),
        "preparation": captions.preparation(c.sources.preparation),
        **{
            f"learning_{number}": learning_caption(folds, name)
            for number, (name, folds) in enumerate(c.sources.histories.items())
        },
    }


def _edge(c: Contents) -> str:
    """What the figure at high specificity cannot show at its place."""
    point = 1 - c.scores["specificity"].value, c.scores["sensitivity"].value
    beyond = beyond_edge(c.screening, point)
    if not beyond:
        return ""
    return (
        f" Drawn at the left edge, as the specificity is above "
        f"{percent(1 - float(c.screening.x[0]))}: {listed(beyond)}."
    )


def score_rows(scores: Mapping[str, Interval], keys: Sequence[str]) -> list[ScoreRow]:
    """Scores in words, those that are defined: shares in percent, the others as decimals."""
    rows = []
    for key in keys:
        name, is_share, meaning = _SCORES[key]
        interval = scores[key]
        value, reach = decimal(interval.value), decimal_range(interval)
        if is_share:
            value, reach = percent(interval.value), f"{share_range(interval)}"
        rows.append(ScoreRow(name, value, reach, meaning, interval))
    return rows


def _optimism_rows(c: Contents) -> list[dict[str, str]]:
    rows = []
    for key in _OPTIMISM:
        name, is_share, _ = _SCORES[key]
        said = shares if is_share else decimals
        rows.append(
            {"name": name, "honest": said(c.scores[key]), "in_sample": said(c.in_sample[key])}
        )
    return rows


def _furnish(environment: Environment) -> None:
    """Filters and tests of the templates."""
    environment.filters |= {
        "percent": percent,
        "decimal": decimal,
        "decimals": decimals,
        "shares": shares,
        "signed": signed,
        "p_value": p_value,
        "webp": _data_uri,
        "few": _few,
    }
    environment.tests["finite"] = math.isfinite


def _data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _typeset(text: str) -> str:
    """Numbers keep to their percent signs."""
    return re.sub(r"(?<=\d) %", f"{THIN}%", text)


def _few(number: int) -> str:
    """A count for a card, which travels further than a page: a small one could tell of a person."""
    return f"< {LEAST}" if number < LEAST else str(number)


def _in_a_cell(value: Any) -> Any:
    """A text that stays one: names come from tables, and may hold what Markdown and HTML read."""
    if not isinstance(value, str):
        return value
    line = _BREAKS.sub(" ", value)
    return _MARKUP.sub(r"\\\g<0>", line)
