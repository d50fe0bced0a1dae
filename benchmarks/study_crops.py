"""The crops of a study: there already, resized from larger ones, or prepared from the images."""

import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import cv2
import pandas as pd
from commands import run_command
from omegaconf import DictConfig, OmegaConf
from study_config import Study

from rsna_bcd._records import select_settings, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.files import file_sha256, write_file
from rsna_bcd.imaging.crops import read_crop

_SIZE = ("name", "height", "width")
_STRETCH = 0.03  # relative: 640 x 352 for 344 x 192


def make_crops(
    study: Study, data: Path, output: Path, configurations: Mapping[str, DictConfig]
) -> dict[str, str]:
    """Make the crops that variants need and that are not there.

    Args:
        study: names the data set.
        data: a folder with `prepared/` and `folds/`, as `prepare` and `gpu_pack` leave them; or a
            data set's own, with images, of which crops are made in `output`; or one that does not
            exist and that the study synthesizes.
        output: gets crops that are made.
        configurations: of `train`, by variant.

    Returns:
        The variants whose crops cannot be had, each with the reason.

    Raises:
        InputError: the output is of other data, or the crops of the reference cannot be had.
    """
    is_unfinished = (data / "synthesize.yaml").is_file() and not (data / "lesions.csv").is_file()
    if study.synthesize and (is_unfinished or not data.is_dir()):
        run_stage("synthesize", f"paths.data={quoted(data)}", *study.synthesize)
    is_prepared = (data / "prepared").is_dir()
    if is_prepared and data.resolve() != output.resolve():
        _link(data, output)
    folds = Path(configurations[study.reference].folds_csv).name
    tables = (data / "folds" / folds,) if is_prepared else _tables(data)
    _check_data(data, output)
    absent: dict[str, str] = {}
    for variant, cfg in configurations.items():
        folder = Path(cfg.prepared_dir)
        # Training checks that it was made with these settings.
        is_there = (folder / "config.yaml").is_file() and (folder / "train.csv").is_file()
        try:
            if is_prepared and not is_there:
                crop = select_settings(cfg, "crop")["crop"]
                _resize(_larger(study, cfg, folder), folder, crop, study.patients)
            elif not is_there:
                run_stage("prepare", f"paths.data={quoted(data)}", *_prepare_overrides(study, cfg))
        except InputError as error:
            if variant == study.reference:
                raise
            absent[variant] = str(error)
        else:
            _record_data(data, output, tables)
    return absent


def _tables(data: Path) -> list[Path]:
    """The tables of a data set, by which it is told from others."""
    kinds = (".csv", ".tsv", ".xls", ".xlsx")
    return sorted(file for file in data.iterdir() if file.suffix.lower() in kinds)


def _record_data(data: Path, output: Path, tables: Sequence[Path]) -> None:
    """Write `data.json`, which says which data the crops are of, if there is none."""
    if not (record := output / "data.json").is_file():
        hashes = {str(file.relative_to(data)): file_sha256(file) for file in tables}
        write_file(record, json.dumps({"data": str(data), "sha256": hashes}) + "\n")


def _check_data(data: Path, output: Path) -> None:
    """Refuse an output that has crops and runs of other data, which may have been moved.

    An output without a record, of an older version, is taken to be of these.
    """
    record = output / "data.json"
    if not record.is_file():
        return
    found = json.loads(record.read_text())
    for name, sha256 in found["sha256"].items():
        if not (data / name).is_file() or file_sha256(data / name) != sha256:
            raise InputError(
                f"{output} has crops and runs of data={found['data']} with another {name} than "
                f"{data / name}. Choose another output=."
            )


def _prepare_overrides(study: Study, cfg: DictConfig) -> list[str]:
    """Overrides of `rsna_bcd.prepare` that make the crops of a configuration from images."""
    crop = [f"crop.{k}={quoted(v)}" for k, v in cfg.crop.items() if not str(k).startswith("_")]
    return [
        f"paths.output={quoted(cfg.paths.output)}", f"dataset.name={study.dataset}",
        f"source={study.source}", "splits=[train]", *crop, *study.prepare,
    ]  # fmt: skip


