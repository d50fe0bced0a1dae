"""Whether an ensemble was fitted to the predictions and weights that its members have now."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.ensembles import Ensemble, Select

_TABLES = {"oof.csv": "predictions", "oof_images.csv": "predictions by image"}
_WEIGHTS = "weights"


def fold_hashes(run: Path, folds: Sequence[int], select: Select) -> dict[str, dict[str, str]]:
    """Hash what an ensemble takes from the folds of a run.

    Args:
        run: `<output>/runs/<name>`.
        folds: of the run.
        select: which weights it keeps.

    Returns:
        By fold, SHA-256 of `oof.csv`, `oof_images.csv` and the `weights`; without what is absent.
    """
    found: dict[str, dict[str, str]] = {}
    for fold in folds:
        folder = run / f"fold{fold}"
        found[str(fold)] = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in _TABLES
            if (folder / name).is_file()
        }
        if not (folder / "checkpoints").is_dir():
            continue
        # With torch, which takes seconds: predictions alone do not need it.
        from rsna_bcd.inference.checkpoint_files import find_checkpoint, weights_hash

        checkpoint = find_checkpoint(folder, select)
        if checkpoint is not None:
            found[str(fold)][_WEIGHTS] = weights_hash(checkpoint)
    return found


def check_current(ensemble: Ensemble, models: Path) -> None:
    """Refuse an ensemble some of whose members were trained again after it was fitted.

    Its threshold and its weights are those of the old predictions. What is absent now (the
    predictions in a bundle), or was not hashed by an older version, is not compared.

    Args:
        ensemble: as `read_ensemble` gives it.
        models: the folder of `runs/` and `ensembles/`.

    Raises:
        InputError: a member's predictions or weights are others; with the command to fit again.
    """
    changed = []
    for member in ensemble.members:
        if not member.hashes:
            continue
        now = fold_hashes(models / "runs" / member.name, member.folds, member.select)
        for fold, fitted in member.hashes.items():
            here = now.get(fold, {})
            names = [n for n, value in fitted.items() if n in here and here[n] != value]
            if names:
                parts = " and ".join(_TABLES.get(name, name) for name in names)
                changed.append(f"  {member.name}, fold {fold}: {parts}")
    if changed:
        members = shlex.quote(f"members=[{','.join(member.name for member in ensemble.members)}]")
        command = ensemble.command or (
            f"python -m rsna_bcd.ensemble name={shlex.quote(ensemble.name)} {members}"
        )
        raise InputError(
            f"The ensemble {ensemble.name} was fitted before these were made, and its threshold "
            "and weights are not for them:\n" + "\n".join(changed) + "\n"
            f"Fit it again:\n  {command} {shlex.quote(f'paths.output={models}')}"
        )
