"""The wheel carries `conf/` and runs a stage by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, without dependencies, into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    install = ["-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    site = folder / "site"
    subprocess.run([sys.executable, *install, "--target", site, wheel], check=True)
    return site


def test_a_stage_runs_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    assert (installed / "rsna_bcd" / "conf" / "train.yaml").is_file()
    assert (installed / "rsna_bcd" / "reporting" / "templates" / "report.html.j2").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "rsna_bcd.prepare", "--cfg", "job", "paths.data=elsewhere"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "data: elsewhere" in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "from rsna_bcd._stage import CONF; print(CONF)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()) == installed / "rsna_bcd" / "conf"
