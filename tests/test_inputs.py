"""Inputs and targets of a network that the command refuses."""

import sys
from pathlib import Path

import pytest
from fabricated_crops import HEIGHT, WIDTH, save_crops

from rsna_bcd._stage import main

METADATA = "_target_: rsna_bcd.tables.metadata.Metadata"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"metadata={{{METADATA}, columns: [age, biopsy]}}", "biopsy is known in hindsight only"),
        ("+auxiliary.density=0.1", "no values of density"),
        ("views.policy=some", "views.policy=some: should be all, one_per_view"),
    ],
)
def test_train_refuses_inputs_before_training(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_crops(tmp_path)
    settings = [
        f"paths.output={tmp_path}", "name=x", "crop=demo", f"crop.height={HEIGHT}",
        f"crop.width={WIDTH}", "network.backbone=test_efficientnet", "network.pretrained=false",
        "epochs=1", "batch_size=4", "workers=0", "trainer=cpu", override,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train", *settings])
    with pytest.raises(SystemExit) as stop:
        main("train")
    text = str(stop.value.code)
    assert text.startswith("error: ")
    assert message in text
    assert not (tmp_path / "runs" / "x" / "fold0" / "config.yaml").exists()
