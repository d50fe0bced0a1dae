"""The runs that a run's weights come from: whether they have seen its held-out patients."""

from pathlib import Path
from typing import Any

from rsna_bcd.errors import InputError
from rsna_bcd.models.weights import record_in

Record = dict[str, Any]
_KEPT = ("name", "fold", "dataset", "folds")  # of a run's record


def starts_from(file: Path) -> list[Record]:
    """What a file's weights have learnt from: the run that it is of, and those before it.

    Args:
        file: of weights, of whatever kind.

    Returns:
        Of each run `name, fold, dataset, folds`, which of its weights were taken (`select`), and
        its `patience`; the latest run first. Empty for a file that is no checkpoint of a run.
    """
    run = record_in(file)
    if run is None:
        return []
    # A file of another name: the weights that the run keeps, which a bundle copies.
    select = file.stem if file.stem in ("best", "last") else run.get("select", "last")
    own = {key: run[key] for key in _KEPT} | {"select": select, "patience": run.get("patience")}
    return [own, *run.get("starts_from", [])]


def check_unseen(record: Record) -> None:
    """Refuse to start from weights that have learnt from the patients held out now.

    Raises:
        InputError: a run in `starts_from` had other patients of the same data set held out.
    """
    for run in record.get("starts_from", []) if record["fold"] != "all" else []:
        same_split = run["fold"] == record["fold"] and run["folds"] == record["folds"]
        if run["dataset"] == record["dataset"] and not same_split:
            raise InputError(
                f"checkpoint_path={record['network']['checkpoint_path']} has learnt from patients "
                f"of {record['dataset']['name']} that fold={record['fold']} holds out: it comes "
                f"from {run['name']}, fold {run['fold']}, folds {run['folds']['strategy']}. Start "
                "from the same fold of that run, on the same folds."
            )


def is_optimistic(record: Record) -> bool:
    """Whether an epoch was chosen on the patients held out: of this run, or of one before it."""
    if record["fold"] == "all":
        return False
    before = [r for r in record.get("starts_from", []) if r["dataset"] == record["dataset"]]
    return any(
        run.get("select") == "best" or run.get("patience") is not None for run in (record, *before)
    )
