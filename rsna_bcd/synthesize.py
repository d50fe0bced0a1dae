"""Make a competition: CSVs, DICOM files with planted lesions, and the answers.

    python -m rsna_bcd.synthesize paths=demo size.train_patients=300

Everything goes into `paths.data`, in the layout of Kaggle's folder, with `solution.csv` and
`lesions.csv` beside.
"""

import shutil
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig
from rich import print

from rsna_bcd._stage import record_of, settle, stage, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.phantom.competition import Size, plan, tables
from rsna_bcd.phantom.examination import Appearance, examine

_LESION_COLUMNS = (
    "prediction_id", "image_id", "kind", "center_x", "center_y", "radius", "box_left", "box_top",
    "box_width", "box_height",
)  # fmt: skip


def synthesize(cfg: DictConfig) -> None:
    """Make the competition that `cfg` asks for, or say that it is there already.

    Raises:
        InputError: the folder holds other data, or a competition made with other settings.
    """
    data = Path(cfg.paths.data)
    record_file = data / "synthesize.yaml"
    record = record_of(cfg, "seed", "size", "appearance")
    if not record_file.exists() and (data / "train.csv").exists():
        raise InputError(f"{data} holds data that was not made here. Choose another paths.data=.")
    same = settle(record_file, record, overwrite=cfg.overwrite)
    if same and (data / "lesions.csv").exists():
        print(f"{data} is there already, made with these settings.")
        return
    if record_file.exists() and not same:
        _remove(data)
    write_record(record_file, record)

    frame = plan(Size(**cfg.size), cfg.seed)
    for name, table in tables(frame).items():
        table.to_csv(data / name, index=False)
    appearance = Appearance(**cfg.appearance)
    lesions = []
    for (split, _), rows in frame.groupby(["split", "patient_id"], sort=False):
        lesions += examine(rows, data / f"{split}_images", appearance, cfg.seed)
    # Last: its presence marks the competition as complete.
    pd.DataFrame(lesions, columns=list(_LESION_COLUMNS)).to_csv(data / "lesions.csv", index=False)


def _remove(data: Path) -> None:
    """Delete a competition that was made here."""
    (data / "lesions.csv").unlink(missing_ok=True)
    for split in ("train", "test"):
        shutil.rmtree(data / f"{split}_images", ignore_errors=True)


@stage("synthesize")
def main(cfg: DictConfig) -> None:
    """Run the stage."""
    synthesize(cfg)


if __name__ == "__main__":
    main()
