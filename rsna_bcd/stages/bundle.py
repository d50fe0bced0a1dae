"""`python -m rsna_bcd.bundle`: an ensemble -> the folders of an offline submission to Kaggle."""

import shutil
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from rsna_bcd._stage import CONF
from rsna_bcd.bundling.image import IMAGE, write_image
from rsna_bcd.bundling.lock import as_requirements, closure, read_lock, requirements_of
from rsna_bcd.bundling.notebook import (
    slug_of,
    write_dataset_metadata,
    write_kernel_metadata,
    write_notebook,
)
from rsna_bcd.bundling.push import check_push, push
from rsna_bcd.bundling.wheels import build_own_wheel, collect_wheels
from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import (
    check_crop_algorithm,
    check_current,
    find_checkpoint,
    load_run,
    read_checkpoint,
    save_safetensors,
)
from rsna_bcd.models.exporting import fingerprint
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, read_ensemble

_WHEELS = Path("dataset") / "wheels"  # in the bundle
_SOURCE = Path(CONF).parent  # the source tree: there is none around an installed package
_OF_A_RUN = ("config.yaml", "metrics.json", "seen.json")  # the last one since training writes it


def bundle(cfg: DictConfig) -> Path:
    """Write the dataset and the notebook, always afresh, and send them to Kaggle if asked to.

    Returns:
        The folder of both.

    Raises:
        InputError: no such ensemble or run, a title that Kaggle does not take, wheels that cannot
            be had, or (`push`) no credentials.
    """
    how = None if cfg.push is None else check_push(cfg.push, cfg.owner)
    models = Path(cfg.paths.models)
    ensemble_file = models / "ensembles" / cfg.name / FILE_NAME
    ensemble = read_ensemble(ensemble_file)
    check_current(ensemble, models)
    slug = slug_of(cfg.title)
    folder = Path(cfg.bundle_dir)
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    dataset, kernel = unfinished / "dataset", unfinished / "kernel"

    _copy_models(ensemble, models, dataset)
    copied = dataset / "ensembles" / cfg.name / FILE_NAME
    copied.parent.mkdir(parents=True)
    shutil.copy2(ensemble_file, copied)
    wheels = _collect_wheels(cfg, unfinished, folder)
    write_dataset_metadata(dataset, owner=cfg.owner, title=cfg.title, licence=cfg.licence)
    write_notebook(
        kernel, name=cfg.name, dataset=slug, competition=cfg.competition, hours=cfg.hours
    )
    write_kernel_metadata(
        kernel,
        owner=cfg.owner,
        title=f"{cfg.title} submit",
        dataset=slug,
        competition=cfg.competition,
        accelerator=cfg.accelerator,
    )

    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
    _summarise(folder, ensemble, wheels)
    if how is not None:
        push(folder / "dataset", folder / "kernel", how)
    return folder


def _copy_models(ensemble: Ensemble, models: Path, dataset: Path) -> None:
    """Copy what inference reads of each run; checkpoints as safetensors, seen to be the same."""
    for member in ensemble.members:
        for k in member.folds:
            place = Path("runs") / member.name / f"fold{k}"
            run = load_run(models / place)
            check_crop_algorithm([run])
            (dataset / place).mkdir(parents=True)
            for name in _OF_A_RUN:
                if (run.folder / name).is_file():
                    shutil.copy2(run.folder / name, dataset / place)
            source = find_checkpoint(run.folder, member.select)
            assert source is not None  # it has just been loaded
            copy = dataset / place / "checkpoints" / f"{member.select}.safetensors"
            save_safetensors(read_checkpoint(source), copy)
            if fingerprint(load_run(dataset / place).network) != fingerprint(run.network):
                raise InputError(f"{copy} came out different from {source}. Try again.")


def _collect_wheels(cfg: DictConfig, unfinished: Path, before: Path) -> list[Path]:
    """This package's wheel, and those of what it requires and Kaggle's image lacks."""
    project = _SOURCE / "pyproject.toml"
    if not project.is_file():
        raise InputError("A bundle is made in the source tree of rsna_bcd, which has its lock.")
    lock = read_lock(Path(cfg.lock))
    image = closure(lock, cfg.image)
    write_image(unfinished / IMAGE, cfg.python, as_requirements(lock, image, cfg.python))
    needed = closure(lock, requirements_of(project) - set(cfg.unused)) - image
    own = build_own_wheel(_SOURCE, unfinished / _WHEELS)
    return collect_wheels(
        as_requirements(lock, needed, cfg.python),
        own.parent,
        python=cfg.python,
        from_source=cfg.from_source,
        wheelhouse=None if cfg.wheelhouse is None else Path(cfg.wheelhouse),
        before=before / _WHEELS,
    )


def _summarise(folder: Path, ensemble: Ensemble, wheels: list[Path]) -> None:
    """Say what is in the folder."""
    size = sum(f.stat().st_size for f in (folder / "dataset").rglob("*") if f.is_file())
    networks = sum(len(member.folds) for member in ensemble.members)
    Console(markup=False).print(
        f"{networks} network(s) and {len(wheels)} wheels "
        f"({', '.join(wheel.name.split('-')[0] for wheel in wheels)}), {size / 1e6:.0f} MB: "
        f"{folder / 'dataset'}\nThe notebook: {folder / 'kernel'}",
        highlight=False,
        soft_wrap=True,
    )
