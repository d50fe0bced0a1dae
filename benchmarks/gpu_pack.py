"""Pack the needs of the benchmarks on a machine without a network: archives of at most 60 MiB.

    python benchmarks/gpu_pack.py data=data/rsna640 output=output/gpu_pack weights=data/weights

writes to `output/gpu_pack/archives/`:

    project.tar          the committed source tree
    wheels-1.tar ...     packages that the machine lacks, at the versions and hashes of the lock
    weights-1.tar ...    the *.pth files of `weights`
    crops-<name>-1.tar   the crops of each size, as WebP, with their folds

All unpack into one empty folder with tar alone. An archive per size: a study needs only its own.
Each size is prepared by itself: a crop that is resized from a larger one lies up to half a pixel
elsewhere, which changes more than the compression does (docs/study.md has figures).
"""

import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from study_crops import quoted, run_stage

from rsna_bcd._records import write_record
from rsna_bcd.bundling.wheels import (
    collect_wheels,
    direct_requirements,
    read_lock,
    with_dependencies,
)
from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import read_crop

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = 512  # of tar: a header, and contents padded to it
_DEFAULTS = """
data: ??? # folder of images, in the competition's layout
output: output/gpu_pack
dataset: study # name of the prepared data set
source: image # of the images: image | dicom
crops: [512x288, 344x192] # height x width
quality: 95 # of WebP, 1 to 100; 101: lossless
weights: null # folder of *.pth files, or one file
limit: 60 # MiB per archive
python: "3.12" # of the machine
platforms: # of the machine: every tag that its pip may install, for pip takes them to the letter
  - manylinux_2_28_x86_64
  - manylinux_2_27_x86_64
  - manylinux_2_17_x86_64
  - manylinux2014_x86_64
unused: # of what this package requires, not imported by the benchmarks
  [wandb, pydicom, python-gdcm, dicomsdl, openpyxl, nbformat, distributed]
present: # names of packages on the machine, with all that they require; or a file, one per line
  - torch
  - torchvision
  - pytorch-lightning
  - timm
  - safetensors
  - opencv-python-headless
  - pillow
  - numpy
  - pandas
  - scikit-learn
  - threadpoolctl
  - matplotlib
  - jinja2
  - rich
  - packaging
from_source: [antlr4-python3-runtime] # published without a wheel, and pure Python: built here
wheelhouse: null # a folder of the published files, instead of the registry
"""


def pack(cfg: Any) -> list[Path]:
    """Prepare, compress, collect and archive.

    Args:
        cfg: keys as in `_DEFAULTS`.

    Returns:
        The archives.

    Raises:
        InputError: data, weights or wheels cannot be had, or a file is larger than an archive.
    """
    output = Path(str(cfg.output)).resolve()
    tree, archives = output / "tree", output / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    for old in archives.glob("*.tar"):
        old.unlink()
    limit = int(float(cfg.limit) * 2**20)
    written = [_project(archives / "project.tar")]
    written += archive(tree, _wheels(cfg, tree / "wheels"), archives / "wheels", limit)
    if cfg.weights is not None:
        written += archive(
            tree, _weights(Path(str(cfg.weights)), tree), archives / "weights", limit
        )
    for size in cfg.crops:
        folder, files = _crops(cfg, str(size), output / "lossless", tree)
        written += archive(tree, files, archives / f"crops-{folder.name}", limit)
    for file in written:
        print(f"{file.stat().st_size / 2**20:6.1f} MiB  {file}")
    print(
        "Unpack into an empty folder: for f in *.tar; do tar xf $f; done\n"
        "Install there: python -m pip install --no-index --no-deps --target site wheels/*.whl\n"
        "Run: cd project; PYTHONPATH=../site:. python benchmarks/study.py ... data=.. output=..."
    )
    return written


