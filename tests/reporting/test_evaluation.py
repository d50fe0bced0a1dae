"""A manifest of a few lines, counted by hand."""

from pathlib import Path

import pandas as pd

from rsna_bcd.reporting.evaluation import DecodedFiles, read_manifests, summarise_preparation

JPEG_2000, LOSSLESS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"
ROWS = [
    ("train", "ok", "dicomsdl", "0", LOSSLESS, "LINEAR 1 2", "1"),
    ("train", "ok", "dicomsdl", "0", LOSSLESS, "fitted 0 9", "0"),
    ("train", "ok", "gdcm", "0", LOSSLESS, "min-max (unfit: LINEAR 0 0) 0 9", "1"),
    ("train", "ok", "openjpeg", "1", JPEG_2000, "SIGMOID 1 2", "1"),
    ("train", "ok", "dicomsdl", "0", JPEG_2000, "SIGMOID 1 2", "1"),
    ("train", "is truncated", None, None, None, None, None),
    ("train", "is truncated", None, None, None, None, None),
    ("train", "missing", None, None, None, None, None),
    ("test", "is truncated", None, None, None, None, None),
]
COLUMNS = [
    "split", "status", "decoder", "resolution_level", "transfer_syntax", "window", "breast_found",
]  # fmt: skip
MANIFEST = pd.DataFrame(ROWS, columns=COLUMNS, dtype="string")


def test_what_happened_to_the_training_files() -> None:
    found = summarise_preparation(MANIFEST, "h512")
    assert (found.crop, found.files, found.prepared) == ("h512", 8, 5)
    assert found.failures == (("is truncated", 2), ("missing", 1))
    assert (found.whole_frames, found.without_window) == (1, 2)
    # gdcm read one that dicomsdl reads else; a lower resolution is not a second choice.
    assert found.second_choice == 1
    assert set(found.decoded) == {
        DecodedFiles("JPEG lossless (SV1)", "dicomsdl", "full", 2),
        DecodedFiles("JPEG lossless (SV1)", "gdcm", "full", 1),
        DecodedFiles("JPEG 2000 lossless", "openjpeg", "1/2", 1),
        DecodedFiles("JPEG 2000 lossless", "dicomsdl", "full", 1),
    }


def test_rare_reasons_are_counted_together() -> None:
    many = pd.concat([MANIFEST.assign(status=f"reason {i}") for i in range(20)])
    found = summarise_preparation(many, "h512")
    assert len(found.failures) == 8
    assert sum(n for _, n in found.failures) + found.failures_left_out == found.files == 160


def test_folders_without_a_manifest_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    MANIFEST.to_csv(tmp_path / "b" / "manifest.csv", index=False)
    (tmp_path / "c" / "manifest.csv").write_text("something,else\n1,2\n")
    found = read_manifests([tmp_path / name for name in ("absent", "a", "b", "c")])
    assert [one.crop for one in found] == ["b"]
