"""The stage `synthesize`: formats, files, determinism, resuming."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from omegaconf import DictConfig
from stage_settings import composed

from rsna_bcd._stage import check
from rsna_bcd.errors import InputError
from rsna_bcd.stages.synthesize import synthesize
from rsna_bcd.tables.images import Split, read_images

TINY = ("size.train_patients=2", "size.test_patients=1", "size.prevalence=0.5")


def settings(data: Path, *overrides: str) -> DictConfig:
    """The configuration of a competition of three patients."""
    given = [f"paths.data={data}", "workers=0", "appearance.pixel_mm=1.6", *TINY, *overrides]
    return composed("synthesize", *given)


def digests(folder: Path) -> dict[str, str]:
    """Relative path to SHA-256 of all files but the record."""
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


@pytest.fixture(scope="module")
def seed7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed7")
    synthesize(settings(folder))
    return folder


@pytest.fixture
def made(seed7: Path, tmp_path: Path) -> Path:
    """A copy of the competition of three patients."""
    return shutil.copytree(seed7, tmp_path / "made")


def test_synthesize_tables_are_like_kaggles(
    competition: Path, tables: dict[str, pd.DataFrame]
) -> None:
    train, test = tables["train"], tables["test"]
    assert ",".join(train.columns) == (
        "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,"
        "density,machine_id,difficult_negative_case"
    )
    whole = ["site_id", "patient_id", "image_id", "cancer", "biopsy", "invasive", "implant"]
    assert (train[[*whole, "machine_id"]].dtypes == np.int64).all()
    assert (train[["age", "BIRADS"]].dtypes == np.float64).all()
    assert train["difficult_negative_case"].dtype == bool
    assert test["prediction_id"].str.fullmatch(r"\d+_[LR]").all()
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        read_images(competition / f"{split}.csv", split)
        expected = {f"{row.patient_id}/{row.image_id}.dcm" for row in tables[split].itertuples()}
        folder = competition / f"{split}_images"
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == expected


def test_synthesize_headers_have_the_variants_of_real_files(
    headers: dict[int, pydicom.Dataset],
) -> None:
    syntaxes = {header.file_meta.TransferSyntaxUID for header in headers.values()}
    assert syntaxes == {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"}
    photometric = {header.PhotometricInterpretation for header in headers.values()}
    assert photometric == {"MONOCHROME1", "MONOCHROME2"}
    assert {header.BitsStored for header in headers.values()} == {10, 12, 16}


def test_synthesize_lesions_are_bright_and_lie_in_breasts_with_cancer(
    tables: dict[str, pd.DataFrame], headers: dict[int, pydicom.Dataset]
) -> None:
    train, test = tables["train"], tables["test"].merge(tables["solution"], on="prediction_id")
    images = pd.concat([train[["image_id", "cancer"]], test[["image_id", "cancer"]]])
    lesions = tables["lesions"]
    assert set(lesions["image_id"]) == set(images.loc[images["cancer"] == 1, "image_id"])
    assert set(lesions["kind"]) == {"spiculated_mass", "calcification_cluster"}
    contrasts = []
    for lesion in lesions.to_dict("records"):
        header = headers[lesion["image_id"]]
        pixels = header.pixel_array
        left, top = lesion["box_left"], lesion["box_top"]
        right, bottom = left + lesion["box_width"], top + lesion["box_height"]
        x, y = lesion["center_x"], lesion["center_y"]
        assert 0 <= left < x < right <= pixels.shape[1]
        assert 0 <= top < y < bottom <= pixels.shape[0]
        values, counts = np.unique(pixels, return_counts=True)
        tissue = pixels != values[counts.argmax()]
        assert tissue[top:bottom, left:right].mean() > 0.7
        assert tissue[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].all()
        if lesion["kind"] == "spiculated_mass":
            rows, columns = np.indices(pixels.shape)
            distance = np.hypot(columns - x, rows - y) / lesion["radius"]
            around = (distance > 0.9) & (distance < 1.1)
            difference = pixels[distance < 0.3].mean() - pixels[around].mean()
            sign = -1 if header.PhotometricInterpretation == "MONOCHROME1" else 1
            contrasts.append(sign * difference / 2**header.BitsStored)
    assert np.median(contrasts) > 0.02


def test_synthesize_can_show_cancers_in_one_view_only(tmp_path: Path) -> None:
    synthesize(settings(tmp_path, "appearance.lesion_views=one", "size.prevalence=1"))
    train, lesions = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("train", "lesions"))
    shown = train[train["image_id"].isin(lesions["image_id"])]
    sides = shown.assign(side=shown["view"] != "CC").groupby(["patient_id", "laterality"])["side"]
    assert (sides.nunique() == 1).all()
    assert len(sides) == 4


def test_synthesize_depends_on_the_seed_and_not_on_the_number_of_processes(
    seed7: Path, made: Path, tmp_path: Path
) -> None:
    synthesize(settings(tmp_path / "processes", "workers=2"))
    assert digests(tmp_path / "processes") == digests(seed7)
    with pytest.raises(InputError, match="seed: 7 -> 8"):
        synthesize(settings(made, "seed=8"))
    synthesize(settings(made, "seed=8", "overwrite=true"))
    assert digests(made).keys() != digests(seed7).keys()
    assert not set(digests(made).values()) & set(digests(seed7).values())


def test_synthesize_resumes_and_leaves_a_complete_competition(seed7: Path, made: Path) -> None:
    (made / "lesions.csv").unlink()
    next(made.rglob("*.dcm")).unlink()
    synthesize(settings(made))
    assert digests(made) == digests(seed7)
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    synthesize(settings(made))
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


@pytest.mark.parametrize("name", ["train.csv", "test.csv", "train_images/7/1.dcm", "notes.txt"])
def test_synthesize_never_writes_into_another_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("precious\n")
    before = digests(tmp_path)
    for overwrite in "true", "false":
        with pytest.raises(InputError, match=f"{name.split('/')[0]}, which was not made here"):
            synthesize(settings(tmp_path, f"overwrite={overwrite}"))
    assert digests(tmp_path) == before
    assert not (tmp_path / "synthesize.yaml").exists()


def test_synthesize_accepts_hidden_files_and_an_unfinished_record(
    seed7: Path, tmp_path: Path
) -> None:
    for name in ".DS_Store", ".gitkeep", "synthesize.yaml.host-1.part":
        (tmp_path / name).touch()
    synthesize(settings(tmp_path))
    assert digests(tmp_path).items() > digests(seed7).items()


def test_synthesize_deletes_only_what_it_made(made: Path) -> None:
    image = next((made / "train_images").rglob("*.dcm"))
    killed = image.parent / ".a1b2c3d4" / "plain.dcm"
    own = [image.with_name("mine.dcm"), made / "train_images" / "mine" / "1.dcm", made / "my.txt"]
    for file in (killed, *own):
        file.parent.mkdir(exist_ok=True)
        file.write_text("precious\n")
    synthesize(settings(made, "seed=8", "overwrite=true"))
    train, test = (pd.read_csv(made / f"{split}.csv") for split in ("train", "test"))
    assert sum(1 for _ in made.rglob("*.dcm")) == len(train) + len(test) + 2
    assert [file.read_text() for file in own] == ["precious\n"] * 3
    assert not killed.parent.exists()


@pytest.mark.parametrize(
    "setting",
    ["size.test_patients=0", "size.prevalence=1.5", "appearance.lesion_views=all",
     "appearance.pixel_mm=0"],
)  # fmt: skip
def test_check_refuses_an_impossible_competition(setting: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{setting}: should be "):
        check("synthesize", settings(tmp_path, setting))
