"""A bundle of untrained runs, with empty packages in the place of real wheels."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from fabricated_runs import fabricated_ensemble
from fabricated_wheels import lock_with_stubs, stub_source, stub_wheel
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from saved_runs import save_trained, spread_network
from stage_settings import composed

from rsna_bcd.bundling.wheels import read_lock
from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import load_members, load_run
from rsna_bcd.models.backbone import _find_layout
from rsna_bcd.models.checkpoint import read_checkpoint
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
RUNS = (("tiny", 0), ("pair", 1))
PLACES = [f"runs/{name}/fold{fold}" for name, fold in RUNS]
ENSEMBLE = "ensembles/both/ensemble.json"

Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members and their ensemble; stub packages and a lock that names them."""
    output = tmp_path_factory.mktemp("bundle")
    small = [f"paths.output={output}", "network.pretrained=false", "network.backbone=test_resnet"]
    experiments = {
        "tiny": ["experiment=demo", "crop.height=64", "crop.width=32"],
        "pair": ["experiment=convnext_small_two_view", "crop.height=96", "crop.width=64"],
    }
    for name, fold in RUNS:
        cfg = composed("train", *small, *experiments[name], f"name={name}", f"fold={fold}")
        run = save_trained(cfg, spread_network(cfg)[0])
        file = run / "checkpoints" / "last.ckpt"
        record = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
        torch.save({**torch.load(file), "config": record, "loops": {"fit_loop": 1}}, file)
    (output / PLACES[0] / "seen.json").write_text('{"view": ["CC"]}')
    members = (
        Member("tiny", (0,), "rsna", "demo", "mean", "last", 0.5),
        Member("pair", (1,), "rsna", "h1536", "mean", "last", 0.5),
    )
    (output / ENSEMBLE).parent.mkdir(parents=True)
    write_ensemble(fabricated_ensemble(members, 0.4, 0.02), output / ENSEMBLE)
    wheelhouse = output / "wheelhouse"
    wheelhouse.mkdir()
    lock = read_lock(ROOT / "requirements.lock", "3.12")
    versions = {name: lock[name].requirement.split()[0].partition("==")[2] for name in BUNDLED}
    stubs = {name: make(wheelhouse, name, versions[name]) for name, make in BUNDLED.items()}
    (output / "stub.lock").write_text(lock_with_stubs(ROOT / "requirements.lock", stubs))
    return output


@pytest.fixture(scope="module")
def run(output: Path) -> Bundle:
    def run(*overrides: str) -> Path:
        settings = [
            f"paths.output={output}", f"lock={output / 'stub.lock'}", "name=both",
            f"wheelhouse={output / 'wheelhouse'}", "owner=me",
        ]  # fmt: skip
        return bundle(composed("bundle", *settings, *overrides))

    return run


@pytest.fixture(scope="module")
def made(run: Bundle) -> Path:
    return run()


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_bundle_has_exactly_these_files(made: Path, output: Path) -> None:
    assert made == output / "kaggle" / "both"
    parts = ("config.yaml", "metrics.json", "checkpoints/last.safetensors")
    runs = {f"dataset/{place}/{file}" for place in PLACES for file in parts}
    wheels = {f for f in files(made) if f.endswith(".whl")}
    assert {Path(w).name.split("-")[0].replace("_", "-") for w in wheels} == {*BUNDLED, "rsna-bcd"}
    assert all(w.startswith("dataset/wheels/") for w in wheels)
    assert files(made) - wheels == runs | {
        f"dataset/{PLACES[0]}/seen.json", f"dataset/{ENSEMBLE}",
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


def test_bundle_has_the_networks_and_records_of_the_runs(made: Path, output: Path) -> None:
    models = made / "dataset"
    assert read_ensemble(models / ENSEMBLE) == read_ensemble(output / ENSEMBLE)
    for place in PLACES:
        before, after = load_run(output / place), load_run(models / place)
        assert after.record == before.record
        assert (after.crop, after.tta, after.views) == (before.crop, before.tta, before.views)
        expected, actual = before.network.state_dict(), after.network.state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(values, expected[key]) for key, values in actual.items())
        checkpoint = read_checkpoint(models / place / "checkpoints" / "last.safetensors")
        assert checkpoint["config"] == before.record


