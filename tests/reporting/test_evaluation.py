"""Preparation summaries, counted by hand."""

from pathlib import Path

import pandas as pd

from rsna_bcd.reporting.evaluation import DecodedFiles, read_manifests, summarise_preparation

JPEG_2000, LOSSLESS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"
MANIFEST = pd.DataFrame(
    [
        ("train", "ok", "dicomsdl", "0", LOSSLESS, "LINEAR 1 2", "1"),
        ("train", "ok", "dicomsdl", "0", LOSSLESS, "fitted 0 9", "0"),
        ("train", "ok", "gdcm", "0", LOSSLESS, "min-max (unfit: LINEAR 0 0) 0 9", "1"),
        ("train", "ok", "openjpeg", "1", JPEG_2000, "SIGMOID 1 2", "1"),
        ("train", "ok", "dicomsdl", "0", JPEG_2000, "SIGMOID 1 2", "1"),
        ("train", "is truncated", None, None, None, None, None),
        ("train", "is truncated", None, None, None, None, None),
        ("train", "missing", None, None, None, None, None),
        ("test", "is truncated", None, None, None, None, None),
    ],
    columns=[
        "split",
        "status",
        "decoder",
        "resolution_level",
        "transfer_syntax",
        "window",
        "breast_found",
    ],
    dtype="string",
)


def test_summarise_preparation_counts_training_files() -> None:
    summary = summarise_preparation(MANIFEST, "h512")
    assert (summary.crop, summary.files, summary.prepared) == ("h512", 8, 5)
    assert summary.failures == (("is truncated", 2), ("missing", 1))
    assert (summary.whole_frames, summary.without_window) == (1, 2)
    assert summary.second_choice == 1  # gdcm; a lower resolution does not count
    assert set(summary.decoded) == {
        DecodedFiles("JPEG lossless (SV1)", "dicomsdl", "full", 2),
        DecodedFiles("JPEG lossless (SV1)", "gdcm", "full", 1),
        DecodedFiles("JPEG 2000 lossless", "openjpeg", "1/2", 1),
        DecodedFiles("JPEG 2000 lossless", "dicomsdl", "full", 1),
    }
    many = pd.concat([MANIFEST.assign(status=f"reason {i}") for i in range(20)])
    summary = summarise_preparation(many, "h512")
    assert len(summary.failures) == 8
    assert sum(n for _, n in summary.failures) + summary.failures_left_out == summary.files == 160


def test_read_manifests_skips_folders_without_one(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    MANIFEST.to_csv(tmp_path / "b" / "manifest.csv", index=False)
    (tmp_path / "c" / "manifest.csv").write_text("something,else\n1,2\n")
    summaries = read_manifests([tmp_path / name for name in ("absent", "a", "b", "c")])
    assert [one.crop for one in summaries] == ["b"]
