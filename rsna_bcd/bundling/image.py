"""Rehearsal: a clean Python with Kaggle's packages, Kaggle's folders, and no network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rsna_bcd.errors import InputError

IMAGE = "image.txt"  # in a bundle: the packages of Kaggle's image, as requirements

_PYTHON = "# Python "
_CELLS = Path(__file__).with_name("cells.py")
# Variables that describe this machine (threads, devices, language).
_KEPT = ("OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "LANG", "LC_", "TMPDIR")


def write_image(file: Path, version: str, wanted: Mapping[str, str]) -> None:
    """Write the packages of Kaggle's image: requirements, below a comment with the Python."""
    lines = [f"{_PYTHON}{version}", *(wanted[name] for name in sorted(wanted))]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_image(interpreter: str, packages: Path, folder: Path) -> Path:
    """Make a virtual environment with the packages of Kaggle's image, and nothing else.

    Args:
        interpreter: a Python with `venv`, by name or path.
        packages: from `write_image`, or any requirements file.
        folder: of the environment.

    Returns:
        Its Python.

    Raises:
        InputError: there is no such Python, or the packages cannot be installed.
    """
    if not packages.is_file():
        raise InputError(f"There is no {packages}: packages= is a requirements file.")
    text = packages.read_text(encoding="utf-8")
    version = text.partition("\n")[0].removeprefix(_PYTHON) if text.startswith(_PYTHON) else ""
    found = shutil.which(interpreter)
    script = "import sys; print('{}.{}'.format(*sys.version_info))"
    if found is None or version not in ("", _output([found, "-c", script]).strip()):
        raise InputError(
            f"interpreter={interpreter} is no Python {version}, which Kaggle has. Install one "
            f"(`uv python install {version}`, or your distribution's), and say interpreter=<its "
            "path>, or make kaggle KAGGLE_PYTHON=<its path>."
        )
    _output([found, "-m", "venv", str(folder)])
    made = folder / "bin" / "python"
    hashes = ["--require-hashes"] if "--hash=" in text else []
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(made)]
    _output([*install, *hashes, "--requirement", str(packages)])
    return made


def lay_out(root: Path, dataset: Path, dataset_slug: str, data: Path, competition: str) -> None:
    """Attach a dataset and a competition below `root`, as Kaggle does below `/kaggle`."""
    (root / "working").mkdir(parents=True)
    (root / "home").mkdir()
    (root / "input" / "competitions").mkdir(parents=True)
    (root / "input" / dataset_slug).symlink_to(dataset.resolve())
    (root / "input" / "competitions" / competition).symlink_to(data.resolve())


def run_offline(python: Path, notebook: Path, root: Path) -> None:
    """Execute a notebook's code cells in a network namespace without a route.

    Args:
        python: of the image.
        notebook: with the cells.
        root: from `lay_out`.

    Raises:
        InputError: a cell failed, or a network namespace cannot be made.
    """
    unshare = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            "The rehearsal needs a network namespace: `unshare` (of util-linux), and root, or a "
            "kernel that lets users make namespaces (user.max_user_namespaces)."
        ) from error
    clean = {key: value for key, value in os.environ.items() if key.startswith(_KEPT)} | {
        "PATH": f"{python.parent}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HOME": str((root / "home").resolve()),
        "KAGGLE_ROOT": str(root.resolve()),
    }
    command = [*unshare, str(python.absolute()), "-P", str(_CELLS), str(notebook.resolve())]
    done = subprocess.run(command, cwd=root / "working", env=clean, check=False)
    if done.returncode:
        raise InputError(f"The notebook failed (see above): {notebook}")


def _output(command: list[str]) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{' '.join(command[:5])} ... failed; packages need a network the first time.\n"
            f"{done.stderr.strip()[-2000:]}"
        )
    return done.stdout
