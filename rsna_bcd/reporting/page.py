"""Render a report: one self-contained HTML page, and a model card in Markdown."""

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rsna_bcd.reporting import captions
from rsna_bcd.reporting.evaluation import PUBLISHED, Evaluation
from rsna_bcd.reporting.figures import DrawnFigure, draw_figures
from rsna_bcd.reporting.formatting import (
    THIN,
    decimal,
    decimal_estimate,
    interval_ends,
    p_value,
    percent,
    percent_estimate,
    signed,
)
from rsna_bcd.reporting.subgroups import MIN_BREASTS
from rsna_bcd.scoring.intervals import Interval

TEMPLATES = Path(__file__).parent / "templates"

SECTIONS: Mapping[str, str] = {  # key and anchor: title
    "summary": "Summary",
    "data": "Data",
    "ranking": "ROC and PR",
    "threshold": "Threshold",
    "operating": "Operating points",
    "scores": "Calibration",
    "groups": "Groups",
    "folds": "Folds",
    "members": "Members",
    "baseline": "Baseline",
    "preparation": "Preparation",
    "gallery": "Gallery",
}
_CASES: Mapping[str, str] = {
    "false negative": "False negatives: cancer, lowest scores",
    "false positive": "False positives: no cancer, highest scores",
    "true positive": "True positives: cancer, highest scores",
}


class Score(NamedTuple):
    """How a score is shown."""

    name: str
    is_proportion: bool  # in percent
    meaning: str


_SCORES: Mapping[str, Score] = {  # other metrics are named by their key
    "auroc": Score("AUROC", False, "chance that a breast with cancer is scored above one without"),
    "average_precision": Score("Average precision", False, "mean PPV over all sensitivities"),
    "sensitivity": Score("Sensitivity", True, "breasts with cancer that are flagged"),
    "specificity": Score("Specificity", True, "breasts without cancer that are not flagged"),
    "ppv": Score("PPV", True, "flagged breasts that have cancer"),
    "recall_rate": Score("Recall rate", True, "breasts that are flagged, of all"),
    "accuracy": Score("Accuracy", True, "correct decisions, of all"),
    "balanced_accuracy": Score("Balanced accuracy", True, "mean of sensitivity and specificity"),
    "pf1": Score("pF1", False, "the challenge’s metric: harmonic mean of PPV and sensitivity"),
}
TILES = ("auroc", "sensitivity", "specificity", "pf1")
_OPTIMISM = ("pf1", "sensitivity", "specificity", "ppv", "recall_rate")
_WHITESPACE = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029 ]+")
_MARKUP = re.compile(r"[\\`\[|]|<(?=[A-Za-z/!?])")


class ScoreRow(NamedTuple):
    """A formatted row of the table of scores."""

    name: str
    value: str
    range: str
    meaning: str
    interval: Interval


def render_page(evaluation: Evaluation) -> str:
    """The page: text, style, script, figures and images in one HTML document."""
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    figures: dict[str, list[DrawnFigure]] = dict.fromkeys(SECTIONS, [])
    figures |= draw_figures(evaluation)
    if unknown := figures.keys() - SECTIONS.keys():
        raise ValueError(f"Figures of no section of the report: {', '.join(sorted(unknown))}.")
    variables = _variables(evaluation) | {"figures": figures, "css": css}
    page = _render("report.html.j2", variables, autoescape=True)
    parts = [f'<section id="{key}">' for key in SECTIONS]
    parts += [f'<figure id="figure-{figure.key}"' for drawn in figures.values() for figure in drawn]
    if absent := [part for part in parts if part not in page]:
        raise ValueError(f"{TEMPLATES / 'report.html.j2'} lacks {', '.join(absent)}.")
    return page


def render_card(evaluation: Evaluation) -> str:
    """The model card, in Markdown."""
    return _render("model_card.md.j2", _variables(evaluation), finalize=_escape_markdown)


