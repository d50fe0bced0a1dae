"""Every configuration composes; every experiment is a delta of train.yaml that can be trained."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from stage_settings import composed

import rsna_bcd.stages.train  # noqa: F401  (albumentations is silenced before Hydra imports it)
from rsna_bcd._stage import CONF
from rsna_bcd.models.aggregators import Mean
from rsna_bcd.models.prediction import Batch, network_outputs
from rsna_bcd.tables.views import Views


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


ROOTS, EXPERIMENTS = options(""), options("experiment")
OPTIONS = [
    f"{group}={option}"
    for group in ("augment", "crop", "folds", "logger", "loss", "network", "paths", "trainer")
    for option in options(group)
]
SMALLER = {  # networks of the same kind that take a tenth of the time
    "tf_efficientnet_b5.ns_jft_in1k": "test_efficientnet",
    "tf_efficientnetv2_s.in21k_ft_in1k": "test_efficientnet",
    "convnext_small.fb_in22k_ft_in1k_384": "test_convnext",
}


@pytest.mark.parametrize("root", ROOTS)
def test_root_composes_and_fixes_its_folder(root: str) -> None:
    yaml = OmegaConf.load(Path(CONF) / f"{root}.yaml")
    name = ["name=x"] if "name" in set(yaml) else []  # `in` would overlook `name: ???`
    cfg = composed(root, *name, return_hydra_config=True)
    homes = (cfg.paths.output, cfg.paths.data)
    assert any(Path(cfg.hydra.run.dir).is_relative_to(home) for home in homes)
    groups = {key for entry in yaml.defaults if OmegaConf.is_dict(entry) for key in entry}
    assert ("experiment" in groups) == (root == "train")


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_with_train(option: str) -> None:
    cfg = composed("train", "name=x", option)
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    assert resolved["name"] == "x"


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith(("trainer", "logger"))])
def test_trainer_and_logger_are_accepted_by_lightning(option: str, tmp_path: Path) -> None:
    overrides = []
    if option in ("trainer=gpu", "trainer=ddp", "trainer=slurm"):  # settings without the hardware
        overrides = ["trainer.accelerator=cpu", "++trainer.strategy=auto", "trainer.devices=1"]
    cfg = composed("train", "name=x", f"paths.output={tmp_path}", option, *overrides)
    trainer = instantiate(cfg.trainer)
    assert trainer.max_epochs == cfg.epochs
    assert len(trainer.loggers) == int(option == "logger=wandb")


def small_batch(network: Any, pixels: torch.Tensor) -> Batch:
    """A batch that a network can look at: pixels (B, 1, H, W), or a breast of each with another."""
    batch = {"image": pixels, "metadata": torch.randn(len(pixels), 2)}
    if network.unit == "breast":
        batch["image"] = torch.stack([pixels, pixels.flip(0), 0 * pixels], dim=1)
        batch["mask"] = torch.tensor([True, True, False]).expand(len(pixels), -1)
        batch["view"] = torch.tensor([0, 1, 2]).expand(len(pixels), -1)
        batch["other"] = torch.zeros(len(pixels), 3, dtype=torch.bool)
    return batch


METADATA = "metadata={_target_: rsna_bcd.tables.metadata.Metadata, columns: [age]}"
IMAGE_NETWORKS = [  # the others take steps of experiments, below
    name
    for name in options("network")
    if "ImageClassifier" in (Path(CONF) / "network" / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_every_parameter_of_a_network_learns(name: str) -> None:
    """On the meta device, which has shapes and no values: of the real networks, in no time."""
    cfg = composed(
        "train", "name=x", f"network={name}", "network.pretrained=false", "+auxiliary.density=0.1",
        METADATA, "crop.height=160", "crop.width=96",
    )  # fmt: skip
    with torch.device("meta"):
        network = instantiate(cfg.network).train()
        outputs = network_outputs(network, small_batch(network, torch.rand(2, 1, 160, 96)))
        assert (outputs["logit"].shape, outputs["density"].shape) == ((2,), (2, 4))
        torch.cat([output.flatten() for output in outputs.values()]).sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


def test_aggregator_is_one_override() -> None:
    cfg = composed(
        "train", "name=x", "network=effnetv2_s_attention", "network.pretrained=false",
        "network.backbone=test_resnet", "~network.aggregator.hidden",
        "network.aggregator._target_=rsna_bcd.models.aggregators.Mean",
    )  # fmt: skip
    assert isinstance(instantiate(cfg.network).aggregator, Mean)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_is_a_delta_with_hypothesis_and_outcome(name: str) -> None:
    text = (Path(CONF) / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# Hypothesis: ")
    assert "\n# Outcome: " in text
    # A typo at the root, on which Hydra is silent.
    assert set(OmegaConf.create(text)) - {"defaults"} - set(composed("train")) == set()
    assert composed("train", f"experiment={name}").name == name
    cfg = composed("train", f"experiment={name}", "trainer=ddp")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert cfg.trainer.strategy == "ddp"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_takes_a_training_step(name: str) -> None:
    inputs = ("checkpoint_path=null", METADATA, "++auxiliary.density=0.1")
    cfg = composed("train", f"experiment={name}", *inputs)
    cfg.network.pretrained = False
    cfg.network.backbone = SMALLER.get(cfg.network.backbone, cfg.network.backbone)
    if name == "global_local":
        cfg.network.patch = 32
    torch.manual_seed(0)
    classifier = instantiate(cfg.classifier)
    network = classifier.network
    assert network.unit == "breast" or instantiate(cfg.views) == Views()
    grouped = [id(p) for group in network.layer_groups() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    optimizer = instantiate(cfg.rates).make_optimizer(
        instantiate(cfg.optimizer), network, batch_size=cfg.batch_size, fused=True
    )
    schedule = instantiate(cfg.scheduler)(optimizer, 10)
    augment = instantiate(cfg.augment)
    pixels = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8).numpy()
    images = torch.stack([torch.from_numpy(augment(p, (0, 0, i))) for i, p in enumerate(pixels)])
    before = network.head.weight.detach().clone()
    outputs = network_outputs(network, small_batch(network, images[:, None]))
    label = torch.tensor([0.0, 1.0])
    targets = {f"target_{column}": label for column in cfg.auxiliary}
    loss = classifier.criterion(outputs, {"label": label, **targets})["loss"]
    loss.backward()
    optimizer.step()
    schedule.step()
    assert torch.isfinite(loss)
    assert not torch.equal(network.head.weight, before)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_sweep_writes_into_the_folders_of_single_runs() -> None:
    cfg = composed("train", "name=x", "fold=2", return_hydra_config=True)
    hydra = OmegaConf.select(cfg, "hydra")
    assert hydra.run.dir == cfg.run_dir == "output/runs/x/fold2"
    assert f"{hydra.sweep.dir}/{hydra.sweep.subdir}" == cfg.run_dir


@pytest.mark.parametrize("dataset", options("dataset"))
def test_dataset_is_named_like_its_file_and_fits_its_mapping(dataset: str) -> None:
    cfg = composed("prepare", f"dataset={dataset}")
    if OmegaConf.is_missing(cfg.dataset, "name"):  # the reader's own data, the reader's own name
        assert dataset == "generic"
        cfg.dataset.name = dataset
    settings = OmegaConf.to_container(cfg.dataset, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    assert settings["name"] == dataset
    assert all(settings[key] for key in ("train_csv", "train_images"))
    rows = instantiate(cfg.dataset.rows)
    inspect.signature(rows.func).bind([], "train", **rows.keywords)
