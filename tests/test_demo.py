"""The demo agrees with the README."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_network_finds_the_lesions_and_intensity_statistics_do_not() -> None:
    subprocess.run(["make", "demo"], cwd=ROOT, check=True)
    page = ROOT / "output" / "demo" / "report" / "demo" / "index.html"
    assert 100e3 < page.stat().st_size < 10e6
    file = ROOT / "output" / "demo" / "submissions" / "demo" / "evaluation.json"
    evaluation = json.loads(file.read_text())
    assert evaluation["positives"] >= 60
    assert evaluation["score"]["auroc"]["value"] >= 0.90
    assert evaluation["baseline"]["auroc"]["value"] <= 0.75
