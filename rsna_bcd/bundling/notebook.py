"""Kaggle: the notebook that submits, the metadata of it and of its dataset, and the upload."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_file

NOTEBOOK = "notebook.ipynb"
KERNEL, DATASET = "kernel-metadata.json", "dataset-metadata.json"
UNKNOWN_OWNER = "OWNER"  # default of `owner`

Mode = Literal["create", "version"]

_CREDENTIALS = ("kaggle.json", "access_token")
_TIMEOUT_SECONDS, _PAUSE_SECONDS = 1800, 20

_TITLE = """\
# Breast cancer in screening mammograms: `{name}`

Test images → `submission.csv`, with the networks of the attached dataset, offline. A bad
file never stops the submission; `failures.csv` lists it.

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
HOURS = {hours}  # for everything; if time runs short, TTA is dropped first, then folds
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
for _ in range(3):  # killed, perhaps out of memory, it resumes
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


def kaggle_slug(title: str) -> str:
    """The address that Kaggle makes of a title.

    Raises:
        InputError: Kaggle would not take the title: it wants 6 to 50 letters and digits.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if not 6 <= len(title) <= 50 or len(slug) < 6:
        raise InputError(f"title={title!r}: Kaggle wants 6 to 50 characters. Choose another title=")
    return slug


def write_notebook(
    folder: Path,
    *,
    name: str,
    owner: str,
    title: str,
    competition: str,
    hours: float,
    accelerator: str,
) -> None:
    """Write the notebook, checked by nbformat, and its metadata: private, offline, on a GPU.

    Args:
        folder: made if it is absent.
        name: of the ensemble.
        owner: name of the account.
        title: of the dataset that holds the bundle; the notebook's has " submit" after it.
        competition: its slug.
        hours: time limit of the submission.
        accelerator: the client's name of the GPU.

    Raises:
        InputError: Kaggle would not take a title.
    """
    dataset = kaggle_slug(title)
    values = {"name": name, "dataset": dataset, "competition": competition, "hours": f"{hours:g}"}
    cells = [new_markdown_cell(_TITLE.format(**values))]
    cells += [new_code_cell(c.format(**values)) for c in (_PLACES, _INSTALL, _SUBMIT, _LOOK)]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # else drawn at random
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": python})
    nbformat.validate(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / NOTEBOOK)
    metadata = {
        "id": f"{owner}/{kaggle_slug(f'{title} submit')}", "title": f"{title} submit",
        "code_file": NOTEBOOK, "language": "python", "kernel_type": "notebook",
        "is_private": True, "enable_gpu": True, "machine_shape": accelerator,
        "enable_internet": False, "dataset_sources": [f"{owner}/{dataset}"],
        "competition_sources": [competition], "kernel_sources": [], "model_sources": [],
    }  # fmt: skip
    write_file(folder / KERNEL, json.dumps(metadata, indent=1) + "\n")


def write_dataset_metadata(folder: Path, *, owner: str, title: str, licence: str) -> None:
    """Write the file that the `kaggle` client needs beside a dataset."""
    slug = f"{owner}/{kaggle_slug(title)}"
    metadata = {"id": slug, "title": title, "licenses": [{"name": licence}]}
    write_file(folder / DATASET, json.dumps(metadata, indent=1) + "\n")


def check_credentials(owner: str) -> None:
    """Raise an `InputError` without an owner or credentials for Kaggle, which are not read."""
    if owner == UNKNOWN_OWNER:
        raise InputError("owner= is missing. Give your name on Kaggle, or set KAGGLE_USERNAME.")
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    in_environment = "KAGGLE_API_TOKEN" in os.environ or (
        os.environ.keys() >= {"KAGGLE_USERNAME", "KAGGLE_KEY"}
    )
    if not in_environment and not any((folder / name).is_file() for name in _CREDENTIALS):
        raise InputError(
            "No credentials for Kaggle. Make a token in your account's settings there, and put it "
            f"into {folder / _CREDENTIALS[0]}, or set KAGGLE_USERNAME and KAGGLE_KEY."
        )


def _run_client(arguments: Sequence[str]) -> str:
    """Run the `kaggle` client, which `uv` installs temporarily; returns its output."""
    command = [sys.executable, "-m", "uv", "tool", "run", "kaggle", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise InputError(f"kaggle {' '.join(arguments[:2])} failed (see above).")
    return done.stdout


def push(
    dataset: Path, kernel: Path, mode: Mode, run: Callable[[Sequence[str]], str] = _run_client
) -> None:
    """Upload a dataset, wait until Kaggle has unpacked it, and start the notebook.

    Args:
        dataset: folder with `dataset-metadata.json`.
        kernel: folder with `kernel-metadata.json`.
        mode: `create` it the first time, later a `version` of it.
        run: runs the client with arguments and returns its output.

    Raises:
        InputError: the client failed, or Kaggle does not get ready.
    """
    address = json.loads((dataset / DATASET).read_text(encoding="utf-8"))["id"]
    accelerator = json.loads((kernel / KERNEL).read_text(encoding="utf-8"))["machine_shape"]
    message = [] if mode == "create" else ["--message", "rsna_bcd.bundle"]
    run(["datasets", mode, "--path", str(dataset), "--dir-mode", "zip", *message])
    started = time.monotonic()
    while "ready" not in run(["datasets", "status", address]):
        if time.monotonic() - started > _TIMEOUT_SECONDS:
            raise InputError(f"{address} is still not ready on Kaggle. Later: push=version")
        time.sleep(_PAUSE_SECONDS)
    run(["kernels", "push", "--path", str(kernel), "--accelerator", accelerator])