def _render(template: str, variables: Mapping[str, Any], **options: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= {
        "percent": percent,
        "decimal": decimal,
        "decimal_estimate": decimal_estimate,
        "percent_estimate": percent_estimate,
        "signed": signed,
        "p_value": p_value,
        "webp": lambda content: f"data:image/webp;base64,{base64.b64encode(content).decode()}",
        # A model card travels further than a page: small counts could identify a person.
        "few": lambda n: f"< {MIN_BREASTS}" if 0 < n < MIN_BREASTS else str(n),
    }
    environment.tests["finite"] = math.isfinite
    text = environment.get_template(template).render(variables)
    return re.sub(r"(?<=\d) %", f"{THIN}%", text) + "\n"


def _escape_markdown(value: Any) -> Any:
    """One line without markup: names come from tables, and may hold Markdown and HTML."""
    if not isinstance(value, str):
        return value
    return _MARKUP.sub(r"\\\g<0>", _WHITESPACE.sub(" ", value))


def _variables(e: Evaluation) -> dict[str, Any]:
    """The variables of both templates."""
    inputs, ensemble = e.inputs, e.inputs.ensemble
    sites = [f"site {site} {decimal(v)}" for site, v in ensemble.thresholds.sites.items()]
    return {
        "e": e,
        "name": e.name,
        "is_run": inputs.is_run,
        "sections": SECTIONS,
        "summary": captions.summary(f"{'Run' if inputs.is_run else 'Ensemble'} {e.name}", e.scores),
        "sample_size": captions.sample_size(e.cohort, e.scores),
        "tiles": score_rows(e.scores, TILES),
        "score_rows": score_rows(e.scores),
        "optimism_rows": [
            (_describe(key).name, *(_formatter(key)(s[key]) for s in (e.scores, e.in_sample)))
            for key in _OPTIMISM
        ],
        "optimism": decimal(e.optimism),
        "threshold": ensemble.threshold,
        "site_thresholds": ", ".join(sites),
        "resamples": inputs.resamples,
        "band_resamples": inputs.band_resamples,
        "seed": inputs.seed,
        "operating_scores": [
            (key, _describe(key).name, _formatter(key))
            for key in _ordered(e.in_sample)
            if key != "pf1"
        ],
        "published": PUBLISHED,
        "ppv_at_challenge": captions.ppv_at_challenge(e.scores, e.cohort.prevalence),
        "calibrated": "calibrated" in e.calibration,
        "differences": captions.differences(e.differences),
        "min_breasts": MIN_BREASTS,
        "members": list(zip(ensemble.members, e.members, strict=True)),
        "blend": ensemble.blend.replace("_", " "),
        "case_titles": _CASES,
        "version": version("rsna_bcd"),
        "text": {
            "data": captions.data(e.cohort),
            "calibration": captions.calibration(e.calibration, e.cohort.prevalence),
            "groups": captions.groups(e.groups, e.differences),
            "folds": captions.folds(e.folds),
            "members": captions.members(e.members, e.delong),
            "baseline": captions.baseline(e.comparisons),
            "preparation": captions.preparation(inputs.preparation),
        },
    }


def _describe(key: str) -> Score:
    return _SCORES.get(key, Score(key.replace("_", " ").capitalize(), False, ""))


def _formatter(key: str) -> Callable[[Interval | None], str]:
    return percent_estimate if _describe(key).is_proportion else decimal_estimate


def _ordered(scores: Mapping[str, Interval]) -> list[str]:
    """Names of scores in the order of `_SCORES`, then those that it lacks."""
    return [*(key for key in _SCORES if key in scores), *(k for k in scores if k not in _SCORES)]


def score_rows(scores: Mapping[str, Interval], keys: Sequence[str] | None = None) -> list[ScoreRow]:
    """Format scores: proportions in percent, the others as decimals; None formats all."""
    rows = []
    for key in keys or _ordered(scores):
        interval, (name, is_proportion, meaning) = scores[key], _describe(key)
        value, ends = decimal(interval.value), interval_ends(interval)
        if is_proportion:
            value, ends = percent(interval.value), interval_ends(interval, 1, 100)
        rows.append(ScoreRow(name, value, ends, meaning, interval))
    return rows