def _link(data: Path, output: Path) -> None:
    """Let stages that are given `paths.output=<output>` find crops and folds.

    Raises:
        InputError: there are no folds, or the output is of other data.
    """
    folds = sorted((data / "folds").glob("*.csv"))
    if not folds:
        raise InputError(f"There are no folds in {data / 'folds'}: copy them with the crops.")
    for entry in (*folds, *sorted(data.glob("prepared/*/*/"))):
        target = output / entry.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() and not target.exists():  # the data were moved
            target.unlink()
        if not target.exists():
            target.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        elif target.is_symlink() and target.resolve() != entry.resolve():
            raise InputError(
                f"{target} is of {target.resolve()}, and not of data={data}. Choose another "
                "output=."
            )


def _larger(study: Study, cfg: DictConfig, folder: Path) -> Path:
    """The smallest prepared folder that differs in its size alone: not smaller, of its aspect."""
    wanted = select_settings(cfg, "crop")["crop"]
    found = []
    for record in folder.parent.glob("*/config.yaml"):
        made: Any = OmegaConf.to_container(OmegaConf.load(record))
        crop = made["crop"]
        alike = {k: v for k, v in crop.items() if k not in _SIZE}
        height, width = (crop[side] / wanted[side] for side in ("height", "width"))
        fits = min(height, width) >= 1 and abs(height / width - 1) <= _STRETCH
        is_like = fits and alike == {k: v for k, v in wanted.items() if k not in _SIZE}
        if is_like and "resized_from" not in made:
            found.append((crop["height"] * crop["width"], record.parent))
    if not found:
        raise InputError(
            f"{folder} does not exist, and no larger crops of the same settings and aspect are "
            "beside it. Prepare them:\n  python -m rsna_bcd.prepare paths.data=<images> "
            + shlex.join(_prepare_overrides(study, cfg))
        )
    return min(found)[1]


def _resize(source: Path, target: Path, crop: dict[str, Any], patients: int | None) -> None:
    """Make a prepared folder of the crops of another, by area interpolation.

    It is marked (`resized_from`): the aspect may differ by `_STRETCH`, and pixels were interpolated
    twice.
    """
    table = pd.read_csv(source / "train.csv", dtype=str)
    if patients is not None:
        table = table[table["patient_id"].isin(_sample(table, patients))]
    rows = table[table["path"].notna()]
    paths = rows["path"].str.replace(r"\.\w+$", ".png", regex=True)

    def make(old: str, new: str) -> None:
        pixels = read_crop(source / old)
        (target / new).parent.mkdir(parents=True, exist_ok=True)
        size = (crop["width"], crop["height"])
        if not cv2.imwrite(
            str(target / new), cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        ):
            raise InputError(f"{target / new} cannot be written. Make room on the disk.")

    with ThreadPoolExecutor() as threads:
        list(threads.map(make, rows["path"], paths))
    table.assign(path=paths).to_csv(target / "train.csv", index=False)
    made: Any = OmegaConf.to_container(OmegaConf.load(source / "config.yaml"))
    resized_from = {"name": made["crop"]["name"], "patients": patients}
    write_record(target / "config.yaml", {**made, "crop": crop, "resized_from": resized_from})


def _sample(table: pd.DataFrame, patients: int) -> pd.Series:
    """Ids of the first patients with and without cancer, half and half where there are enough."""
    cancer = table.groupby("patient_id", sort=False)["cancer"].max().astype(float)
    positive, negative = (cancer.index[part] for part in (cancer > 0, cancer == 0))
    n_positive = max(min(patients // 2, len(positive)), patients - len(negative))
    return pd.Series([*positive[:n_positive], *negative[: patients - n_positive]])


def run_stage(stage: str, *overrides: str) -> None:
    """Run a stage to its end."""
    try:
        run_command(stage, *overrides)
    except CalledProcessError as error:
        raise InputError(f"rsna_bcd.{stage} failed, as its message above says.") from error


def quoted(value: Any) -> Any:
    """A value as Hydra's grammar takes it."""
    if isinstance(value, (str, Path)):
        escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value).lower() if isinstance(value, bool) else value
