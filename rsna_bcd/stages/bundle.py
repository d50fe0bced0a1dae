"""`python -m rsna_bcd.bundle`: an ensemble -> the folders of an offline submission to Kaggle."""

import shutil
from pathlib import Path

from omegaconf import DictConfig

from rsna_bcd._stage import CONF
from rsna_bcd.bundling import notebook, wheels
from rsna_bcd.bundling.image import IMAGE, write_image
from rsna_bcd.errors import InputError
from rsna_bcd.inference import run as runs
from rsna_bcd.models.backbone import describe_backbone
from rsna_bcd.models.checkpoint import (
    find_checkpoint,
    read_checkpoint,
    save_safetensors,
    weights_sha256,
)
from rsna_bcd.reporting.console import make_console
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, read_ensemble

_WHEELS = Path("dataset") / "wheels"  # in the bundle
_SOURCE = Path(CONF).parent  # the source tree: there is none around an installed package
_RUN_FILES = ("config.yaml", "metrics.json", "seen.json")  # older runs lack the last one


def bundle(cfg: DictConfig) -> Path:
    """Write the dataset and the notebook from scratch, and upload them if `push` is set.

    Returns:
        The folder of both.

    Raises:
        InputError: no such ensemble or run, a title that Kaggle does not take, wheels that cannot
            be fetched, or (`push`) no credentials.
    """
    if cfg.push is not None:
        notebook.check_credentials(cfg.owner)
    notebook.kaggle_slug(cfg.title)
    models = Path(cfg.paths.models)
    ensemble_file = models / "ensembles" / cfg.name / FILE_NAME
    ensemble = read_ensemble(ensemble_file)
    runs.check_current(ensemble, models)
    folder = Path(cfg.bundle_dir)
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    dataset = unfinished / "dataset"

    _copy_models(ensemble, models, dataset)
    copied = dataset / "ensembles" / cfg.name / FILE_NAME
    copied.parent.mkdir(parents=True)
    shutil.copy2(ensemble_file, copied)
    collected = _collect_wheels(cfg, unfinished, folder)
    notebook.write_dataset_metadata(dataset, owner=cfg.owner, title=cfg.title, licence=cfg.licence)
    keys = ("name", "owner", "title", "competition", "hours", "accelerator")
    notebook.write_notebook(unfinished / "kernel", **{key: cfg[key] for key in keys})

    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
    size = sum(f.stat().st_size for f in (folder / "dataset").rglob("*") if f.is_file())
    networks = sum(len(ensemble.predicting_folds(member)) for member in ensemble.members)
    make_console().print(
        f"{networks} network(s) and {len(collected)} wheels "
        f"({', '.join(wheel.name.split('-')[0] for wheel in collected)}), {size / 1e6:.0f} MB: "
        f"{folder / 'dataset'}\nThe notebook: {folder / 'kernel'}"
    )
    if cfg.push is not None:
        notebook.push(folder / "dataset", folder / "kernel", cfg.push)
    return folder


def _copy_models(ensemble: Ensemble, models: Path, dataset: Path) -> None:
    """Copy the files of each run that inference reads; checkpoints become safetensors."""
    for member in ensemble.members:
        for fold in ensemble.predicting_folds(member):
            place = Path("runs") / member.name / f"fold{fold}"
            run = runs.load_run(models / place)
            runs.check_crop_algorithm([run])
            (dataset / place).mkdir(parents=True)
            for name in _RUN_FILES:
                if (run.folder / name).is_file():
                    shutil.copy2(run.folder / name, dataset / place)
            for key, value in run.record["network"].items():
                content = describe_backbone(value) if isinstance(value, str) else None
                if content is not None:  # of the hub, which the notebook cannot reach
                    (dataset / place / key).mkdir()
                    (dataset / place / key / "config.json").write_text(content, encoding="utf-8")
            source = find_checkpoint(run.folder, member.select)
            assert source is not None  # it has just been loaded
            copy = dataset / place / "checkpoints" / f"{member.select}.safetensors"
            save_safetensors(read_checkpoint(source), copy)
            copied, ours = runs.load_run(dataset / place).network, run.network
            if weights_sha256(copied.state_dict()) != weights_sha256(ours.state_dict()):
                raise InputError(f"{copy} came out different from {source}. Try again.")


def _collect_wheels(cfg: DictConfig, unfinished: Path, before: Path) -> list[Path]:
    """This package's wheel, and those of its requirements that Kaggle's image lacks."""
    project = _SOURCE / "pyproject.toml"
    if not project.is_file():
        raise InputError("A bundle is made in the source tree of rsna_bcd, which has its lock.")
    lock = wheels.read_lock(Path(cfg.lock), cfg.python)
    image = wheels.with_dependencies(lock, cfg.image)
    write_image(unfinished / IMAGE, cfg.python, image)
    needed = wheels.with_dependencies(lock, wheels.direct_requirements(project) - set(cfg.unused))
    own = wheels.build_own_wheel(_SOURCE, unfinished / _WHEELS)
    return wheels.collect_wheels(
        {name: line for name, line in needed.items() if name not in image},
        own.parent,
        python=cfg.python,
        from_source=cfg.from_source,
        wheelhouse=None if cfg.wheelhouse is None else Path(cfg.wheelhouse),
        before=before / _WHEELS,
    )
