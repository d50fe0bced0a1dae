"""The notebook that submits, and what Kaggle is told of it and of its dataset."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rsna_bcd.errors import InputError

NOTEBOOK = "notebook.ipynb"
KERNEL, DATASET = "kernel-metadata.json", "dataset-metadata.json"

_TITLE = """\
# Breast cancer in screening mammograms: `{name}`

Test images → `submission.csv`, with the networks of the attached dataset, offline. Whatever is
wrong with a file costs its breast some evidence, never the submission; `failures.csv` lists it.

No medical device."""

_PLACES = '''\
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
NAME = "{name}"  # of the ensemble
HOURS = {hours}  # for everything; what does not fit is left out: first TTA, then folds
ROOT = Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))


def mounted(slug):
    """Below input/, input/competitions/ or input/datasets/<owner>/: Kaggle has used them all."""
    places = [p for depth in ("", "*/", "*/*/") for p in (ROOT / "input").glob(depth + slug)]
    assert places, f"{{slug}} is not attached to this notebook: Add Input, on the right"
    return places[0]


bundle, competition = mounted("{dataset}"), mounted("{competition}")'''

_INSTALL = """\
wheels = sorted(map(str, (bundle / "wheels").glob("*.whl")))
install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
subprocess.run(install + wheels, check=True)"""

_SUBMIT = """\
submit = [sys.executable, "-m", "rsna_bcd.submit", "paths=kaggle", f"name='{{NAME}}'"]
places = [f"paths.data='{{competition}}'", f"paths.models='{{bundle}}'"]
for _ in range(3):  # killed, for want of memory perhaps, it goes on where it was
    left = max(HOURS - (time.monotonic() - STARTED) / 3600, 0.1)
    done = subprocess.run([*submit, *places, f"budget.hours={{left:.3f}}"])
    if done.returncode >= 0:
        break
done.check_returncode()"""

_LOOK = """\
made = ROOT / "working" / "output" / "submissions" / NAME
shutil.copy(made / "submission.csv", ROOT / "working" / "submission.csv")
summary = json.loads((made / "summary.json").read_text())
print({{key: value for key, value in summary.items() if key != "asked"}})
for file in ("submission.csv", "failures.csv"):
    lines = (made / file).read_text().splitlines()
    print(f"{{file}}: {{len(lines) - 1}} rows", *lines[:6], sep="\\n  ")"""


def slug_of(title: str) -> str:
    """The address that Kaggle makes of a title.

    Raises:
        InputError: Kaggle would not take the title: it wants 6 to 50 letters and digits.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if not 6 <= len(title) <= 50 or len(slug) < 6:
        raise InputError(f"title={title!r}: Kaggle wants 6 to 50 characters. Choose another title=")
    return slug


def write_notebook(
    folder: Path, *, name: str, dataset: str, competition: str, hours: float
) -> Path:
    """Write the notebook, checked by nbformat.

    Args:
        folder: where to.
        name: of the ensemble.
        dataset: the slug of the dataset that holds the bundle.
        competition: the slug of the competition.
        hours: after which a submission must be there.
    """
    words = {"name": name, "dataset": dataset, "competition": competition, "hours": f"{hours:g}"}
    cells = [new_markdown_cell(_TITLE.format(**words))]
    cells += [new_code_cell(c.format(**words)) for c in (_PLACES, _INSTALL, _SUBMIT, _LOOK)]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # else drawn at random
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": python})
    nbformat.validate(notebook)
    file = folder / NOTEBOOK
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)
    return file


def write_dataset_metadata(folder: Path, *, owner: str, title: str, licence: str) -> None:
    """Write what the `kaggle` client wants beside a dataset's files."""
    content = {
        "id": f"{owner}/{slug_of(title)}",
        "title": title,
        "licenses": [{"name": licence}],
    }
    _write(folder / DATASET, content)


def write_kernel_metadata(
    folder: Path, *, owner: str, title: str, dataset: str, competition: str, accelerator: str
) -> None:
    """Write what the `kaggle` client wants beside a notebook: private, offline, on a GPU.

    Args:
        folder: of the notebook.
        owner: name of the account.
        title: of the notebook.
        dataset: its slug, of the same owner.
        competition: its slug.
        accelerator: the client's name of the GPU.
    """
    content = {
        "id": f"{owner}/{slug_of(title)}",
        "title": title,
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "machine_shape": accelerator,
        "enable_internet": False,
        "dataset_sources": [f"{owner}/{dataset}"],
        "competition_sources": [competition],
        "kernel_sources": [],
        "model_sources": [],
    }
    _write(folder / KERNEL, content)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
