"""A network of the user's own, as the README describes it, from training to a submission."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from fabricated_crops import save_crops
from tiny_training import SMALL, run, saved

from rsna_bcd.data.datamodule import shared_memory_failure, workers_that_fit
from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import load_run

pytestmark = pytest.mark.filterwarnings("ignore")

# In the place of a YAML in conf/network: the root of the group has no keys of ours.
SETTINGS = (*SMALL, "name=x", "epochs=1", "~network", "+network={_target_: own_network.Net}")
HEADER = """
    import torch
    from torch import Tensor, nn


    class Net(nn.Module):
        def __init__(self{arguments}) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 1)
            {rest}

        def forward(self, images{inputs}):
            features = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
            {last}
"""
LAST = 'return {"logit": self.head(features)[:, 0]}'


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    save_crops(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_network", None)


def write(
    output: Path, arguments: str = "", rest: str = "pass", inputs: str = "", last: str = LAST
) -> None:
    text = HEADER.format(arguments=arguments, rest=rest, inputs=inputs, last=last)
    (output / "own_network.py").write_text(textwrap.dedent(text))


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        ("", "self.given = None"),
        (", pretrained=True, checkpoint_path=None", "self.given = pretrained or checkpoint_path"),
        (", **options", "self.given = options.get('pretrained')"),
    ],
    ids=["none", "named", "any"],
)
def test_an_own_network_trains_and_loads_with_the_arguments_that_it_takes(
    arguments: str, rest: str, output: Path
) -> None:
    write(output, arguments, rest)
    folder = run(output, settings=SETTINGS)
    assert len(pd.read_csv(folder / "oof_images.csv")) == 16
    loaded = load_run(folder)
    assert loaded.level == "image"
    assert not loaded.network.given
    state = saved(folder)["state_dict"]
    assert torch.equal(loaded.network.state_dict()["head.weight"], state["network.head.weight"])


@pytest.mark.parametrize(
    ("last", "part"),
    [
        ("return self.head(features)[:, 0]", r"Net returns Tensor instead of a dictionary"),
        ('return {"logits": self.head(features)[:, 0]}', r"returns \['logits'\] instead"),
        ('return {"logit": self.head(features)}', r"a logit \(2, 1\).* \(2,\) .* logit\[:, 0\]"),
        ('return {"logit": (self.head(features)[:, 0] > 0)}', r"torch.bool of 2 samples"),
    ],
)
def test_the_contract_is_checked_before_the_first_batch(last: str, part: str, output: Path) -> None:
    write(output, last=last)
    with pytest.raises(InputError, match=part):
        run(output, settings=SETTINGS)
    assert not list(output.rglob("runs/**/config.yaml"))


def test_inputs_that_no_batch_has_are_named(output: Path) -> None:
    write(output, rest='self.inputs = ("view", "age")', inputs=", view, age")
    with pytest.raises(InputError, match="takes view, age, which a batch does not have"):
        run(output, settings=SETTINGS)


def test_an_error_inside_a_network_keeps_its_traceback(output: Path) -> None:
    write(output, last="return features.no_such_method()")
    with pytest.raises(AttributeError, match="no_such_method") as error:
        run(output, settings=SETTINGS)
    assert "failed on a first batch: image (2, 1, 64, 32) float32" in error.value.__notes__[0]


def test_a_checkpoint_that_a_network_would_not_get_is_refused(output: Path) -> None:
    write(output)
    with pytest.raises(InputError, match=r"own_network.Net would not get it"):
        run(output, "checkpoint_path=some.pth", settings=SETTINGS)


def test_workers_that_fit_into_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = type("Usage", (), {"free": 64_000_000})
    monkeypatch.setattr("rsna_bcd.data.datamodule.shutil.disk_usage", lambda _: usage)
    assert workers_that_fit(8, 100_000, tmp_path) == 8
    assert not caplog.messages
    batch = 32 * 1024 * 512  # one batch of h1024
    assert workers_that_fit(8, batch, tmp_path) == 0
    assert workers_that_fit(8, batch // 8, tmp_path) == 6
    assert "64 MB free, and 8 workers need" in caplog.text
    assert "--shm-size=8g" in caplog.text
    assert workers_that_fit(0, batch, tmp_path) == 0
    assert workers_that_fit(8, batch, tmp_path / "absent") == 8


def test_a_run_with_little_shared_memory_trains_without_workers(
    output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("rsna_bcd.data.datamodule.shutil.disk_usage", lambda _: usage)
    write(output)
    run(output, "workers=2", settings=SETTINGS)
    assert "training continues with workers=0" in caplog.text


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
         "dataloader's workers are out of shared memory.", True),
        ("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to write to "
         "file </torch_12_345_0>: No space left on device (28)", True),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)  # fmt: skip
def test_shared_memory_failure_recognises_workers_that_ran_out(text: str, is_ours: bool) -> None:
    assert (shared_memory_failure(RuntimeError(text)) is not None) is is_ours
