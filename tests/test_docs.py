"""README and docs: links, commands, examples, and the tests that keep the promises."""

import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations
import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra.utils import instantiate
from omegaconf import DictConfig
from stage_settings import composed

from rsna_bcd._stage import check
from rsna_bcd.inference.run import load_run
from rsna_bcd.models import losses
from rsna_bcd.models.prediction import check_network
from rsna_bcd.reporting import figures
from rsna_bcd.scoring import metrics
from rsna_bcd.settings import COMMANDS
from rsna_bcd.stages.train import train

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("docs/commands/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(EXAMPLE.findall((ROOT / "docs" / "extend.md").read_text(encoding="utf-8")))
SMALL = [
    "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}", "name=mine", "trainer=cpu",
    "epochs=1", "batch_size=4", "workers=0", "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
]  # fmt: skip


def anchors(page: Path) -> set[str]:
    """The headings of a page, as the repository's site and MyST spell their anchors."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in filter(None, (a or b for a, b in LINK.findall(text))):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_contents_of_the_site() -> None:
    listed = re.findall(r'"((?:commands/)?[a-z_]+)"', (ROOT / "docs" / "conf.py").read_text())
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        if name != "index" and not name.startswith("api/"):
            assert name in listed, name
            assert f"({name}.md)" in index, name


def test_guarantees_are_kept_by_tests_that_exist() -> None:
    named = re.findall(
        r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()
    )
    assert len(named) >= 40
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert f"def {name}(" in path.read_text(encoding="utf-8"), f"{file}::{name}"


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of this package in a page's shell blocks, with their arguments."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"] and words[2].startswith("rsna_bcd."):
                yield words[2].removeprefix("rsna_bcd."), words[3:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_settings_that_exist(page: Path) -> None:
    for name, arguments in commands(page):
        assert name in COMMANDS
        overrides = [a for a in arguments if a != "-m"]
        if any(
            Path(option).name in " ".join(overrides) for option in ("my_network", "dataset=mine")
        ):
            continue  # of an example
        # The first job of a sweep.
        overrides = [re.sub(r"^(fold|seed)=(\d)(,\d)+$", r"\1=\2", one) for one in overrides]
        cfg = composed(name, *overrides)
        check(name, cfg)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_studies_and_make_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file in re.findall(r"\b(?:benchmarks|docs|tests)/[\w/]+\.(?:py|yaml)\b", text):
        assert (ROOT / file).is_file(), f"{page.name}: {file}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE):
        assert "".join(target) in targets, f"{page.name}: make {''.join(target)}"


def execute(file: str, module: types.ModuleType) -> None:
    """Run an example as if it stood at the end of a module."""
    exec(compile(EXAMPLES[file], file, "exec", dont_inherit=True), module.__dict__)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder with the YAMLs of the examples."""
    for file, text in EXAMPLES.items():
        if file.endswith(".yaml"):
            target = tmp_path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    return tmp_path / "conf"


def configure(command: str, conf: Path, *overrides: str) -> DictConfig:
    return composed(command, f"hydra.searchpath=[file://{conf}]", *overrides)


@pytest.fixture
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of the examples, and their additions to modules of ours."""
    network = types.ModuleType("rsna_bcd.models.my_network")
    execute("rsna_bcd/models/my_network.py", network)
    monkeypatch.setitem(sys.modules, network.__name__, network)
    monkeypatch.setattr(losses, "Brier", None, raising=False)
    execute("rsna_bcd/models/losses.py", losses)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_examples")
def test_example_of_a_network_loss_and_augmentation_trains_and_is_loaded(
    conf: Path, tmp_path: Path
) -> None:
    save_crops(tmp_path)
    options = ["network=my_network", "loss=brier", "augment=erase"]
    cfg = configure("train", conf, f"paths.output={tmp_path}", *SMALL, *options)
    train(cfg)
    run = load_run(Path(cfg.run_dir))
    state = torch.load(Path(cfg.run_dir) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(run.network.state_dict()["head.weight"], state["network.head.weight"])


@pytest.mark.usefixtures("_examples")
def test_example_of_a_network_keeps_the_contract() -> None:
    network = sys.modules["rsna_bcd.models.my_network"].SmallNetwork()
    type(network).__module__ = "somewhere.else"  # ours are trusted
    batch = {"image": torch.zeros(2, 1, 64, 32, dtype=torch.uint8), "label": torch.zeros(2)}
    check_network(network, batch)


@pytest.mark.usefixtures("_examples")
def test_example_of_a_loss_is_the_brier_score() -> None:
    logits, labels = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    loss: Any = losses.Brier()  # type: ignore[attr-defined]
    assert float(loss(logits, labels)) == pytest.approx(metrics.brier(labels, logits.sigmoid()))


def test_example_of_an_augmentation_leaves_holes(conf: Path) -> None:
    cfg = configure("train", conf, "name=x", "augment=erase")
    augment = instantiate(cfg.augment)
    white = np.full((64, 32), 255, np.uint8)
    assert any((augment(white, (0, 0, index)) == 0).any() for index in range(8))
    assert albumentations.CoarseDropout.__name__ in EXAMPLES["conf/augment/erase.yaml"]


def test_example_of_a_dataset_maps_columns_and_values(conf: Path) -> None:
    cfg = configure("prepare", conf, "dataset=mine")
    check("prepare", cfg)
    table = pd.DataFrame(
        {"PatientID": ["7", "7"], "SOPInstanceUID": ["1", "2"], "side": ["left", "right"],
         "view": ["CC", "CC"], "pathology": ["malignant", "benign"], "path": ["a.dcm", "b.dcm"]}
    )  # fmt: skip
    rows = instantiate(cfg.dataset.rows)([table], "train")
    assert rows["laterality"].tolist() == ["L", "R"]
    assert rows["cancer"].astype(int).tolist() == [1, 0]
    assert rows["file"].tolist() == ["a.dcm", "b.dcm"]


def test_example_of_a_metric_is_that_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "OPERATING", dict(metrics.OPERATING))
    monkeypatch.setattr(metrics, "npv", None, raising=False)
    execute("rsna_bcd/scoring/metrics.py", metrics)
    assert metrics.OPERATING["npv"]([0, 0, 1, 1], [0, 0, 0, 1]) == pytest.approx(2 / 3)


def test_example_of_a_figure_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", [])
    monkeypatch.setattr(figures, "cumulative", None, raising=False)
    execute("rsna_bcd/reporting/figures.py", figures)
    breasts = SimpleNamespace(probabilities=np.array([0.1, 0.4, 0.8]), labels=np.array([0, 0, 1]))
    evaluation: Any = SimpleNamespace(in_sample_breasts=breasts)
    (drawn,) = figures.draw_figures(evaluation)["scores"]
    assert drawn.svg.startswith("<svg")


def test_example_of_an_experiment_composes(conf: Path) -> None:
    cfg = configure("train", conf, "experiment=lite0_brier")
    assert cfg.loss._target_.endswith("Brier")


def test_make_help_describes_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"\.PHONY: ((?:.*\\\n)*.*)", text)
    assert phony is not None
    for target in phony[1].replace("\\", "").split():
        assert re.search(rf"^{target} ", shown.stdout, re.MULTILINE), target
