"""Training on several processes equals training on one, and ends with all of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from tiny_training import SMALL, fork, run, run_command

from rsna_bcd._stage import main
from rsna_bcd.errors import InputError
from rsna_bcd.models.classifier import Classifier
from rsna_bcd.models.launch import _STARTED_BY, _free_port

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = (
    *SMALL, "name=x", "epochs=2", "network.backbone=test_convnext", "network.pretrained=false",
    "network.dropout=0.0",
)  # fmt: skip
ON_CPUS = ("trainer.accelerator=cpu", "trainer.precision=32-true")
# SGD: Adam's first steps follow the sign of a gradient, also where it is nothing but rounding.
COMPARED = (
    "batch_size=6", "negatives_per_positive=1", "learning_rate=0.01", "loss=ranking",
    "optimizer._target_=torch.optim.SGD", "ema.decay=0.9", "trainer.accumulate_grad_batches=2",
)  # fmt: skip
N_BREASTS = 19  # held out; no multiple of two or three ranks


def train_and_save_batches(output: Path, rank: int, *overrides: str) -> None:
    """Train, and leave the rows of every batch."""
    batches: list[list[int]] = []

    def note(self: Classifier, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        batches.append(batch["index"].tolist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_end", note)
        run(output, *overrides, settings=TINY)
    (output / f"batches{rank}.json").write_text(json.dumps(batches))


def rank_variables(rank: int, n: int, launcher: str) -> dict[str, str]:
    """The variables of a process that `run_ranks`, torchrun or srun has started."""
    if launcher == "srun":
        return {
            "SLURM_NTASKS": str(n), "SLURM_NTASKS_PER_NODE": str(n), "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NNODES": "1",
            "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1234", "SLURM_NODELIST": "127.0.0.1",
        }  # fmt: skip
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)}
    if launcher == "ours":
        return own | {"NODE_RANK": "0", _STARTED_BY: str(os.getpid())}
    return own | {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(n)}


def on_ranks(n: int, launcher: str, work: Callable[[int], object]) -> None:
    """Work in forked processes, which need not import torch and Lightning again."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}

    def as_rank(rank: int, variables: dict[str, str]) -> None:
        os.environ |= variables
        setattr(rank_zero_only, "rank", rank)  # noqa: B010  (Lightning sets it at import)
        work(rank)

    variables = [address | rank_variables(rank, n, launcher) for rank in range(n)]
    processes = [fork(as_rank, rank, own) for rank, own in enumerate(variables)]
    for process in processes:
        process.join()
        assert process.exitcode == 0


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run on a single process."""
    output = tmp_path_factory.mktemp("one")
    folder = save_crops(output, n_patients=20)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    folds = pd.read_csv(output / "folds" / "rsna-stratified.csv", dtype={"patient_id": str})
    held_out = table["patient_id"].isin(folds.loc[folds["fold"] == 0, "patient_id"])
    last = table[held_out].iloc[-1]
    gone = (table["patient_id"] == last["patient_id"]) & (table["laterality"] == last["laterality"])
    table[~gone].to_csv(folder / "train.csv", index=False)
    train_and_save_batches(output, 0, *COMPARED, "trainer=cpu")
    return output


@pytest.mark.parametrize(("n", "launcher"), [(2, "torchrun"), (3, "srun")])
def test_ranks_train_and_validate_as_one_process(
    n: int, launcher: str, one: Path, tmp_path: Path
) -> None:
    for part in ("prepared", "folds"):
        (tmp_path / part).symlink_to(one / part)
    ddp = ["trainer=ddp", f"trainer.devices={n}"]
    trainer = ["trainer=slurm"] if launcher == "srun" else ddp
    settings = (*COMPARED, *trainer, *ON_CPUS)
    on_ranks(n, launcher, lambda rank: train_and_save_batches(tmp_path, rank, *settings))
    expected, found = one / "runs/x/fold0", tmp_path / "runs/x/fold0"

    # The k-th batches of all ranks are together the k-th batch of one process.
    straight = json.loads((one / "batches0.json").read_text())
    shares = [json.loads((tmp_path / f"batches{rank}.json").read_text()) for rank in range(n)]
    together = [sorted(sum(parts, [])) for parts in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in straight]

    # The same rows, weights, predictions and figures, at every epoch.
    a, b = (pd.read_csv(folder / "oof.csv") for folder in (expected, found))
    assert len(a) == N_BREASTS
    pd.testing.assert_frame_equal(a.drop(columns="logit"), b.drop(columns="logit"), atol=1e-6)
    assert a["logit"].to_numpy() == pytest.approx(b["logit"].to_numpy(), abs=1e-5)
    a, b = (pd.read_csv(folder / "metrics.csv") for folder in (expected, found))
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=1e-6)
    weights = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (expected, found)
    ]
    worst = max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0])
    assert worst < 1e-6
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (expected, found))
    assert a == pytest.approx(b, abs=1e-6)


ON_RANKS = (*TINY, "trainer=ddp", *ON_CPUS, "trainer.devices=2")


def command(output: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [
        *(sys.executable, "-m", *launcher, "rsna_bcd.train", f"paths.output={output}"),
        *(*ON_RANKS, *overrides),
    ]


def execute(output: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> Any:
    arguments = command(output, *overrides, launcher=launcher)
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_train_starts_its_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BatchNorm, which trainer=ddp synchronises on GPUs; CPUs cannot."""

    def run_ranks(command: list[str], n: int) -> None:
        def work(rank: int) -> None:
            assert command[:3] == [sys.executable, "-m", "rsna_bcd.train"]
            monkeypatch.setattr(sys, "argv", command[2:])
            GlobalHydra.instance().clear()
            main("train")

        on_ranks(n, "ours", work)

    monkeypatch.setattr("rsna_bcd.stages.train.run_ranks", run_ranks)
    save_crops(tmp_path)
    settings = ("epochs=1", "network.backbone=test_efficientnet")
    assert run_command(tmp_path, *settings, settings=ON_RANKS) == ""
    assert len(pd.read_csv(tmp_path / "runs/x/fold0/oof.csv")) == 8
    assert "Processors have no SyncBatchNorm" in capfd.readouterr().out


