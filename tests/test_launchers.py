"""A sweep through Hydra's launchers leaves the results of single runs."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fabricated_crops import save_crops
from omegaconf import OmegaConf
from stage_settings import composed
from tiny_training import TINY, run, run_command

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

LOCAL = (  # SLURM's launcher but for SLURM
    "hydra/launcher=submitit_local", "hydra.launcher.submitit_folder=${paths.output}/submitit/%j",
    "hydra.launcher.timeout_min=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single run."""
    output = tmp_path_factory.mktemp("straight")
    save_crops(output)
    return run(output, "epochs=1")


def check(output: Path, straight: Path) -> None:
    for table in ("oof.csv", "metrics.csv"):
        pd.testing.assert_frame_equal(
            pd.read_csv(output / "runs" / "tiny" / "fold0" / table), pd.read_csv(straight / table)
        )


def test_joblib_jobs_equal_single_runs_also_beside_one_that_fails(
    straight: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_crops(tmp_path)
    said = run_command(tmp_path, "epochs=1", "-m", "fold=7,0,8", "hydra/launcher=side_by_side")
    assert "fold=7 does not exist" in said
    reported = capfd.readouterr().err
    for job, fold in ((0, 7), (2, 8)):
        assert re.search(
            rf"Job {job} of the sweep failed \(.*fold{fold}\): fold={fold} does not", reported
        )
    check(tmp_path, straight)
    assert not (tmp_path / "runs" / "tiny" / "fold7" / "config.yaml").exists()


@pytest.mark.slow
def test_submitit_jobs_equal_single_runs(straight: Path, tmp_path: Path) -> None:
    save_crops(tmp_path)
    command = [sys.executable, "-m", "rsna_bcd.train", f"paths.output={tmp_path}", *TINY]
    done = subprocess.run([*command, "epochs=1", "-m", "fold=0,1", *LOCAL], cwd=tmp_path)
    assert done.returncode == 0
    check(tmp_path, straight)
    assert (tmp_path / "runs" / "tiny" / "fold1" / "oof.csv").exists()
    assert {p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()} == {"tiny"}


def test_slurm_is_configured_for_resumed_jobs(tmp_path: Path) -> None:
    settings = ("name=x", f"paths.output={tmp_path}", "hydra/launcher=slurm")
    cfg = composed("train", *settings, return_hydra_config=True)
    launcher = OmegaConf.select(cfg, "hydra.launcher")
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.submitit_folder == f"{tmp_path}/submitit/%j"
    assert launcher.max_num_timeout == 5
