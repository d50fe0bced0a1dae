"""A test set of real size, of files that are used again and again, and an ensemble to submit it."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import torch
from commands import composed, run_command
from hydra.utils import instantiate
from omegaconf import DictConfig

from rsna_bcd._records import select_settings, write_record
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, Member, write_ensemble
from rsna_bcd.scoring.intervals import Interval
from rsna_bcd.scoring.thresholds import Plateau, Threshold

NAME = "benchmark"  # of the ensemble
_SEEN = ("CC", "MLO")  # views of each breast


def make_table(folder: Path, files: list[Path], images: int) -> Path:
    """Make a competition folder without a training part.

    Args:
        folder: where to.
        files: DICOM files or pictures; image n is a link to the n-th, and after the last to the
            first again.
        images: how many; a patient has four.

    Returns:
        The folder, to be given as `paths.data`.
    """
    patient, of_patient = pd.Series(range(images)) // 4 + 1, pd.Series(range(images)) % 4
    table = pd.DataFrame(
        {
            "site_id": 1,
            "patient_id": patient,
            "image_id": range(1, images + 1),
            "laterality": of_patient.map(lambda n: "LR"[n // 2]),
            "view": of_patient.map(lambda n: _SEEN[n % 2]),
            "age": 60,
            "implant": 0,
            "machine_id": 49,
        }
    )
    table["prediction_id"] = table["patient_id"].astype(str) + "_" + table["laterality"]
    for number, row in enumerate(table.itertuples()):
        file = files[number % len(files)].resolve()
        link = folder / "test_images" / str(row.patient_id) / f"{row.image_id}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    table.to_csv(folder / "test.csv", index=False)
    sample = table[["prediction_id"]].drop_duplicates().assign(cancer=0.02)
    sample.to_csv(folder / "sample_submission.csv", index=False)
    return folder


def make_ensemble(output: Path, experiments: list[list[str]], folds: int, onnx: bool) -> list[Path]:
    """Write the files that training and `ensemble` leave, with weights as the networks come.

    Args:
        output: `paths.output`.
        experiments: of each member, overrides of `train`.
        folds: networks of each member, which differ in nothing.
        onnx: export them as well, where that is installed.

    Returns:
        The folders of all runs, in the order of the ensemble.
    """
    members, runs = [], []
    for overrides in experiments:
        cfg = composed(*overrides, f"paths.output={output}")
        torch.manual_seed(0)
        network = instantiate(cfg.network)
        if network.unit == "image":
            with_batch_statistics(network, torch.rand(8, 1, 256, 128))
        network.eval()
        for fold in range(folds):
            runs.append(_save(Path(cfg.run_dir).with_name(f"fold{fold}"), cfg, fold, network))
        members.append(
            Member(
                name=cfg.name,
                folds=tuple(range(folds)),
                dataset=cfg.dataset.name,
                crop=cfg.crop.name,
                rule=cfg.breast_rule,
                select=cfg.select,
                weight=1 / len(experiments),
            )
        )
    if onnx and importlib.util.find_spec("onnxruntime"):
        for run in runs:
            of_fold = run.name.removeprefix("fold")
            run_command(
                "export", f"paths.output={output}", "format=onnx", f"name={run.parent.name}",
                f"fold={of_fold}",
            )  # fmt: skip
    write_ensemble(_ensemble(tuple(members)), output / "ensembles" / NAME / FILE_NAME)
    return runs


@torch.no_grad()
def with_batch_statistics(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give BatchNorm the statistics of a batch.

    With those of new layers, 0 and 1, deep networks leave the range of half precision.
    """
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _save(folder: Path, cfg: DictConfig, fold: int, network: torch.nn.Module) -> Path:
    """The files of a finished run."""
    keys = (
        "name", "seed", "select", "tta", "network", "crop", "views", "metadata", "breast_rule",
        "negatives_per_positive",
    )  # fmt: skip
    record = select_settings(cfg, *keys) | {
        "fold": fold,
        "source": "dicom",
        "dataset": {"name": "rsna"},
    }
    state = {f"network.{name}": values for name, values in network.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = {"state_dict": state, "config": record}
    torch.save(checkpoint, folder / "checkpoints" / f"{record['select']}.ckpt")
    write_record(folder / "config.yaml", record)
    (folder / "metrics.json").write_text(json.dumps({"name": record["name"], "fold": fold}))
    return folder


def _ensemble(members: tuple[Member, ...]) -> Ensemble:
    """A mean of the members; its scores stand for nothing."""
    nothing = {"pf1": Interval(0.5, 0.4, 0.6)}
    return Ensemble(
        name=NAME,
        blend="mean",
        members=members,
        policy="pf1",
        threshold=0.5,
        thresholds=Threshold(0.5, {}, recall_rate=0.1),
        plateau=Plateau(0.5, 0.5, 0.5, pf1=0.5, standard_error=0.1),
        cross_fitted_thresholds=(0.5, 0.5),
        calibration=None,
        prior=0.02,
        breasts=100,
        positives=2,
        score={"cross_fitted": nothing, "in_sample": nothing, "optimism": 0.0},
    )