def stopped(
    arguments: list[str], when: Callable[[], bool], how: signal.Signals
) -> "subprocess.Popen[str]":
    """Run until something is so, and signal the process that was started: it alone."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not when():
        time.sleep(0.01)
    process.send_signal(how)
    return process


def ranks_in(output: Path) -> list[str]:
    """Processes that still train in a folder."""
    lines = [
        path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    ]
    return [line for line in lines if "rsna_bcd.train" in line and str(output) in line]


@pytest.mark.slow
def test_a_job_that_fails_on_its_ranks_does_not_stop_the_sweep(tmp_path: Path) -> None:
    save_crops(tmp_path)
    backbones = ["-m", "network.backbone=absent,test_efficientnet", "name=x_${network.backbone}"]
    done = execute(tmp_path, "epochs=1", *backbones)
    assert done.returncode == 1
    assert re.search(r"error: Rank [01] of 2 ended with exit code 1", done.stderr)
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs/x_test_efficientnet/fold0/oof.csv").exists()
    assert not (tmp_path / "runs/x_absent/fold0/config.yaml").exists()


def test_settings_that_ranks_cannot_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_crops(tmp_path)
    for overrides, part in (
        (["trainer=ddp", "trainer.accelerator=cpu"], "trainer.devices=2"),
        (["trainer=ddp", "trainer.num_nodes=2"], "torchrun or srun"),
        (["trainer=ddp", "trainer.devices=3", "batch_size=4"], "multiple of their number, 3"),
    ):
        with pytest.raises(InputError, match=part):
            run(tmp_path, *overrides, settings=TINY)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one of 2 processes"):
        run(tmp_path, "trainer=cpu", settings=TINY)


@pytest.mark.slow
def test_a_sweep_on_ranks_writes_one_folder_per_job(tmp_path: Path) -> None:
    save_crops(tmp_path)
    done = execute(tmp_path, "epochs=1", "-m", "fold=0,1", "seed=0,1", "name=x_s${seed}")
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent for path in (tmp_path / "runs").rglob("metrics.json"))
    assert [str(run.relative_to(tmp_path / "runs")) for run in runs] == [
        f"x_s{seed}/fold{fold}" for seed in (0, 1) for fold in (0, 1)
    ]
    for job in runs:
        record = OmegaConf.load(job / "config.yaml")
        assert (f"x_s{record.seed}", f"fold{record.fold}") == (job.parent.name, job.name)
        assert (pd.read_csv(job / "oof.csv")["fold"] == record.fold).all()
    oof = [pd.read_csv(run / "oof.csv")["logit"].to_numpy() for run in runs]
    assert not np.allclose(oof[0], oof[2])  # another seed on every rank
    without_name = execute(tmp_path, "epochs=1", "-m", "seed=0,1", "name=y")
    assert without_name.returncode != 0
    assert "write the same" in without_name.stderr


@pytest.mark.slow
def test_torchrun_trains_a_job_and_no_sweep(tmp_path: Path) -> None:
    save_crops(tmp_path)
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "-m")
    sweep = execute(tmp_path, "-m", "fold=0,1", launcher=torchrun)
    assert sweep.returncode != 0
    assert "Start each job by itself" in sweep.stderr
    job = execute(tmp_path, launcher=torchrun)
    assert job.returncode == 0, job.stderr
    assert len(pd.read_csv(tmp_path / "runs/x/fold0/oof.csv")) == 8


@pytest.mark.slow
def test_a_rank_that_fails_while_it_trains_ends_all(tmp_path: Path) -> None:
    folder = save_crops(tmp_path)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    folds = pd.read_csv(tmp_path / "folds" / "rsna-stratified.csv", dtype=str)
    held_out = table[table["patient_id"].isin(folds.loc[folds["fold"] == "0", "patient_id"])]
    (folder / held_out["path"].iloc[1]).write_bytes(b"no picture")  # of the second rank
    done = execute(tmp_path)
    assert done.returncode == 1
    assert "Rank " in done.stderr
    assert f"{held_out['path'].iloc[1]} is absent or damaged" in done.stderr
    assert not (tmp_path / "runs/x/fold0/metrics.json").exists()


@pytest.mark.slow
def test_ranks_that_were_killed_or_stopped_resume_to_the_bit(tmp_path: Path) -> None:
    recipe = ["network.dropout=0.5", "ema.decay=0.8", "epochs=3"]
    broken, straight = tmp_path / "broken", tmp_path / "straight"
    for output in (broken, straight):
        save_crops(output)
    arguments, run_dir = command(broken, *recipe), broken / "runs/x/fold0"
    killed = stopped(arguments, (run_dir / "checkpoints/last.ckpt").exists, signal.SIGKILL)
    killed.wait()
    interrupted = stopped(arguments, lambda: len(ranks_in(broken)) == 3, signal.SIGINT)
    _, said = interrupted.communicate(timeout=30)
    assert interrupted.returncode == 130
    assert said.endswith(
        "Stopped by SIGINT. Finished epochs are kept: run the same command to resume.\n"
    )
    assert "Traceback" not in said
    assert ranks_in(broken) == []
    assert not (run_dir / "metrics.json").exists()
    assert execute(broken, *recipe).returncode == 0
    assert execute(straight, *recipe).returncode == 0
    found, expected = (
        torch.load(o / "runs/x/fold0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for o in (broken, straight)
    )
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    for table in ("oof.csv", "metrics.csv"):
        assert (run_dir / table).read_bytes() == (straight / "runs/x/fold0" / table).read_bytes()