def test_bundle_has_the_networks_of_all_patients_alone(
    run: Bundle, output: Path, tmp_path: Path
) -> None:
    fitted = read_ensemble(output / ENSEMBLE)
    shutil.copytree(output / "runs", tmp_path / "runs")
    for name, fold in RUNS:
        folder = tmp_path / "runs" / name
        (folder / f"fold{fold}").rename(folder / "foldall")
    write_ensemble(replace(fitted, networks="all"), tmp_path / ENSEMBLE)
    bundle = run(f"paths.output={tmp_path}")
    assert {f.parent.name for f in bundle.rglob("config.yaml")} == {"foldall"}
    (dataset,) = bundle.glob("dataset")
    loaded = load_members(read_ensemble(dataset / ENSEMBLE), dataset)
    assert [run.name for member in loaded for run in member] == ["tiny foldall", "pair foldall"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub, offline, with the description of one small network."""
    cache = tmp_path / "hub" / "models--someone--small"
    (cache / "snapshots" / "0").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0")
    weights = {"input_size": [3, 96, 96], "num_classes": 7}
    arguments = {"act_layer": "silu"}  # not the default: it must be in the bundle
    description = {
        "architecture": "test_resnet",
        "pretrained_cfg": weights,
        "model_args": arguments,
    }
    (cache / "snapshots" / "0" / "config.json").write_text(json.dumps(description))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("source", ["hf-hub:someone/small", "local-dir"])
def test_bundle_has_the_description_of_a_backbone_of_the_hub(
    source: str, hub: Path, run: Bundle, output: Path, tmp_path: Path
) -> None:
    folder = hub / "models--someone--small" / "snapshots" / "0"
    backbone = f"local-dir:{folder}" if source == "local-dir" else source
    small = [f"paths.output={tmp_path}", "network.pretrained=false", "name=tiny", "fold=0"]
    crop = ["experiment=demo", "crop.height=64", "crop.width=32"]
    cfg = composed("train", *small, *crop, f"network.backbone='{backbone}'")
    trained = save_trained(cfg, spread_network(cfg)[0])
    member = Member("tiny", (0,), "rsna", "demo", "mean", "last", 1.0)
    (tmp_path / ENSEMBLE).parent.mkdir(parents=True)
    write_ensemble(fabricated_ensemble((member,), 0.4, 0.02), tmp_path / ENSEMBLE)
    before, dataset = load_run(trained), run(f"paths.output={tmp_path}") / "dataset"
    shutil.rmtree(hub)
    _find_layout.cache_clear()
    after = load_run(dataset / PLACES[0])
    assert after.record == before.record
    images = torch.rand(2, 1, 64, 32)
    with torch.inference_mode():
        assert torch.equal(after.network(images)["logit"], before.network(images)["logit"])
    is_folder = source == "local-dir"
    message = f"there is no {folder}/config.json" if is_folder else "Try again with a connection"
    with pytest.raises(InstantiationException, match=message):
        run(f"paths.output={tmp_path}")


def test_load_run_checks_the_record_of_a_bundle(made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made / "dataset" / PLACES[0], tmp_path / PLACES[0])
    record = copy / "config.yaml"
    record.write_text(record.read_text().replace("height: 64", "height: 128"))
    with pytest.raises(InputError, match=r"(?s)last\.safetensors .*crop\.height: 64 -> 128"):
        load_run(copy)


def test_bundle_image_is_locked_and_lacks_the_wheels(made: Path) -> None:
    text = (made / "image.txt").read_text()
    assert text.startswith("# Python 3.12\n")
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    assert {"torch", "timm", "numpy", "pandas", "pyyaml", "packaging"} <= pinned
    assert not pinned & BUNDLED.keys()
    assert read_lock(ROOT / "requirements.lock", "3.12")["numpy"].requirement in text


def test_bundle_fetches_wheels_once_per_list(made: Path, run: Bundle, output: Path) -> None:
    (output / "empty").mkdir()
    before = {f.name: f.read_bytes() for f in (made / "dataset" / "wheels").glob("[!r]*.whl")}
    run(f"wheelhouse={output / 'empty'}")
    after = {f.name: f.read_bytes() for f in (made / "dataset" / "wheels").glob("[!r]*.whl")}
    assert after == before
    with pytest.raises(InputError, match=r"(?s)Could not get .*dicomsdl.*wheelhouse=.*pip:"):
        run(f"wheelhouse={output / 'empty'}", "python='3.11'")
    assert files(made)  # the earlier bundle stays


def test_bundle_checks_names_and_credentials_first(
    run: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    for override, message in (
        ("name=absent", "absent"),
        ("title=x", "Choose another title="),
        ("push=create", "No credentials for Kaggle"),
    ):
        with pytest.raises(InputError, match=message):
            run(override)


def test_rehearse_names_missing_files(made: Path, output: Path, tmp_path: Path) -> None:
    def rehearsed(name: str) -> float:
        overrides = [f"paths.output={output}", f"paths.data={tmp_path}", f"name={name}"]
        return rehearse(composed("rehearse", *overrides))

    with pytest.raises(InputError, match=r"(?s)There is no .*rsna_bcd\.bundle name=absent"):
        rehearsed("absent")
    with pytest.raises(InputError, match=r"(?s)There is no .*rsna_bcd\.submit name=both"):
        rehearsed("both")
    direct = output / "submissions" / "both" / "submission.csv"
    direct.parent.mkdir(parents=True)
    direct.write_text("prediction_id,cancer\n1_L,0\n")
    with pytest.raises(InputError, match=r"There is no .*test\.csv"):
        rehearsed("both")


@pytest.mark.parametrize(
    ("flipped", "difference", "message"),
    [
        (0, 2**-16, None),
        (1, 0, "differs from"),
        (0, 2**-10, "Probabilities differ by"),
        (0, float("nan"), "Probabilities differ by"),
    ],
)
def test_compare_accepts_only_the_same_submission(
    flipped: int, difference: float, message: str | None, tmp_path: Path
) -> None:
    ids = ["1_L", "1_R"]
    for name, flip, add in (("direct", 0, 0), ("rehearsed", flipped, difference)):
        folder = tmp_path / name
        folder.mkdir()
        submission = pd.DataFrame({"prediction_id": ids, "cancer": [0 ^ flip, 1 ^ flip]})
        submission.to_csv(folder / "submission.csv", index=False)
        predictions = pd.DataFrame({"prediction_id": ids, "probability": [0.25 + add, 0.5 + add]})
        predictions.sample(frac=1, random_state=flip).to_csv(
            folder / "predictions.csv", index=False
        )
    rehearsed, direct = tmp_path / "rehearsed", tmp_path / "direct"
    if message is None:
        assert compare(rehearsed / "submission.csv", rehearsed, direct) == difference
        return
    with pytest.raises(InputError, match=message):
        compare(rehearsed / "submission.csv", rehearsed, direct)
