"""The wheel carries `conf/` and runs a stage by itself."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_runs_a_stage(tmp_path: Path) -> None:
    site = tmp_path / "site"
    build = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = ["-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--target"]
    subprocess.run([sys.executable, *install, site, wheel], check=True)
    assert (site / "rsna_bcd" / "reporting" / "templates" / "report.html.j2").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "rsna_bcd.prepare", "--cfg", "job", "paths.data=elsewhere"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "data: elsewhere" in done.stdout
    conf = [file.relative_to(ROOT) for file in (ROOT / "conf").rglob("*.yaml")]
    assert all((site / "rsna_bcd" / file).is_file() for file in conf)
