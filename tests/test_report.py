"""The report stage on fabricated runs: the page, its figures, and what may be missing."""

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
from hydra import compose, initialize_config_dir
from sklearn.metrics import average_precision_score, roc_auc_score

from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError
from rsna_bcd.reporting.evaluation import Evaluation
from rsna_bcd.reporting.page import SECTIONS, TEMPLATES
from rsna_bcd.stages.ensemble import ensemble
from rsna_bcd.stages.report import report
from rsna_bcd.tables.predictions import read_ensemble_oof, read_run

Make = Callable[..., Evaluation]
PATIENTS = 240
SMALL = ("resamples=50", "band_resamples=20", "cases=0", "baseline=[]")


def table_of_images(n: int = PATIENTS) -> pd.DataFrame:
    """CC and MLO of the left breasts of `fabricated_runs.oof`, with all that may be recorded."""
    rng = np.random.default_rng(0)
    breasts = pd.DataFrame({"patient_id": [str(i) for i in range(n)], "laterality": "L"})
    cancer = [int(i % 5 == 0) for i in range(n)]
    breasts = breasts.assign(
        site_id=rng.integers(1, 3, n),
        age=rng.integers(40, 80, n).astype(float),
        cancer=cancer,
        biopsy=cancer,
        invasive=cancer,
        BIRADS=np.nan,
        implant=0,
        density=rng.choice(["A", "B", "C"], n),
        machine_id=rng.choice([29, 49], n),
        difficult_negative_case=(np.arange(n) % 7 == 1),
    )
    breasts.loc[breasts["site_id"] == 2, "density"] = None
    views = [breasts.assign(view=view) for view in ("CC", "MLO")]
    table = pd.concat(views).sort_index(kind="stable").reset_index(drop=True)
    return table.assign(image_id=[str(1000 + i) for i in range(len(table))])


def save_table(output: Path, table: pd.DataFrame, crop: str = "h512", *, crops: int = 6) -> Path:
    """A prepared folder with a few crops; the paths of the others are empty."""
    folder = output / "prepared" / "rsna" / crop
    (folder / "train").mkdir(parents=True, exist_ok=True)
    names = [f"train/{image_id}.png" for image_id in table["image_id"].head(crops)]
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32), dtype=np.uint8)
    for name in names:
        cv2.imwrite(str(folder / name), pixels)
    paths = [*names, *[None] * (len(table) - len(names))]
    table.assign(path=pd.Series(paths)).to_csv(folder / "train.csv", index=False)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two runs with the same two folds, and the crops of the first."""
    for seed, name in enumerate(["b5", "small"]):
        save_run(tmp_path / "runs" / name, oof(range(100), 0, seed), oof(range(100, 240), 1, seed))
    save_table(tmp_path, table_of_images())
    return tmp_path


@pytest.fixture
def fit(output: Path) -> Callable[..., None]:
    def run(*overrides: str) -> None:
        paths = [f"paths.output={output}", "resamples=50", "overwrite=true"]
        with initialize_config_dir(CONF, version_base="1.3"):
            ensemble(compose("ensemble", [*paths, *overrides]))

    return run


@pytest.fixture
def make(output: Path) -> Make:
    def run(*overrides: str) -> Evaluation:
        paths = [f"paths.output={output}", f"paths.data={output / 'data'}"]
        with initialize_config_dir(CONF, version_base="1.3"):
            return report(compose("report", [*paths, *SMALL, *overrides]))

    return run


def test_learning_curves_of_the_members(make: Make, output: Path) -> None:
    rows = {
        "epoch": [0, 1],
        "train_loss": [0.7, 0.6],
        "valid_loss": [0.7, 0.65],
        "auroc": [0.5, 0.6],
    }
    for fold in (0, 1):
        file = output / "runs" / "b5" / f"fold{fold}" / "metrics.csv"
        pd.DataFrame(rows).to_csv(file, index=False)
    make("run=b5")
    page = (output / "report" / "runs" / "b5" / "index.html").read_text()
    assert page.count("Learning curves: loss and scores by epoch") == 1
    assert "fold 1, 2 epochs: the held-out loss is lowest in epoch 2" in page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the contents: figures take most of the time."""
    monkeypatch.setattr("rsna_bcd.stages.report.render_page", lambda _: "")


