"""A bundle of untrained runs, with empty packages in the place of real wheels."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from fabricated_runs import fabricated_ensemble
from fabricated_wheels import lock_with_stubs, stub_source, stub_wheel
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from saved_runs import save_trained, spread_network

from rsna_bcd._stage import CONF
from rsna_bcd.bundling.wheels import read_lock
from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import load_run, read_checkpoint
from rsna_bcd.scoring.ensemble import Member, read_ensemble, write_ensemble
from rsna_bcd.stages.bundle import bundle
from rsna_bcd.stages.rehearse import compare, rehearse

ROOT = Path(__file__).parents[1]
# Packages that inference needs and Kaggle's image lacks: a new requirement belongs here.
BUNDLED = {
    "antlr4-python3-runtime": stub_source,
    "dicomsdl": stub_wheel,
    "hydra-core": stub_wheel,
    "omegaconf": stub_wheel,
    "pebble": stub_wheel,
    "python-gdcm": stub_wheel,
}
RUNS = (("tiny", 0), ("tiny", 2), ("pair", 1))

Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, three folds, their ensemble; stub packages and a lock that names them."""
    output = tmp_path_factory.mktemp("bundle")
    small = [f"paths.output={output}", "network.pretrained=false", "network.backbone=test_resnet"]
    experiments = {
        "tiny": ["experiment=demo", "crop.height=64", "crop.width=32"],
        "pair": ["experiment=convnext_small_two_view", "crop.height=96", "crop.width=64"],
    }
    for name, fold in RUNS:
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("train", [*small, *experiments[name], f"name={name}", f"fold={fold}"])
        run = save_trained(cfg, spread_network(cfg)[0])
        file = run / "checkpoints" / "last.ckpt"
        record = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
        torch.save({**torch.load(file), "config": record, "loops": {"fit_loop": 1}}, file)
    (output / "runs" / "tiny" / "fold0" / "seen.json").write_text('{"view": ["CC"]}')
    members = (
        Member("tiny", (0, 2), "rsna", "demo", "mean", "last", 0.5),
        Member("pair", (1,), "rsna", "h1536", "mean", "last", 0.5),
    )
    file = output / "ensembles" / "both" / "ensemble.json"
    file.parent.mkdir(parents=True)
    write_ensemble(fabricated_ensemble(members, 0.4, 0.02), file)
    (output / "wheelhouse").mkdir()
    stubs = make_stubs(output / "wheelhouse")
    (output / "stub.lock").write_text(lock_with_stubs(ROOT / "requirements.lock", stubs))
    return output


def make_stubs(folder: Path) -> dict[str, Path]:
    lock = read_lock(ROOT / "requirements.lock", "3.12")
    versions = {name: lock[name].requirement.split()[0].partition("==")[2] for name in BUNDLED}
    return {name: make(folder, name, versions[name]) for name, make in BUNDLED.items()}


@pytest.fixture(scope="module")
def run(output: Path) -> Bundle:
    def run(*overrides: str) -> Path:
        settings = [
            f"paths.output={output}", f"lock={output / 'stub.lock'}", "name=both",
            f"wheelhouse={output / 'wheelhouse'}", "owner=me",
        ]  # fmt: skip
        with initialize_config_dir(CONF, version_base="1.3"):
            return bundle(compose("bundle", [*settings, *overrides]))

    return run


