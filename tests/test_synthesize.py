"""The stage `synthesize`: formats, files, determinism, resuming."""

import hashlib
from pathlib import Path

import dicomsdl
import numpy as np
import pandas as pd
import pydicom
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rsna_bcd._stage import CONF, check
from rsna_bcd.errors import InputError
from rsna_bcd.stages.synthesize import synthesize
from rsna_bcd.tables.images import Split, read_images

TINY = ("size.train_patients=2", "size.test_patients=1", "size.prevalence=0.5")


def settings(data: Path, *overrides: str) -> DictConfig:
    """The configuration of a competition of three patients."""
    with initialize_config_dir(CONF, version_base="1.3"):
        given = [f"paths.data={data}", "workers=0", "appearance.pixel_mm=1.6", *TINY, *overrides]
        return compose("synthesize", given)


def digests(folder: Path) -> dict[str, str]:
    """Relative path to SHA-256 of all that was made."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "synthesize.yaml"
    }


@pytest.fixture(scope="module")
def tables(competition: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_csv(path) for path in competition.glob("*.csv")}


@pytest.fixture(scope="module")
def headers(competition: Path) -> dict[int, pydicom.Dataset]:
    """Header by image_id."""
    return {int(path.stem): pydicom.dcmread(path) for path in competition.rglob("*.dcm")}


def test_synthesize_columns_and_dtypes_are_kaggles(competition: Path) -> None:
    header = (competition / "train.csv").read_text().splitlines()[0]
    assert header == (
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,"
        "density,machine_id,difficult_negative_case"
    )
    train, test = (pd.read_csv(competition / f"{split}.csv") for split in ("train", "test"))
    whole = ["site_id", "patient_id", "image_id", "cancer", "biopsy", "invasive", "implant"]
    assert (train[[*whole, "machine_id"]].dtypes == np.int64).all()
    assert (train[["age", "BIRADS"]].dtypes == np.float64).all()
    assert train["difficult_negative_case"].dtype == bool
    assert test["prediction_id"].str.fullmatch(r"\d+_[LR]").all()
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        read_images(competition / f"{split}.csv", split)


def test_synthesize_one_file_per_row(competition: Path, tables: dict[str, pd.DataFrame]) -> None:
    for split in ("train", "test"):
        expected = {f"{row.patient_id}/{row.image_id}.dcm" for row in tables[split].itertuples()}
        folder = competition / f"{split}_images"
        found = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
        assert found == expected


def test_synthesize_files_decode_alike_in_both_decoders(
    competition: Path, headers: dict[int, pydicom.Dataset]
) -> None:
    for path in competition.rglob("*.dcm"):
        pixels = headers[int(path.stem)].pixel_array
        np.testing.assert_array_equal(dicomsdl.open(str(path)).pixelData(), pixels)
        assert np.ptp(pixels) > 300


def test_synthesize_headers_have_the_variants_of_real_files(
    headers: dict[int, pydicom.Dataset],
) -> None:
    def values(keyword: str) -> set:
        return {header.get(keyword) for header in headers.values()}

    syntaxes = {header.file_meta.TransferSyntaxUID for header in headers.values()}
    assert syntaxes == {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"}
    assert values("PhotometricInterpretation") == {"MONOCHROME1", "MONOCHROME2"}
    assert values("BitsStored") == {10, 12, 16}
    # LINEAR is spelled out in 17 of 10,920 real headers, all of machine 29; most leave it out.
    assert {None, "SIGMOID"} <= values("VOILUTFunction") <= {None, "SIGMOID", "LINEAR"}
    windows = {
        np.size(header.WindowCenter) if "WindowCenter" in header else 0
        for header in headers.values()
    }
    assert windows >= {0, 1, 3, 4}


def test_synthesize_lesions_lie_in_breasts_with_cancer_only(
    tables: dict[str, pd.DataFrame], headers: dict[int, pydicom.Dataset]
) -> None:
    train, test = tables["train"], tables["test"].merge(tables["solution"], on="prediction_id")
    positive = {*train.loc[train["cancer"] == 1, "image_id"]} | {
        *test.loc[test["cancer"] == 1, "image_id"]
    }
    lesions = tables["lesions"]
    assert set(lesions["image_id"]) == positive
    assert set(lesions["kind"]) == {"spiculated_mass", "calcification_cluster"}
    for lesion in lesions.to_dict("records"):
        pixels = headers[lesion["image_id"]].pixel_array
        left, top = lesion["box_left"], lesion["box_top"]
        right, bottom = left + lesion["box_width"], top + lesion["box_height"]
        assert 0 <= left < lesion["center_x"] < right <= pixels.shape[1]
        assert 0 <= top < lesion["center_y"] < bottom <= pixels.shape[0]
        values, counts = np.unique(pixels, return_counts=True)
        background = values[counts.argmax()]
        assert (pixels[top:bottom, left:right] != background).mean() > 0.7
        y, x = round(lesion["center_y"]), round(lesion["center_x"])
        assert (pixels[y - 2 : y + 3, x - 2 : x + 3] != background).all()


def test_synthesize_lesions_are_brighter_than_their_surroundings(
    tables: dict[str, pd.DataFrame], headers: dict[int, pydicom.Dataset]
) -> None:
    masses = tables["lesions"].query("kind == 'spiculated_mass'")
    differences = []
    for lesion in masses.to_dict("records"):
        header = headers[lesion["image_id"]]
        pixels = header.pixel_array.astype(float)
        sign = -1 if header.PhotometricInterpretation == "MONOCHROME1" else 1
        y, x = np.indices(pixels.shape)
        distance = np.hypot(x - lesion["center_x"], y - lesion["center_y"])
        distance /= lesion["radius"]
        inside, around = pixels[distance < 0.3], pixels[(distance > 0.9) & (distance < 1.1)]
        differences.append(sign * (inside.mean() - around.mean()) / 2**header.BitsStored)
    assert np.median(differences) > 0.02


def test_synthesize_cancers_in_one_view(tmp_path: Path) -> None:
    cfg = settings(tmp_path, "appearance.lesion_views=one", "size.prevalence=1")
    synthesize(cfg)
    train = pd.read_csv(tmp_path / "train.csv")
    lesions = pd.read_csv(tmp_path / "lesions.csv")
    views = train[train["image_id"].isin(lesions["image_id"])]
    sides = views.assign(side=views["view"] != "CC").groupby(["patient_id", "laterality"])["side"]
    assert (sides.nunique() == 1).all()
    assert len(sides) == 4


def test_the_seed_decides_and_the_number_of_processes_does_not(tmp_path: Path) -> None:
    synthesize(settings(tmp_path / "here"))
    synthesize(settings(tmp_path / "processes", "workers=2"))
    synthesize(settings(tmp_path / "other", "seed=8"))
    here = digests(tmp_path / "here")
    assert digests(tmp_path / "processes") == here
    assert not set(digests(tmp_path / "other").values()) & set(here.values())


def test_a_second_run_leaves_what_is_there(tmp_path: Path) -> None:
    synthesize(settings(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    synthesize(settings(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_synthesize_other_settings_need_overwrite(tmp_path: Path) -> None:
    synthesize(settings(tmp_path / "a"))
    with pytest.raises(InputError, match="seed: 7 -> 8"):
        synthesize(settings(tmp_path / "a", "seed=8"))
    synthesize(settings(tmp_path / "a", "seed=8", "overwrite=true"))
    synthesize(settings(tmp_path / "b", "seed=8"))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_synthesize_resumes_an_interrupted_run(tmp_path: Path) -> None:
    synthesize(settings(tmp_path))
    whole = digests(tmp_path)
    (tmp_path / "lesions.csv").unlink()
    next(tmp_path.rglob("*.dcm")).unlink()
    synthesize(settings(tmp_path))
    assert digests(tmp_path) == whole


def test_synthesize_never_overwrites_other_data(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("precious\n")
    with pytest.raises(InputError, match="was not made here"):
        synthesize(settings(tmp_path, "overwrite=true"))
    assert digests(tmp_path).keys() == {"train.csv"}


@pytest.mark.parametrize(
    "setting",
    ["size.test_patients=0", "size.prevalence=1.5", "appearance.lesion_views=all",
     "appearance.pixel_mm=0"],
)  # fmt: skip
def test_check_refuses_an_impossible_competition(setting: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{setting}: should be "):
        check("synthesize", settings(tmp_path, setting))
