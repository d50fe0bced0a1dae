"""The runner of `make gpu`: shares of the time, deadlines, finished steps, and imports."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import pandas as pd
import pytest
import study
from fabricated_wheels import stub_wheel
from study_config import read_study

from rsna_bcd.tables.folds import read_folds

ABSENT = (
    "wandb", "pydicom", "gdcm", "dicomsdl", "captum", "distributed", "dask", "albumentations",
    "openpyxl", "nbformat",
)  # fmt: skip


def command(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def row(name: str, **values: Any) -> str:
    return f"print({json.dumps(json.dumps({'name': name, **values}))}, flush=True)\n"


@pytest.fixture
def results(tmp_path: Path) -> gpu.Results:
    return gpu.Results(tmp_path / "results.jsonl")


def test_rows_are_kept_and_a_step_that_ends_is_finished(
    results: gpu.Results, tmp_path: Path
) -> None:
    script = row("a", value=1) + row("b", value=2)
    assert gpu.run_step("memory", command(script), 60, results, tmp_path / "log") == "finished"
    again = gpu.Results(tmp_path / "results.jsonl")
    assert again.rows["memory"] == {"a": {"name": "a", "value": 1}, "b": {"name": "b", "value": 2}}
    assert again.is_finished("memory")
    assert not again.is_finished("checks")


def test_a_step_is_killed_at_its_share_with_all_that_it_started(
    results: gpu.Results, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(alive)!r}, 'a').write('x'); time.sleep(.05)"
    script = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n{row('a', value=1)}time.sleep(60)"
    )
    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "GRACE", 0.3)
        state = gpu.run_step("memory", command(script), 3, results, tmp_path / "log")
    assert state == "stopped"
    assert time.monotonic() - begin < 10
    assert results.rows["memory"]["a"]["value"] == 1  # earlier results are kept
    assert not results.is_finished("memory")
    time.sleep(0.2)
    size = alive.stat().st_size
    time.sleep(0.3)
    assert alive.stat().st_size == size


@pytest.mark.parametrize(
    "script", [row("a", error="out of memory"), row("a") + "raise SystemExit(3)"]
)
def test_a_step_with_an_error_is_not_finished(
    script: str, results: gpu.Results, tmp_path: Path
) -> None:
    assert gpu.run_step("memory", command(script), 60, results, tmp_path / "log") == "failed"
    assert not gpu.Results(tmp_path / "results.jsonl").is_finished("memory")


def test_what_is_forgotten_is_that_alone(results: gpu.Results) -> None:
    for step in ("checks", "memory"):
        results.add(step, {"name": "a", "value": 1})
        results.add(step, {"state": "finished", "seconds": 1.0})
    results.forget(["memory"])
    assert results.is_finished("checks")
    assert not results.is_finished("memory")
    assert results.rows["memory"] == {}
    assert results.rows["checks"] != {}


def test_shares_fill_the_time_and_unused_time_passes_on() -> None:
    ahead, left, total = list(gpu.STEPS), 520.0, 0.0
    while ahead:
        limit = gpu.step_limit(ahead[0], ahead, left)
        used = 5.0 if ahead[0] == "throughput" else limit
        total, left, ahead = total + used, left - used, ahead[1:]
    assert total <= 520
    assert gpu.step_limit("checks", list(gpu.STEPS), 520) <= 80  # the first ends within 90 s
    assert gpu.step_limit("memory", ["memory"], 400) == 400
    assert sum(gpu.SHARES.values()) <= 540 - len(gpu.STEPS) * gpu.GRACE / 2


def test_arguments() -> None:
    assert gpu.parse([])["steps"].split(",") == list(gpu.STEPS)
    assert gpu.parse(["steps=[memory,checks]"])["steps"] == "checks,memory"  # in their order
    with pytest.raises(SystemExit, match="no step speed; there are checks, throughput"):
        gpu.parse(["steps=checks,speed"])
    with pytest.raises(SystemExit, match="unknown step; there are steps"):
        gpu.parse(["step=checks"])


def test_the_report_says_what_was_not_measured(results: gpu.Results) -> None:
    machine = {"device": "NVIDIA H100", "about": "a card"}
    rate = {"images_per_second": 300.0, "over_bare": 0.96}
    results.add("throughput", {"name": "lite0, ours, compiled", **rate})
    results.add("throughput", {"name": "lite0, float32 eager", "images_per_second": 100.0})
    results.add("throughput", {"state": "stopped", "seconds": 9.0})
    text = gpu.report(results, machine)
    assert "## throughput: stopped after 9 s" in text
    assert "## study: not run" in text
    assert "| lite0: compiled bf16 over float32 eager, at least 2 | 3 | yes |" in text
    assert "| lite0: our step over the bare loop, at least .97 | 0.96 | no |" in text
    assert "| effnet_b5: wait for data, at most .03 | not measured |  |" in text


def test_a_second_call_skips_what_is_finished(tmp_path: Path) -> None:
    root = Path(gpu.__file__).parent
    folder = tmp_path / "processor"
    folder.mkdir()
    results = gpu.Results(folder / "results.jsonl")
    results.add("memory", {"name": "lite0", "card": 7})
    results.add("memory", {"state": "finished", "seconds": 1.0})
    arguments = [f"output={tmp_path}", "device=cpu", "steps=memory"]
    said = subprocess.run(
        [sys.executable, str(root / "gpu.py"), *arguments],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "No GPU is used" in said
    assert "memory: finished already" in said
    assert "| lite0 | 7 |" in (folder / "report.md").read_text()


def test_wheels_are_installed_aside_where_their_package_is_missing(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    stub_wheel(tmp_path / "wheels", "package-of-no-one", "1.0")
    stub_wheel(tmp_path / "wheels", "hydra_core", "0.1")  # there is one already
    folder = gpu.install_wheels(tmp_path, tmp_path)
    assert [file.name for file in folder.glob("*.py")] == ["package_of_no_one.py"]


def test_what_is_not_used_is_not_imported() -> None:
    """W&B, DICOM and albumentations may be absent: a step of an experiment is trained without."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"  # None: not importable
        "import commands, gpu, gpu_throughput, gpu_inference, study, study_heads, torch\n"
        "import rsna_bcd.train, rsna_bcd.submit, rsna_bcd.export\n"
        "cfg = commands.composed(*gpu_throughput.overrides('lite0', True))\n"
        "classifier = gpu_throughput.make_classifier(cfg)\n"
        "step = gpu_throughput.make_step(cfg, classifier, torch.device('cpu'), compiled=False)\n"
        "assert step(gpu_throughput.random_batch(cfg, 'image', 2)).isfinite()\n"
        "for name in ('captum', 'dask', 'albumentations'): del sys.modules[name]\n"
        "import study_runs, rsna_bcd.stages.submit, rsna_bcd.stages.train\n"
    )
    paths = os.pathsep.join([str(gpu.ROOT), str(gpu.ROOT / "benchmarks")])
    environment = {**os.environ, "PYTHONPATH": paths}
    assert subprocess.run(command(script), check=False, env=environment).returncode == 0


