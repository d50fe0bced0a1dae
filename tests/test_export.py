"""The export stage on runs that were never trained."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from fabricated_crops import save_crops
from fabricated_networks import TinyBreasts, TinyImages
from saved_runs import CROP, save_run
from stage_settings import composed

from rsna_bcd.errors import InputError
from rsna_bcd.stages import export as stage
from rsna_bcd.stages.export import export

Export = Callable[..., Path]
TESTS = str(Path(__file__).parent).encode()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 of `images` and of `breasts`; crops of the first one only."""
    output = tmp_path_factory.mktemp("export")
    save_crops(output)
    torch.manual_seed(0)  # some untrained networks are so certain that a changed bias hardly shows
    record: dict[str, Any] = {"dataset": {"name": "rsna"}, "fold": 0, "breast_rule": "max"}
    record |= {"negatives_per_positive": None, "source": "dicom"}
    save_run(output / "runs" / "images" / "fold0", TinyImages(), name="images", **record)
    record["views"] = {"_target_": "rsna_bcd.tables.views.Views", "policy": "one_per_view"}
    record |= {"name": "breasts", "crop": {**CROP, "name": "other"}}
    save_run(output / "runs" / "breasts" / "fold0", TinyBreasts(), **record)
    return output


@pytest.fixture
def run(output: Path) -> Export:
    def run(*overrides: str) -> Path:
        return export(composed("export", f"paths.output={output}", *overrides))

    return run


def read_card(file: Path) -> Any:
    return json.loads(Path(f"{file}.json").read_text())


def test_export_onnx_describes_itself(
    run: Export, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run("name=images")
    assert "TTA: not exported" in capsys.readouterr().out
    assert file == output / "exports" / "images" / "fold0" / "model.onnx"
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    card = read_card(file)
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert card["parity"]["images"] == "crops"
    assert card["parity"]["batches"] == [1, 2, 5]
    assert 0 <= card["parity"]["probability"] <= 1e-4
    assert (card["crop"]["height"], card["crop"]["width"]) == (64, 32)
    assert card["inputs"][0]["shape"] == ["batch", 1, 64, 32]
    session = onnxruntime.InferenceSession(file)
    inside = json.loads(session.get_modelmeta().custom_metadata_map["rsna_bcd"])
    assert inside == {k: v for k, v in card.items() if k not in ("sha256", "parity")}
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("image", ["batch", 1, 64, 32], "tensor(float)")
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("logit", ["batch"]), ("probability", ["batch"]),
    ]  # fmt: skip
    logit, probability = session.run(None, {"image": np.zeros((7, 1, 64, 32), np.float32)})
    assert probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert TESTS not in file.read_bytes()  # no path of the machine


def test_export_torch_is_loaded_by_torch_alone(run: Export) -> None:
    file = run("name=breasts", "format=torch")
    card = read_card(file)
    assert file.name == "model.pt2"
    assert card["parity"]["images"] == "random"
    assert card["views"]["policy"] == "one_per_view"
    assert [(entry["name"], entry["shape"]) for entry in card["inputs"]] == [
        ("image", ["batch", "views", 1, 64, 32]), ("mask", ["batch", "views"]),
        ("view", ["batch", "views"]), ("other", ["batch", "views"]),
    ]  # fmt: skip
    program = torch.export.load(file).module()
    outputs = program(
        image=torch.zeros(3, 1, 1, 64, 32), mask=torch.ones(3, 1, dtype=torch.bool),
        view=torch.zeros(3, 1, dtype=torch.int64), other=torch.zeros(3, 1, dtype=torch.bool),
    )  # fmt: skip
    assert outputs["probability"].shape == (3,)
    assert torch.equal(outputs["logit"].sigmoid(), outputs["probability"])
    assert TESTS not in file.read_bytes()


def test_export_is_not_silently_replaced(
    run: Export, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["name=images", "format=torch"]
    made = run(*settings)
    before = made.stat().st_mtime_ns
    capsys.readouterr()
    assert run(*settings).stat().st_mtime_ns == before
    assert "exists already" in capsys.readouterr().out
    checkpoint = output / "runs" / "images" / "fold0" / "checkpoints" / "last.ckpt"
    trained = torch.load(checkpoint, weights_only=True)
    trained["state_dict"]["network.head.bias"] += 1
    torch.save(trained, checkpoint)
    with pytest.raises(InputError, match=r"weights_sha256: \w+ -> \w+\n.*overwrite=true"):
        run(*settings)
    assert made.stat().st_mtime_ns == before
    run(*settings, "overwrite=true")
    assert made.stat().st_mtime_ns > before
    made.write_bytes(made.read_bytes()[:-1])
    before = made.stat().st_mtime_ns
    run(*settings)  # a damaged file is made again
    assert made.stat().st_mtime_ns > before


def test_export_deletes_a_file_that_differs(
    run: Export, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = stage.capture

    def other(network: Any, inputs: Any) -> Any:
        network.head.bias.data += 0.001
        program = capture(network, inputs)
        network.head.bias.data -= 0.001
        return program

    monkeypatch.setattr(stage, "capture", other)
    with pytest.raises(InputError, match=r"differs from the network by 0\.00\d+ in probability"):
        run("name=breasts")
    folder = output / "exports" / "breasts" / "fold0"
    assert not list(folder.glob("model.onnx*"))
    assert not list(folder.glob("unfinished*"))


def test_export_refuses_absent_runs(run: Export, output: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)There is no run in .*rsna_bcd\.train .*fold=3"):
        run("name=images", "fold=3")
    assert not (output / "exports" / "images" / "fold3").exists()