@pytest.fixture(scope="module")
def made(run: Bundle) -> Path:
    return run()


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_bundle_has_exactly_these_files(made: Path, output: Path) -> None:
    assert made == output / "kaggle" / "both"
    runs = {
        f"dataset/runs/{name}/fold{fold}/{file}"
        for name, fold in RUNS
        for file in ("config.yaml", "metrics.json", "checkpoints/last.safetensors")
    }
    wheels = {f for f in files(made) if f.endswith(".whl")}
    assert {Path(w).name.split("-")[0].replace("_", "-") for w in wheels} == {*BUNDLED, "rsna-bcd"}
    assert all(w.startswith("dataset/wheels/") for w in wheels)
    assert files(made) - wheels == runs | {
        "dataset/runs/tiny/fold0/seen.json", "dataset/ensembles/both/ensemble.json",
        "dataset/wheels/requirements.txt", "dataset/dataset-metadata.json", "image.txt",
        "kernel/notebook.ipynb", "kernel/kernel-metadata.json",
    }  # fmt: skip
    (own,) = (made / "dataset" / "wheels").glob("rsna_bcd-*.whl")
    assert {"rsna_bcd/submit.py", "rsna_bcd/conf/paths/kaggle.yaml"} <= set(
        zipfile.ZipFile(own).namelist()
    )
    nbformat.validate(nbformat.read(made / "kernel" / "notebook.ipynb", as_version=4))
    kernel = json.loads((made / "kernel" / "kernel-metadata.json").read_text())
    dataset = json.loads((made / "dataset" / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [dataset["id"]] == ["me/rsna-bcd-both"]


def test_bundle_networks_and_records_are_those_of_the_runs(made: Path, output: Path) -> None:
    models = made / "dataset"
    place = Path("ensembles") / "both" / "ensemble.json"
    assert read_ensemble(models / place) == read_ensemble(output / place)
    for name, fold in RUNS:
        place = Path("runs") / name / f"fold{fold}"
        before, after = load_run(output / place), load_run(models / place)
        assert after.record == before.record
        assert (after.crop, after.tta, after.views) == (before.crop, before.tta, before.views)
        kept = before.network.state_dict()
        assert after.network.state_dict().keys() == kept.keys()
        for key, values in after.network.state_dict().items():
            assert torch.equal(values, kept[key])
        checkpoint = read_checkpoint(models / place / "checkpoints" / "last.safetensors")
        assert checkpoint["config"] == before.record


def test_bundle_records_are_checked_against_the_checkpoint(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / "tiny" / "fold0"
    shutil.copytree(made / "dataset" / "runs" / "tiny" / "fold0", copy)
    load_run(copy)
    record = copy / "config.yaml"
    record.write_text(record.read_text().replace("height: 64", "height: 128"))
    with pytest.raises(InputError, match=r"(?s)last\.safetensors .*crop\.height: 64 -> 128"):
        load_run(copy)


def test_bundle_image_is_locked_and_lacks_the_wheels(made: Path) -> None:
    lines = (made / "image.txt").read_text().splitlines()
    assert lines[0] == "# Python 3.12"
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert {"torch", "timm", "numpy", "pandas", "pyyaml", "packaging"} <= pinned
    assert not pinned & BUNDLED.keys()
    numpy = read_lock(ROOT / "requirements.lock", "3.12")["numpy"].requirement
    assert numpy in (made / "image.txt").read_text()


def test_bundle_fetches_wheels_once_per_list(made: Path, run: Bundle, output: Path) -> None:
    empty = output / "empty"
    empty.mkdir()
    before = {f.name: f.read_bytes() for f in (made / "dataset" / "wheels").glob("[!r]*.whl")}
    run(f"wheelhouse={empty}")
    after = {f.name: f.read_bytes() for f in (made / "dataset" / "wheels").glob("[!r]*.whl")}
    assert after == before
    with pytest.raises(InputError, match=r"(?s)Could not get .*dicomsdl.*wheelhouse=.*pip:"):
        run(f"wheelhouse={empty}", "python='3.11'")
    assert files(made)  # what was there stays


def test_bundle_refuses_a_wheel_with_another_hash(run: Bundle, tmp_path: Path) -> None:
    make_stubs(tmp_path)
    (wheel,) = tmp_path.glob("dicomsdl-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("more.py", "")
    with pytest.raises(InputError, match="Could not get"):
        run(f"wheelhouse={tmp_path}", "python='3.13'")


def test_bundle_refuses_bad_settings(run: Bundle, output: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        run("name=absent")
    with pytest.raises(InputError, match="Choose another title="):
        run("title=x")
    with pytest.raises(InputError, match=r"requirements\.lock has no pytroch"):
        run("image=[pytroch]")
    with pytest.raises(InputError, match="There is no absent"):
        run("lock=absent.lock")


def test_rehearse_names_missing_files(made: Path, output: Path, tmp_path: Path) -> None:
    def rehearsed(*overrides: str) -> float:
        with initialize_config_dir(CONF, version_base="1.3"):
            settings = [f"paths.output={output}", f"paths.data={tmp_path}", *overrides]
            return rehearse(compose("rehearse", settings))

    with pytest.raises(InputError, match=r"(?s)There is no .*rsna_bcd\.bundle name=absent"):
        rehearsed("name=absent")
    with pytest.raises(InputError, match=r"(?s)There is no .*rsna_bcd\.submit name=both"):
        rehearsed("name=both")
    direct = output / "submissions" / "both" / "submission.csv"
    direct.parent.mkdir(parents=True)
    pd.DataFrame({"prediction_id": ["1_L"], "cancer": [0]}).to_csv(direct, index=False)
    with pytest.raises(InputError, match=r"There is no .*test\.csv"):
        rehearsed("name=both")


def test_compare_accepts_only_the_same_submission(tmp_path: Path) -> None:
    submission = pd.DataFrame({"prediction_id": ["1_L", "1_R"], "cancer": [0, 1]})
    predictions = pd.DataFrame({"prediction_id": ["1_L", "1_R"], "probability": [0.25, 0.5]})

    def save(name: str, flipped: int, moved: float) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        changed = submission.assign(cancer=submission["cancer"] ^ flipped)
        changed.to_csv(tmp_path / name / "submission.csv", index=False)
        shifted = predictions.assign(probability=predictions["probability"] + moved)
        shifted[::-1].to_csv(tmp_path / name / "predictions.csv", index=False)
        return tmp_path / name

    direct = save("direct", 0, 0)
    same = save("same", 0, 2**-16)
    assert compare(same / "submission.csv", same, direct) == 2**-16
    other = save("other", 1, 0)
    with pytest.raises(InputError, match="differs from"):
        compare(other / "submission.csv", other, direct)
    for moved in (2**-10, float("nan")):
        far = save("far", 0, moved)
        with pytest.raises(InputError, match="Probabilities differ by"):
            compare(far / "submission.csv", far, direct)


def test_bundle_command_prints_one_message(output: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rsna_bcd.bundle", f"paths.output={output}", "name=both"]
        + ["push=create", "owner=me"],
        cwd=ROOT,
        env={"PATH": "", "HOME": str(output), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: No credentials for Kaggle.")
    assert "Traceback" not in done.stderr