def test_the_study_without_a_pack_has_crops_of_its_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distilled variant needs a teacher of each fold."""
    folds: list[object] = []

    def spy(config: Path, data: Path, *_: object, **__: object) -> pd.DataFrame:
        made = read_folds(data / "folds" / "study-stratified.csv")["fold"]
        folds.extend([sorted(made.unique()), list(read_study(config).folds)])
        return pd.DataFrame({"variant": ["small"], "missing": [""]})

    monkeypatch.setattr(study, "run_study", spy)
    context = gpu.Context("cpu", tmp_path, None, time.monotonic() + 60)
    assert list(gpu.study(context)) == [{"name": "small", "missing": ""}]
    assert folds[0] == folds[1]


@pytest.mark.slow
def test_all_steps_on_the_processor(tmp_path: Path) -> None:
    arguments = ["device=cpu", f"output={tmp_path}", "seconds=7200"]  # no step is to be cut short
    subprocess.run(
        [sys.executable, str(gpu.ROOT / "benchmarks" / "gpu.py"), *arguments], check=True
    )
    results = gpu.Results(tmp_path / "processor" / "results.jsonl")
    assert [step for step in gpu.STEPS if not results.is_finished(step)] == []
    outcomes = {r["outcome"] for r in results.rows["checks"].values()}
    assert outcomes <= {"passed", "skipped"}
    assert len(results.rows["throughput"]) == 15
    assert (tmp_path / "processor" / "report.md").is_file()
