"""A sweep through Hydra's launchers leaves what single runs leave."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fabricated_crops import HEIGHT, WIDTH, save_crops
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rsna_bcd._stage import CONF

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

TINY = (
    "name=tiny", "crop=demo", f"crop.height={HEIGHT}", f"crop.width={WIDTH}",
    "network=test_resnet", "epochs=1", "batch_size=4", "workers=0", "trainer=cpu",
    "~callbacks.progress", "+trainer.enable_progress_bar=false",
)  # fmt: skip
LOCAL = (  # SLURM's launcher but for SLURM
    "hydra/launcher=submitit_local", "hydra.launcher.submitit_folder=${paths.output}/submitit/%j",
    "hydra.launcher.timeout_min=5",
)  # fmt: skip


def sweep(output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rsna_bcd.train", f"paths.output={output}", *TINY, *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=output, env=os.environ)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, trained one after the other."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    done = sweep(output, "-m", "fold=0,1")
    assert done.returncode == 0, done.stderr
    return output / "runs" / "tiny"


def check(output: Path, straight: Path) -> None:
    for fold in ("fold0", "fold1"):
        for table in ("oof.csv", "metrics.csv"):
            pd.testing.assert_frame_equal(
                pd.read_csv(output / "runs" / "tiny" / fold / table),
                pd.read_csv(straight / fold / table),
            )


def test_joblib_jobs_are_single_runs_also_beside_one_that_fails(
    straight: Path, tmp_path: Path
) -> None:
    save_crops(tmp_path)
    done = sweep(tmp_path, "-m", "fold=7,0,1", "hydra/launcher=side_by_side")
    assert done.returncode != 0
    assert "fold=7 does not exist" in done.stderr
    check(tmp_path, straight)
    assert not (tmp_path / "runs" / "tiny" / "fold7" / "config.yaml").exists()


@pytest.mark.slow
def test_submitit_jobs_are_single_runs(straight: Path, tmp_path: Path) -> None:
    save_crops(tmp_path)
    done = sweep(tmp_path, "-m", "fold=0,1", *LOCAL)
    assert done.returncode == 0, done.stderr
    check(tmp_path, straight)
    assert {p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()} == {"tiny"}


def test_slurm_is_configured_for_resumed_jobs(tmp_path: Path) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(
            "train",
            ["name=x", f"paths.output={tmp_path}", "hydra/launcher=slurm"],
            return_hydra_config=True,
        )
    launcher = OmegaConf.select(cfg, "hydra.launcher")
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.submitit_folder == f"{tmp_path}/submitit/%j"
    assert launcher.max_num_timeout == 5
