"""What the preparation met in the files of a run: failures, ways out, decoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

# UIDs of PS3.6, and what pictures are recorded as.
_SYNTAXES = {
    "1.2.840.10008.1.2": "uncompressed, implicit VR",
    "1.2.840.10008.1.2.1": "uncompressed",
    "1.2.840.10008.1.2.2": "uncompressed, big endian",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless (SV1)",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
}
_READ = ("split", "status", "decoder", "resolution_level", "transfer_syntax", "window")
_REASONS = 8  # shown
_FITTED = ("fitted", "min-max")  # windows made from the pixels; manifests of before have the latter


@dataclass(frozen=True)
class Decoded:
    """Files of one syntax that one decoder read.

    Attributes:
        syntax: in words.
        decoder: its name.
        resolution: `full`, or at which part of it they were decoded.
        files: number of them.
    """

    syntax: str
    decoder: str
    resolution: str
    files: int


@dataclass(frozen=True)
class PreparationSummary:
    """What became of the files of the training table.

    Attributes:
        crop: name of the crop.
        files: in the manifest.
        prepared: that became crops.
        failures: reason and number of files, the most frequent first.
        failures_left_out: files whose reason is not among them.
        whole_frames: crops in which no breast was found, so that the whole frame was kept.
        without_window: whose header has no usable window, so that a ramp was fitted to the pixels.
        second_choice: files decoded in full by another decoder than most of their syntax.
        decoded: by syntax and decoder.
    """

    crop: str
    files: int
    prepared: int
    failures: tuple[tuple[str, int], ...]
    failures_left_out: int
    whole_frames: int
    without_window: int
    second_choice: int
    decoded: tuple[Decoded, ...]


def summarise(manifest: pd.DataFrame, crop: str) -> PreparationSummary:
    """Count what a manifest says of the training files.

    Args:
        manifest: `manifest.csv`, read as strings.
        crop: name of the crop.
    """
    rows = manifest[manifest["split"] == "train"]
    ok = rows[rows["status"] == "ok"]
    reasons = rows.loc[rows["status"] != "ok", "status"].fillna("no reason given").value_counts()
    syntax = ok["transfer_syntax"].map(lambda uid: _SYNTAXES.get(uid, uid), "ignore")
    level = pd.to_numeric(ok["resolution_level"], errors="coerce").fillna(0).astype(int)
    kinds = pd.DataFrame(
        {
            "syntax": syntax.fillna("unknown"),
            "decoder": ok["decoder"].fillna("unknown"),
            "resolution": [f"1/{2**k}" if k else "full" for k in level],
        }
    )
    counts = kinds.value_counts()
    in_full = kinds[kinds["resolution"] == "full"].value_counts(["syntax", "decoder"])
    first = in_full.groupby(level="syntax").max()
    found = ok["breast_found"] if "breast_found" in ok else pd.Series(dtype="string")
    return PreparationSummary(
        crop=crop,
        files=len(rows),
        prepared=len(ok),
        failures=tuple((str(reason), int(n)) for reason, n in reasons.head(_REASONS).items()),
        failures_left_out=int(reasons.iloc[_REASONS:].sum()),
        whole_frames=int(found.isin(["0", "False"]).sum()),
        without_window=int(ok["window"].str.startswith(_FITTED, na=False).sum()),
        second_choice=int(in_full.sum() - first.sum()),
        decoded=tuple(
            Decoded(str(row["syntax"]), str(row["decoder"]), str(row["resolution"]), row["count"])
            for row in counts.reset_index().to_dict("records")
        ),
    )


def read_manifests(folders: Sequence[Path]) -> list[PreparationSummary]:
    """Summaries of the prepared folders that have a manifest, in their order."""
    found = []
    for folder in folders:
        file = folder / "manifest.csv"
        if file.is_file():
            manifest = pd.read_csv(file, dtype="string")
            if set(_READ) <= set(manifest.columns) and len(manifest):
                found.append(summarise(manifest, folder.name))
    return found
