"""The report stage on fabricated runs: the page, the model card, and inputs that are missing."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from fabricated_runs import oof, save_run
from sklearn.metrics import average_precision_score, roc_auc_score
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.inference import saliency
from rsna_bcd.reporting.evaluation import Evaluation
from rsna_bcd.reporting.figures import DrawnFigure
from rsna_bcd.reporting.page import SECTIONS
from rsna_bcd.stages.ensemble import ensemble
from rsna_bcd.stages.report import report
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import read_ensemble_oof, read_run

N = 240
HISTORY = {"epoch": [0, 1], "train_loss": [0.7, 0.6], "valid_loss": [0.7, 0.6], "auroc": [0.5, 0.6]}


def make_images() -> pd.DataFrame:
    """CC and MLO of the left breasts of `fabricated_runs.oof`, with all optional columns."""
    rng = np.random.default_rng(0)
    cancer = [int(i % 5 == 0) for i in range(N)]
    breasts = pd.DataFrame({"patient_id": [str(i) for i in range(N)], "laterality": "L"}).assign(
        site_id=rng.integers(1, 3, N),
        age=rng.integers(40, 80, N).astype(float),
        cancer=cancer,
        biopsy=cancer,
        invasive=cancer,
        BIRADS=np.nan,
        implant=0,
        density=rng.choice(["A", "B", "C"], N),
        machine_id=rng.choice([29, 49], N),
        difficult_negative_case=(np.arange(N) % 7 == 1),
    )
    breasts.loc[breasts["site_id"] == 2, "density"] = None
    views = [breasts.assign(view=view) for view in ("CC", "MLO")]
    table = pd.concat(views).sort_index(kind="stable").reset_index(drop=True)
    return table.assign(image_id=[str(1000 + i) for i in range(len(table))])


def save_images(output: Path, table: pd.DataFrame) -> None:
    """A prepared folder with six crops; the paths of the others are empty."""
    folder = output / "prepared" / "rsna" / "h512"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    names = [f"train/{image_id}.png" for image_id in table["image_id"].head(6)]
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32), dtype=np.uint8)
    for name in names:
        cv2.imwrite(str(folder / name), pixels)
    paths = pd.Series([*names, *[None] * (len(table) - len(names))])
    table.assign(path=paths).to_csv(folder / "train.csv", index=False)


def fit(output: Path, *overrides: str) -> None:
    paths = [f"paths.output={output}", "resamples=50", "overwrite=true"]
    ensemble(composed("ensemble", *paths, *overrides))


def make_report(output: Path, *overrides: str) -> Evaluation:
    small = ("resamples=50", "band_resamples=20", "cases=0", "baseline=[]")
    paths = [f"paths.output={output}", f"paths.data={output / 'data'}"]
    return report(composed("report", *paths, *small, *overrides))


class Page(HTMLParser):
    """A page: its ids, open tags, requests and text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.source = (folder / "index.html").read_text(encoding="utf-8")
        self.card = (folder / "model_card.md").read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.requests: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(self.source)
        self.close()
        self.words = re.sub(r"\s+", " ", " ".join(self.text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        self.open += [tag] * (tag not in self.VOID)
        for name, value in attrs:
            self.ids += [str(value)] * (name == "id")
            loads = name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a")
            if loads and not str(value).startswith(("data:", "#")):
                self.requests.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:  # noqa: D102
        assert tag in self.VOID or self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:  # noqa: D102
        self.text.append(data)

    def check(self) -> "Page":
        """The properties of every page."""
        assert self.open == []
        assert set(SECTIONS) <= set(self.ids)
        assert len(self.ids) == len(set(self.ids))
        assert self.requests == []
        assert "url(" not in re.sub(r"url\(#[^)]+\)", "", self.source)
        assert "@import" not in self.source
        for undefined in ("nan", "None", "inf"):
            assert not re.search(rf"\b{undefined}\b", self.words), undefined
        return self


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs b5 and small with the same two folds, their ensemble, and the crops; not to change."""
    output = tmp_path_factory.mktemp("report")
    for seed, name in enumerate(["b5", "small"]):
        save_run(output / "runs" / name, oof(range(100), 0, seed), oof(range(100, N), 1, seed))
    for fold in (0, 1):
        file = output / "runs" / "b5" / f"fold{fold}" / "metrics.csv"
        pd.DataFrame(HISTORY).to_csv(file, index=False)
    save_images(output, make_images())
    fit(output, "name=pair", "members=[b5,small]")
    return output


@pytest.fixture(scope="module")
def pair(shared: Path) -> Evaluation:
    return make_report(shared, "name=pair", "baseline=[metadata,b5]")


@pytest.fixture(scope="module")
def single(shared: Path) -> Evaluation:
    return make_report(shared, "run=b5")


@pytest.fixture
def output(shared: Path, tmp_path: Path) -> Path:
    """A copy of `shared` without reports."""
    ignored = shutil.ignore_patterns("report")
    return Path(shutil.copytree(shared, tmp_path / "output", ignore=ignored))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr("rsna_bcd.reporting.page.draw_figures", lambda _: {})


def test_page_shows_a_figure_in_every_section_and_names_absent_parts(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {key: [DrawnFigure(f"new-{key}", "<svg/>", "New.", False)] for key in SECTIONS}
    monkeypatch.setattr("rsna_bcd.reporting.page.draw_figures", lambda _: drawn)
    make_report(output, "name=pair")
    page = Page(output / "report" / "pair")
    assert [i for i in page.ids if i.startswith("figure-")] == [f"figure-new-{k}" for k in SECTIONS]
    monkeypatch.setattr("rsna_bcd.reporting.page.SECTIONS", {**SECTIONS, "new": "New"})
    with pytest.raises(ValueError, match=r'report\.html\.j2 lacks <section id="new">\.'):
        make_report(output, "name=pair")


def test_a_device_that_is_not_there_is_refused_before_trees_are_fitted(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsna_bcd.stages.report.out_of_fold", None)
    with pytest.raises(InputError, match="device=cuda:99: .*Choose auto, cpu or cuda"):
        make_report(shared, "name=pair", "baseline=[metadata]", "cases=1", "device=cuda:99")


@pytest.mark.usefixtures("pair")
def test_report_page_and_card_state_the_scores_of_the_files(shared: Path) -> None:
    page = Page(shared / "report" / "pair").check()
    table = read_ensemble_oof(shared / "ensembles" / "pair" / "oof.csv")
    labels, p, decided = (table[c].to_numpy() for c in ("label", "held_out", "decision"))
    record = json.loads((shared / "ensembles" / "pair" / "ensemble.json").read_text())["score"]
    auroc, pf1 = roc_auc_score(labels, p), record["cross_fitted"]["pf1"]
    recall = decided[labels == 1].mean()
    decimals = (
        auroc,
        average_precision_score(labels, p),
        2 * (labels * decided).sum() / (decided.sum() + labels.sum()),
    )
    percents = recall, 1 - decided[labels == 0].mean(), labels[decided == 1].mean(), decided.mean()
    for text in (
        *(f" {value:.3f} " for value in decimals),
        *(f" {100 * value:.1f}\u202f% " for value in percents),
        *(f"{i['low']:.3f} to {i['high']:.3f}" for i in (record["auroc"], pf1)),
    ):
        assert text in re.sub(r"[ \n]+", " ", " ".join(page.text)), text
    assert f"| AUROC | {auroc:.3f} (" in page.card
    assert "{" not in page.card
    assert not re.search(r"\|\n[^|\n]", page.card), "a paragraph would continue the table"
    assert ").- " not in page.card


def test_report_evaluates_folds_members_and_baselines(pair: Evaluation, shared: Path) -> None:
    assert (pair.cohort.breasts, pair.cohort.cancers) == (240, 48)
    assert [fold.breasts for fold in pair.folds] == [100, 140]
    assert [member.name for member in pair.members] == ["b5", "small"]
    assert pair.correlation.shape == (2, 2)
    assert [other.name for other in pair.comparisons] == ["the tree on metadata", "run b5"]
    assert pair.comparisons[1].auroc == pair.members[0].auroc
    table = read_ensemble_oof(shared / "ensembles" / "pair" / "oof.csv")
    single = table[table["fold"] == 1]
    fold = pair.folds[1].auroc
    assert fold is not None
    assert fold.value == pytest.approx(roc_auc_score(single["label"], single["held_out"]))
    # Without b5 the blend is small alone, and the other way round.
    for member, other in zip(pair.members, pair.members[::-1], strict=True):
        assert member.gain is not None
        assert other.auroc is not None
        blended = roc_auc_score(table["label"], table["probability"])  # both are in sample
        assert member.gain.value == pytest.approx(blended - other.auroc.value)


@pytest.mark.usefixtures("undrawn")
def test_report_run_is_an_ensemble_of_one(single: Evaluation, output: Path, shared: Path) -> None:
    fit(output, "name=alone", "members=[b5]")
    alone = make_report(output, "name=alone")
    assert single.scores == alone.scores
    assert single.inputs.ensemble.threshold == alone.inputs.ensemble.threshold
    page = Page(shared / "report" / "runs" / "b5").check()
    assert "Run b5 finds" in page.words
    assert "fold 1, 2 epochs: the held-out loss is lowest in epoch 2" in page.words
    # One interval per score in a report, and the limit of few recalls.
    assert single.groups[0].sensitivity == single.scores["sensitivity"]
    assert single.groups[0].specificity == single.scores["specificity"]
    rows = {row.name: row for row in single.operating}
    limited = rows["recall rate 10 %"]  # of 240 breasts: 24, and 48 have cancer
    assert limited.max_sensitivity == pytest.approx(0.5)
    assert limited.scores["sensitivity"].value <= 0.5
    assert rows["specificity 97.8 %"].max_sensitivity is None
    assert rows["chosen, cross-fitted"].max_sensitivity is None


@pytest.mark.usefixtures("single")
def test_report_is_reproducible(shared: Path, tmp_path: Path) -> None:
    make_report(shared, "run=b5", f"report_dir={tmp_path}")
    again, first = tmp_path / "runs" / "b5", shared / "report" / "runs" / "b5"
    assert sorted(p.name for p in again.iterdir()) == ["index.html", "model_card.md"]
    assert (again / "index.html").read_bytes() == (first / "index.html").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_report_member_without_weight_gains_nothing(output: Path) -> None:
    file = output / "ensembles" / "pair" / "ensemble.json"
    record = json.loads(file.read_text())
    for member in record["members"]:
        member["weight"] = float(member["name"] == "b5")
    file.write_text(json.dumps(record))
    first, second = make_report(output, "name=pair").members
    assert first.gain
    assert second.gain
    assert first.gain.value != 0
    assert (second.gain.value, second.gain.low, second.gain.high) == (0, 0, 0)


@pytest.mark.usefixtures("undrawn")
def test_report_fold_without_cancer_has_no_scores(output: Path) -> None:
    healthy = oof(range(100, 140), 1).query("label == 0")
    save_run(output / "runs" / "alone", oof(range(100), 0), healthy)
    folds = make_report(output, "run=alone").folds
    assert folds[0].pf1 is not None
    assert (folds[1].pf1, folds[1].auroc, folds[1].average_precision) == (None, None, None)


@pytest.mark.usefixtures("undrawn")
def test_report_of_recall_rates_ranks_sites_and_calibration(output: Path) -> None:
    fit(output, "name=rate", "members=[b5]", "threshold=recall_rate", "recall_rate=0.1")
    scores = make_report(output, "name=rate").scores
    record = json.loads((output / "ensembles" / "rate" / "ensemble.json").read_text())["score"]
    for name, stored in record["cross_fitted"].items():
        assert scores[name].value == pytest.approx(stored["value"])
        assert scores[name].low == pytest.approx(stored["low"])
    fit(output, "name=rich", "members=[b5,small]", "blend=rank_mean", "weights=fitted",
        "by_site=10", "calibration=platt")  # fmt: skip
    evaluation = make_report(output, "name=rich")
    assert list(evaluation.calibration) == ["calibrated"]  # ranks are no probabilities
    assert "Thresholds by site: site 1" in Page(output / "report" / "rich").check().words


def test_report_one_fold_bare_table_and_unreadable_breasts(output: Path) -> None:
    table = oof(range(100), 2)
    table.loc[:2, "unread"] = 1
    save_run(output / "runs" / "alone", table)
    bare = ["patient_id", "laterality", "cancer", "view", "image_id"]
    save_images(output, make_images()[bare])
    evaluation = make_report(output, "run=alone", "baseline=metadata", "samples=0")
    assert [group.title for group in evaluation.groups] == ["all breasts", "views CC and MLO"]
    words = Page(output / "report" / "runs" / "alone").check().words
    for text in ("There is one fold", "No ages are recorded.", "No manifest was found"):
        assert text in words
    assert "3 breasts could not be read" in words


def test_report_perfect_and_useless_models(output: Path) -> None:
    table = oof(range(100), 0)
    perfect = table.assign(probability=0.1 + 0.8 * table["label"])
    useless = table.assign(probability=0.9 - 0.8 * table["label"] - table.index / 1e4)
    pages = {}
    for name, own in (("perfect", perfect), ("useless", useless)):
        save_run(output / "runs" / name, own)
        make_report(output, f"run={name}")
        pages[name] = Page(output / "report" / "runs" / name).check()
    assert "AUROC 1.000, no interval" in pages["perfect"].words
    assert "1.000 to 1.000" not in pages["perfect"].words


def test_report_escapes_names_and_card_hides_small_counts(output: Path) -> None:
    table = make_images()
    name = "<b>29</b> & $x$\n# [a](javascript:b) | `c`"
    table["machine_id"] = np.where(table["machine_id"] == 29, name, "49")
    table["implant"] = (table["patient_id"].astype(int) < 3).astype(int)  # one cancer
    save_images(output, table)
    make_report(output, "run=b5")
    page = Page(output / "report" / "runs" / "b5").check()
    assert "<b>29" not in page.source
    assert "<b>29</b> & $x$" in page.words
    assert r"| Machine: \<b>29\</b> & $x$ # \[a](javascript:b) \| \`c\` |" in page.card
    assert "| Implant: with | < 10 | < 10 | – |" in page.card
    assert "Contains images and identifiers" in page.words


@pytest.mark.usefixtures("undrawn")
def test_report_notices(output: Path) -> None:
    save_run(output / "runs" / "chosen", oof(range(100), 0), select="best")
    (output / "data").mkdir()
    (output / "data" / "synthesize.yaml").touch()
    notices = " ".join(make_report(output, "run=chosen").notices)
    for part in ("synthetic", "chosen kept the epoch", "enriched: 20", "Only 20 breasts"):
        assert part in notices
    shutil.copytree(output / "runs" / "b5" / "fold0", output / "runs" / "b5" / "foldall")
    fit(output, "name=all", "members=[b5]", "networks=all")
    assert "which have no scores" in " ".join(make_report(output, "name=all").notices)


@pytest.mark.usefixtures("undrawn")
def test_report_gallery(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Explainer:
        name = "small"
        images = read_images(output / "prepared" / "rsna" / "h512" / "train.csv", "train")

        def __call__(self, prediction_id: str) -> list[saliency.ExplainedImage]:
            crop, maps = np.full((64, 32), 99, np.uint8), np.eye(4, 2, dtype=np.float32)
            views = ("CC", maps), ("MLO", None)
            return [saliency.ExplainedImage("1", view, crop, own) for view, own in views]

    monkeypatch.setattr(saliency.Explainer, "for_ensemble", lambda *_: Explainer())
    cases = make_report(output, "run=b5", "cases=2").inputs.cases
    assert cases is not None
    assert {case.kind for case in cases} == {"false negative", "false positive", "true positive"}
    page = Page(output / "report" / "runs" / "b5").check()
    for case in cases:
        assert f"{case.prediction_id} · score {case.probability:.3f}" in page.words
    assert page.source.count("data:image/webp") == 6 + 3 * len(cases)
    assert page.words.count("(not used by the network)") == len(cases)
    assert "maps are those of one member" not in page.words
    cases = make_report(output, "name=pair", "cases=1").inputs.cases
    assert cases
    words = Page(output / "report" / "pair").words
    assert "maps are those of one member, small," in words
    own = read_run(output / "runs" / "small").set_index("prediction_id")["probability"]
    for case in cases:
        assert case.own_probability == own[case.prediction_id] != case.probability
        assert f"score {case.probability:.3f}, small alone {case.own_probability:.3f}" in words


@pytest.mark.usefixtures("undrawn")
def test_report_gallery_without_networks(output: Path) -> None:
    """The hardest cancers as they were prepared; the runs have no checkpoints."""
    evaluation = make_report(output, "run=b5", "cases=100", "maps=false")
    cases = evaluation.inputs.cases
    assert cases
    oof = evaluation.inputs.oof
    missed = oof[(oof["label"] == 1) & (oof["decision"] == 0) & (oof["unread"] == 0)]
    hardest = missed.sort_values("ranking")["prediction_id"].tolist()
    assert [case.prediction_id for case in cases if case.kind == "false negative"] == hardest
    views = [view for case in cases for view in case.views]
    page = Page(output / "report" / "runs" / "b5").check()
    assert all(view.overlay is None for view in views)
    assert page.source.count('<figure style="display: block">') == len(views)
    shown = next(case for case in cases if case.prediction_id == "0_L")  # has crops
    assert [view.name for view in shown.views] == ["CC", "MLO"]
    assert page.source.count("data:image/webp") == 6 + len(views)  # and the samples
    assert "without saliency maps" in page.words
    assert "not used by the network" not in page.words


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "Give name= of an ensemble or run= of a run"),
        (["name=a", "run=b5"], "one of them"),
        (["name=absent"], r"ensemble\.json does not exist.*rsna_bcd\.ensemble name=absent"),
        (["run=absent"], "absent holds no trained fold"),
        (["run=b5", "baseline=absent"], "Fold 0 of absent was not trained"),
        (["run=b5", "cases=1"], r"checkpoint[\s\S]*maps=false[\s\S]*cases=0"),
    ],
)
def test_report_refuses_bad_settings(
    shared: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_report(shared, *overrides, f"report_dir={tmp_path / 'report'}")
    assert not (tmp_path / "report").exists()


def remove_crop(output: Path) -> None:
    next((output / "prepared" / "rsna" / "h512" / "train").glob("*.png")).unlink()


@pytest.mark.parametrize(
    ("damage", "override", "message"),
    [
        (lambda o: save_images(o, make_images().head(400)), "run=b5", "lacks 40 of the predicted"),
        (lambda o: (o / "prepared/rsna/h512/train.csv").unlink(), "run=b5", "does not exist"),
        (remove_crop, "run=b5", r"png[\s\S]*Or leave the samples out with samples=0"),
        (lambda o: shutil.rmtree(o / "runs/small"), "name=pair", r"small among them[\s\S]*Or fit"),
        (lambda o: save_run(o / "runs/small", oof(range(90), 0, 1)), "name=pair",
         r"pair was fitted before[\s\S]*members=\[b5,small\]"),
    ],
)  # fmt: skip
def test_report_names_missing_inputs(
    output: Path, damage: Callable[[Path], None], override: str, message: str
) -> None:
    damage(output)
    with pytest.raises(InputError, match=message):
        make_report(output, override)