class Page(HTMLParser):
    """What a browser would ask for, and what the page holds."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.requests: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(  # noqa: D102
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            loads = name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a")
            if loads and not str(value).startswith(("data:", "#")):
                self.requests.append(f"{tag} {name}={value}")

    def handle_startendtag(  # noqa: D102
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:  # noqa: D102
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:  # noqa: D102
        self.text.append(data)

    @property
    def words(self) -> str:
        """Its text."""
        return re.sub(r"\s+", " ", " ".join(self.text))


def check(page: Page) -> None:
    """What holds for every page."""
    assert page.open == []
    assert set(SECTIONS) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.requests == []
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", page.source)
    assert "@import" not in page.source
    assert len(page.source) < 10e6
    for undefined in ("nan", "None", "inf"):
        assert not re.search(rf"\b{undefined}\b", page.words), undefined


def test_the_page_says_what_the_files_say(
    fit: Callable[..., None], make: Make, output: Path
) -> None:
    fit("name=pair", "members=[b5,small]")
    make("name=pair", "baseline=[metadata,b5]")
    page = Page(output / "report" / "pair" / "index.html")
    check(page)
    table = read_ensemble_oof(output / "ensembles" / "pair" / "oof.csv")
    labels, p, called = (table[c].to_numpy() for c in ("label", "held_out", "decision"))
    record = json.loads((output / "ensembles" / "pair" / "ensemble.json").read_text())["score"]
    words = page.words
    for value in (
        roc_auc_score(labels, p),
        average_precision_score(labels, p),
        2 * called[labels == 1].sum() / (called.sum() + labels.sum()),
    ):
        assert f" {value:.3f} " in words
    for value in (
        called[labels == 1].mean(),
        1 - called[labels == 0].mean(),
        labels[called == 1].mean(),
        called.mean(),
    ):
        assert f" {100 * value:.1f}\u202f% " in re.sub(r"[ \n]+", " ", " ".join(page.text))
    for name in ("auroc", "average_precision"):
        assert f"{record[name]['low']:.3f} to {record[name]['high']:.3f}" in words
    pf1 = record["cross_fitted"]["pf1"]
    assert f"{pf1['low']:.3f} to {pf1['high']:.3f}" in words
    card = (output / "report" / "pair" / "model_card.md").read_text()
    assert f"| AUROC | {roc_auc_score(labels, p):.3f} (" in card
    assert "{" not in card
    assert not re.search(r"\|\n[^|\n]", card), "a paragraph would be part of the table above it"


@pytest.mark.usefixtures("undrawn")
def test_contents_by_section(fit: Callable[..., None], make: Make, output: Path) -> None:
    fit("name=pair", "members=[b5,small]")
    contents = make("name=pair", "baseline=[metadata,b5]")
    assert (contents.cohort.breasts, contents.cohort.cancers) == (240, 48)
    assert [fold.breasts for fold in contents.folds] == [100, 140]
    assert [member.name for member in contents.members] == ["b5", "small"]
    assert contents.correlation.shape == (2, 2)
    assert [other.name for other in contents.comparisons] == ["the tree on metadata", "run b5"]
    table = read_ensemble_oof(output / "ensembles" / "pair" / "oof.csv")
    single = table[table["fold"] == 1]
    fold = contents.folds[1].auroc
    assert fold is not None
    assert fold.value == pytest.approx(roc_auc_score(single["label"], single["held_out"]))
    # Without b5 the blend is small alone, and the other way round.
    for member, other in zip(contents.members, contents.members[::-1], strict=True):
        assert member.gain is not None
        assert other.auroc is not None
        blended = roc_auc_score(table["label"], table["probability"])  # both are in sample
        assert member.gain.value == pytest.approx(blended - other.auroc.value)
    assert contents.comparisons[1].auroc == contents.members[0].auroc


def test_a_run_by_itself_is_an_ensemble_of_one(
    fit: Callable[..., None], make: Make, output: Path
) -> None:
    fit("name=alone", "members=[b5]")
    of_run, of_ensemble = make("run=b5"), make("name=alone")
    assert of_run.scores == of_ensemble.scores
    assert of_run.inputs.ensemble.threshold == of_ensemble.inputs.ensemble.threshold
    check(Page(output / "report" / "runs" / "b5" / "index.html"))
    assert "Run b5 finds" in Page(output / "report" / "runs" / "b5" / "index.html").words


def test_making_it_again_gives_the_same_page(make: Make, output: Path) -> None:
    folder = output / "report" / "runs" / "b5"
    pages = []
    for _ in range(2):
        make("run=b5")
        pages.append((folder / "index.html").read_bytes())
    assert pages[0] == pages[1]
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "model_card.md"]


@pytest.mark.usefixtures("undrawn")
def test_a_member_without_weight_adds_nothing(
    fit: Callable[..., None], make: Make, output: Path
) -> None:
    fit("name=pair", "members=[b5,small]")
    file = output / "ensembles" / "pair" / "ensemble.json"
    record = json.loads(file.read_text())
    for member in record["members"]:
        member["weight"] = float(member["name"] == "b5")
    file.write_text(json.dumps(record))
    first, second = make("name=pair").members
    assert first.gain is not None
    assert first.auroc is not None
    assert second.gain is not None
    assert second.auroc is not None
    assert first.gain.value == pytest.approx(first.auroc.value - second.auroc.value)
    assert first.gain.value != 0
    assert (second.gain.value, second.gain.low, second.gain.high) == (0, 0, 0)


@pytest.mark.usefixtures("undrawn")
def test_a_share_has_one_interval_in_a_report(make: Make) -> None:
    contents = make("run=b5")
    total = contents.groups[0]
    assert total.sensitivity == contents.scores["sensitivity"]
    assert total.specificity == contents.scores["specificity"]


@pytest.mark.usefixtures("undrawn")
def test_what_so_few_calls_can_find_at_most(make: Make) -> None:
    rows = {row.name: row for row in make("run=b5").operating}
    row = rows["recall rate 10 %"]  # of 240 breasts: 24, and 48 have cancer
    assert row.max_sensitivity == pytest.approx(0.5)
    assert row.scores["sensitivity"].value <= 0.5
    assert rows["specificity 97.8 %"].max_sensitivity is None
    assert rows["chosen, cross-fitted"].max_sensitivity is None


@pytest.mark.usefixtures("undrawn")
def test_a_fold_without_cancer_has_no_pf1(make: Make, output: Path) -> None:
    table = oof(range(100), 0)
    healthy = oof(range(100, 140), 1).query("label == 0")
    save_run(output / "runs" / "alone", table, healthy)
    folds = make("run=alone").folds
    assert folds[0].pf1 is not None
    assert (folds[1].pf1, folds[1].auroc, folds[1].average_precision) == (None, None, None)


@pytest.mark.usefixtures("undrawn")
def test_a_threshold_by_recall_rate_is_cross_fitted_as_such(
    fit: Callable[..., None], make: Make, output: Path
) -> None:
    fit("name=rate", "members=[b5]", "threshold=recall_rate", "recall_rate=0.1")
    scores = make("name=rate").scores
    record = json.loads((output / "ensembles" / "rate" / "ensemble.json").read_text())["score"]
    for name, stored in record["cross_fitted"].items():
        assert scores[name].value == pytest.approx(stored["value"])
        assert scores[name].low == pytest.approx(stored["low"])


def test_everything_the_ensemble_can_choose(
    fit: Callable[..., None], make: Make, output: Path
) -> None:
    fit("name=rich", "members=[b5,small]", "blend=rank_mean", "weights=fitted", "by_site=10",
        "calibration=platt")  # fmt: skip
    contents = make("name=rich")
    assert list(contents.calibration) == ["calibrated"]  # ranks are no probabilities
    page = Page(output / "report" / "rich" / "index.html")
    check(page)
    assert "Thresholds by site: site 1" in page.words


def test_one_fold_and_a_table_that_knows_nothing(make: Make, output: Path) -> None:
    save_run(output / "runs" / "alone", oof(range(100), 2))
    bare = ["patient_id", "laterality", "cancer", "view", "image_id"]
    save_table(output, table_of_images()[bare])
    contents = make("run=alone", "baseline=metadata")
    check(Page(output / "report" / "runs" / "alone" / "index.html"))
    assert [group.title for group in contents.groups] == ["all breasts", "views CC and MLO"]
    words = Page(output / "report" / "runs" / "alone" / "index.html").words
    assert "There is one fold" in words
    assert "No ages are recorded." in words
    assert "No manifest was found" in words


def test_unread_breasts_count_and_are_pointed_out(make: Make, output: Path) -> None:
    table = oof(range(100), 0)
    table.loc[:2, "unread"] = 1
    save_run(output / "runs" / "alone", table)
    make("run=alone", "samples=0")
    page = Page(output / "report" / "runs" / "alone" / "index.html")
    check(page)
    assert "3 breasts could not be read" in page.words
    assert "No baseline was compared" in page.words


def test_perfect_and_useless_models_have_a_page(make: Make, output: Path) -> None:
    table = oof(range(100), 0)
    save_run(output / "runs" / "perfect", table.assign(probability=0.1 + 0.8 * table["label"]))
    backwards = table.assign(probability=0.9 - 0.8 * table["label"] - table.index / 1e4)
    save_run(output / "runs" / "backwards", backwards)
    for name in ("perfect", "backwards"):
        make(f"run={name}")
        check(Page(output / "report" / "runs" / name / "index.html"))
    page = Page(output / "report" / "runs" / "perfect" / "index.html")
    assert "AUROC 1.000, no interval" in page.words
    assert "1.000 to 1.000" not in page.words
    assert "finds 100\u202f%" in " ".join(page.text)


def test_names_are_text_not_markup(make: Make, output: Path) -> None:
    table = table_of_images()
    table["machine_id"] = np.where(
        table["machine_id"] == 29, "<b>29</b> & $x$\n# [a](javascript:b) | `c`", "49"
    )
    save_table(output, table)
    make("run=b5")
    page = Page(output / "report" / "runs" / "b5" / "index.html")
    check(page)
    card = (output / "report" / "runs" / "b5" / "model_card.md").read_text()
    assert r"| Machine: \<b>29\</b> & $x$ # \[a](javascript:b) \| \`c\` |" in card
    assert "<b>29" not in page.source
    assert "<b>29</b> & $x$" in page.words


@pytest.mark.usefixtures("undrawn")
def test_a_card_gives_no_small_counts(make: Make, output: Path) -> None:
    table = table_of_images()
    table["implant"] = (table["patient_id"].astype(int) < 3).astype(int)  # one cancer
    save_table(output, table)
    make("run=b5")
    card = (output / "report" / "runs" / "b5" / "model_card.md").read_text()
    assert "| Implant: with | < 10 | < 10 | – |" in card
    assert "Contains images and identifiers" in (TEMPLATES / "report.html.j2").read_text()


@pytest.mark.usefixtures("undrawn")
def test_synthetic_and_optimistic_data_are_marked(make: Make, output: Path) -> None:
    save_run(output / "runs" / "chosen", oof(range(100), 0), select="best")
    (output / "data").mkdir()
    (output / "data" / "synthesize.yaml").touch()
    notices = make("run=chosen").notices
    assert any("are synthetic" in notice for notice in notices)
    assert any("chosen kept the epoch" in notice for notice in notices)
    assert any("enriched: 20" in notice for notice in notices)
    assert any("Only 20 breasts with cancer" in notice for notice in notices)


def test_the_gallery_shows_what_was_seen(
    fit: Callable[..., None], make: Make, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rsna_bcd.inference import saliency  # torch, for this test alone
    from rsna_bcd.tables.images import read_images

    class Looks:
        name = "small"
        images = read_images(output / "prepared" / "rsna" / "h512" / "train.csv", "train")

        def __call__(self, prediction_id: str) -> list[saliency.ExplainedImage]:
            crop, maps = np.full((64, 32), 99, np.uint8), np.eye(4, 2, dtype=np.float32)
            return [
                saliency.ExplainedImage("1", "CC", crop, maps),
                saliency.ExplainedImage("2", "MLO", crop, None),
            ]

    monkeypatch.setattr(saliency.Explainer, "for_ensemble", lambda *_: Looks())
    cases = make("run=b5", "cases=2").inputs.cases
    assert cases is not None
    assert {case.kind for case in cases} == {"miss", "false alarm", "find"}
    page = Page(output / "report" / "runs" / "b5" / "index.html")
    check(page)
    for case in cases:
        assert f"{case.prediction_id} · score {case.probability:.3f}" in page.words
    assert page.source.count("data:image/webp") == 6 + 3 * len(cases)
    assert page.words.count("(not used by the network)") == len(cases)
    assert "maps are those of one member" not in page.words
    fit("name=pair", "members=[b5,small]")
    of_pair = make("name=pair", "cases=1").inputs.cases
    assert of_pair
    words = Page(output / "report" / "pair" / "index.html").words
    assert "maps are those of one member, small," in words
    tables = [read_run(output / "runs" / name) for name in ("b5", "small")]
    for case in of_pair:
        of_b5, of_small = (
            float(t.loc[t["prediction_id"] == case.prediction_id, "probability"].iloc[0])
            for t in tables
        )
        assert case.own_probability == of_small != of_b5
        assert f"score {case.probability:.3f}, small alone {of_small:.3f}" in words


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "Give name= of an ensemble or run= of a run"),
        (["name=a", "run=b5"], "one of them"),
        (["name=absent"], r"ensemble\.json does not exist.*rsna_bcd\.ensemble name=absent"),
        (["run=absent"], "absent holds no trained fold"),
        (["run=b5", "baseline=absent"], "Fold 0 of absent was not trained"),
        (["run=b5", "resamples=1"], "resamples=1: a whole number of 2 or more"),
        (["run=b5", "band_resamples=0"], "band_resamples=0: a whole number of 2 or more"),
        (["run=b5", "samples=-1"], "samples=-1: a whole number of 0 or more"),
        (["run=b5", "cases=-1"], "cases=-1: a whole number of 0 or more"),
        (["run=b5", "groups=1"], "groups=1: a whole number of 2 or more"),
        (["run=b5", "cases=1.5"], "cases=1.5: a whole number"),
        (["run=b5", "seed=null"], "seed=None: a whole number"),
        (["run=b5", "cases=1"], r"checkpoint[\s\S]*cases=0"),
    ],
)
def test_bad_settings(make: Make, output: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(*overrides)
    assert not (output / "report").exists()


def test_a_table_without_the_breasts(make: Make, output: Path) -> None:
    save_table(output, table_of_images(200))
    with pytest.raises(InputError, match="lacks 40 of the predicted breasts, such as 200_L"):
        make("run=b5")
    (output / "prepared" / "rsna" / "h512" / "train.csv").unlink()
    with pytest.raises(InputError, match=r"train\.csv does not exist"):
        make("run=b5")


def test_one_absent_crop_can_be_left_out(make: Make, output: Path) -> None:
    next((output / "prepared" / "rsna" / "h512" / "train").glob("*.png")).unlink()
    with pytest.raises(InputError, match=r"png[\s\S]*Or leave the samples out with samples=0"):
        make("run=b5")


def test_a_member_whose_run_is_gone(fit: Callable[..., None], make: Make, output: Path) -> None:
    fit("name=pair", "members=[b5,small]")
    shutil.rmtree(output / "runs" / "small")
    with pytest.raises(InputError, match=r"all members, small among them[\s\S]*again without it"):
        make("name=pair")


def test_members_that_lost_breasts(fit: Callable[..., None], make: Make, output: Path) -> None:
    fit("name=pair", "members=[b5,small]")
    save_run(output / "runs" / "small", oof(range(90), 0, 1))
    stale = r"pair was fitted before[\s\S]*small, fold 0: predictions[\s\S]*members=\[b5,small\]"
    with pytest.raises(InputError, match=stale):
        make("name=pair")