def _project(file: Path) -> Path:
    """Archive the committed source tree."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True).stdout:
        print("The source tree has uncommitted changes, which are not packed.")
    subprocess.run([*git, "archive", "--prefix=project/", "-o", str(file), "HEAD"], check=True)
    return file


def missing_packages(
    lock_file: Path, python: str, unused: Iterable[str], present: Iterable[str]
) -> dict[str, str]:
    """Requirements of the benchmarks that a machine lacks, by name.

    Args:
        lock_file: `requirements.lock`.
        python: of the machine, such as "3.12".
        unused: required by `pyproject.toml`, and not imported.
        present: on the machine; names that the lock lacks are ignored.
    """
    lock = read_lock(lock_file, python)
    installed = {name.lower().replace("_", "-") for name in present} & lock.keys()
    there = with_dependencies(lock, installed)
    needed = with_dependencies(lock, direct_requirements(ROOT / "pyproject.toml") - set(unused))
    return {name: line for name, line in needed.items() if name not in there}


def _wheels(cfg: Any, folder: Path) -> list[Path]:
    """Fetch or build the wheels of missing packages."""
    present = cfg.present
    if isinstance(present, str):
        lines = Path(present).read_text(encoding="utf-8").replace("=", " ").split("\n")
        present = [line.split()[0] for line in lines if line.strip() and line[0] != "#"]
    lock = ROOT / "requirements.lock"
    wanted = missing_packages(lock, str(cfg.python), cfg.unused, present)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    return collect_wheels(
        wanted,
        folder,
        python=str(cfg.python),
        platforms=list(cfg.platforms),
        from_source=list(cfg.from_source),
        wheelhouse=None if cfg.wheelhouse is None else Path(str(cfg.wheelhouse)),
    )


def _weights(source: Path, tree: Path) -> list[Path]:
    """Copy weights; names stay."""
    files = [source] if source.is_file() else sorted(source.glob("*.pth"))
    if not files:
        raise InputError(f"weights={source} has no *.pth file.")
    (tree / "weights").mkdir(parents=True, exist_ok=True)
    copies = []
    for file in files:
        copy = tree / "weights" / file.name
        copy.write_bytes(file.read_bytes())
        copies.append(copy)
    return copies


def _crops(cfg: Any, size: str, lossless: Path, tree: Path) -> tuple[Path, list[Path]]:
    """Prepare crops of one size, and compress them.

    Returns:
        Their folder in `tree`, and all files that belong to it.
    """
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"crops={size}: give height x width, such as 512x288.")
    name = f"h{height}_wide"
    run_stage(
        "prepare", f"paths.data={quoted(Path(str(cfg.data)).resolve())}",
        f"paths.output={quoted(lossless)}", f"dataset.name={cfg.dataset}", f"source={cfg.source}",
        "splits=[train]", "crop=h512_wide", f"crop.name={name}", f"crop.height={height}",
        f"crop.width={width}",
    )  # fmt: skip
    place = Path("prepared") / str(cfg.dataset) / name
    difference = compress(lossless / place, tree / place, int(cfg.quality))
    (worst, mean) = difference.max(), difference.mean()
    print(
        f"{size}: {len(difference)} crops as WebP of quality {cfg.quality}; mean absolute "
        f"difference {mean:.3f} grey levels of 255, {worst:.3f} in the worst crop"
    )
    folds = Path("folds")
    (tree / folds).mkdir(exist_ok=True)
    copies = []
    for csv in sorted((lossless / folds).glob("*.csv")):
        (tree / folds / csv.name).write_bytes(csv.read_bytes())
        copies.append(tree / folds / csv.name)
    return tree / place, [*copies, *sorted(p for p in (tree / place).rglob("*") if p.is_file())]


def compress(source: Path, target: Path, quality: int) -> np.ndarray:
    """Make a prepared folder with WebP files of one with PNG files.

    Args:
        source: the folder, with crops of 8 bits.
        target: the folder to write; its record gives the loss of quality.
        quality: 1 to 100; 101: lossless.

    Returns:
        The mean absolute difference of each crop, in grey levels: (N,).

    Raises:
        InputError: the crops have 16 bits, which WebP has not, or cannot be written.
    """
    table = pd.read_csv(source / "train.csv", dtype=str)
    old = table["path"].dropna()
    new = old.str.replace(r"\.\w+$", ".webp", regex=True)

    def convert(before: str, after: str) -> float:
        pixels = read_crop(source / before)
        if pixels.dtype != np.uint8:
            raise InputError(
                f"{source / before} has 16 bits, WebP has 8. Prepare with crop.bits=8."
            )
        (target / after).parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(target / after), pixels, [cv2.IMWRITE_WEBP_QUALITY, quality]):
            raise InputError(f"{target / after} cannot be written. Make room on the disk.")
        return float(cv2.absdiff(read_crop(target / after), pixels).mean())

    with ThreadPoolExecutor() as threads:
        difference = np.array(list(threads.map(convert, old, new)))
    table.assign(path=new).to_csv(target / "train.csv", index=False)
    record: Any = OmegaConf.to_container(OmegaConf.load(source / "config.yaml"))
    lost = {"quality": quality, "mean_absolute_difference": round(float(difference.mean()), 4)}
    write_record(target / "config.yaml", {**record, "webp": lost})
    return difference


def archive(tree: Path, files: Sequence[Path], stem: Path, limit: int) -> list[Path]:
    """Write files to `<stem>-1.tar` and so on, each at most `limit` bytes.

    The same files give the same bytes: owners and times are left out.

    Raises:
        InputError: a file is larger than the limit.
    """
    archives: list[Path] = []
    part: list[tarfile.TarInfo] = []
    size, end = 0, tarfile.RECORDSIZE  # padding at the end of an archive

    def close() -> None:
        file = stem.with_name(f"{stem.name}-{len(archives) + 1}.tar")
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for entry in part:
                with (tree / entry.name).open("rb") as content:
                    tar.addfile(entry, content)
        archives.append(file)

    for file in files:
        entry = tarfile.TarInfo(file.relative_to(tree).as_posix())
        entry.size, entry.mode = file.stat().st_size, 0o644
        padded = _BLOCK + -(-entry.size // _BLOCK) * _BLOCK
        if padded + end > limit:
            raise InputError(f"{file} is larger than an archive may be. Raise limit=.")
        if size + padded + end > limit:
            close()
            part, size = [], 0
        part.append(entry)
        size += padded
    if part:
        close()
    return archives


def main(arguments: Sequence[str]) -> None:
    """Pack as the command line says."""
    cfg = OmegaConf.create(_DEFAULTS)
    given = OmegaConf.from_dotlist(list(arguments))
    unknown = set(map(str, given)) - set(map(str, cfg))
    if unknown:
        sys.exit(f"error: {', '.join(sorted(unknown))}= is unknown.\n{__doc__}\n{_DEFAULTS}")
    cfg = OmegaConf.merge(cfg, given)
    if OmegaConf.is_missing(cfg, "data"):
        sys.exit("error: give data=<folder of images>")
    if isinstance(cfg.crops, str):
        cfg.crops = str(cfg.crops).split(",")
    try:
        pack(cfg)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
