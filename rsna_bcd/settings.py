"""The settings of each command: its keys at the root of the configuration, and their kinds.

One dataclass per file `conf/<command>.yaml`. The YAML has the values and their meaning; the
dataclass has the kind and the range of each. Keys of a section with a `_target_` are the arguments
of its constructor.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field

from rsna_bcd._validation import Name, Strict, missing

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Groups = Annotated[int, Field(ge=2)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]
Source = Literal["dicom", "image"]
Decoder = Literal["pydicom", "dicomsdl", "gdcm", "openjpeg", "pillow"]
Fold = Count | Literal["all"]
Section = dict[str, Any]
Weights = dict[str, Annotated[float, Field(ge=0)]]

_NUMBER = r"-?\d*\.?\d+"
_TRANSFORM = re.compile(rf"hflip|vflip|both|scale_{_NUMBER}|shift_{_NUMBER}_{_NUMBER}")
_TRANSFORMS = (
    "should be a list of hflip, vflip, both, scale_1.1 (0.5 to 2, not 1) and shift_0.05_-0.02 "
    "(shares of the width and the height, 0.5 at most)"
)


def tta_transforms(tta: Any) -> list[str]:
    """The transforms of `tta` (`models.prediction.transform`).

    `none` and null are an empty list, a name alone is a list of it.

    Raises:
        ValueError: no such list, an unknown transform, or one twice.
    """
    names = [] if tta in (None, "none") else [tta] if isinstance(tta, str) else tta
    if not isinstance(names, list):
        raise ValueError(_TRANSFORMS)
    found: set[tuple[str | float, ...]] = set()
    for name in map(str, names):
        kind, *numbers = name.split("_") if _TRANSFORM.fullmatch(name) else ("",)
        values = tuple(map(float, numbers))
        if (
            not kind
            or (kind == "scale" and not (0.5 <= values[0] <= 2 and values[0] != 1))
            or (kind == "shift" and not 0 < max(map(abs, values)) <= 0.5)
        ):
            raise ValueError(f"{_TRANSFORMS}, not {name}")
        if (kind, *values) in found:
            raise ValueError(f"should have {name} once")
        found.add((kind, *values))
    return names


_RUNS = "output/runs/*/fold*"
_ENSEMBLES = "models/ensembles/*/ensemble.json"
_SUBMISSIONS = "output/submissions/*/submission.csv"


@dataclass(kw_only=True)
class Paths:
    """Where everything is. A user's own file may have further keys, to refer to."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="allow")
    data: Text
    output: Text
    models: Text


@dataclass(kw_only=True)
class Dataset:
    """A data set's tables and folders."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="allow")
    name: Name = missing("give dataset.name=..., for the folders of crops and folds")
    train_csv: Text | list[Text] | None
    test_csv: Text | list[Text] | None
    train_images: Text | None
    test_images: Text | None
    rows: Section


@dataclass(kw_only=True)
class Folds(Strict):
    """How patients are assigned to folds, and the name of that."""

    strategy: Name
    assign: Section


def unrecorded() -> Any:
    """Describe a field that is no part of a record."""
    return field(metadata={"recorded": False})


@dataclass(kw_only=True)
class Command(Strict):
    """Settings that all commands have.

    Attributes:
        written: the keys that together decide where a command writes: two jobs of a sweep in which
            all of them are equal would overwrite each other.
        resume_hint: how to resume an interrupted run, printed when it is stopped.
    """

    written: ClassVar[tuple[str, ...]]
    resume_hint: ClassVar[str] = ""
    paths: Paths = unrecorded()


@dataclass(kw_only=True)
class Png(Strict):
    """How crops are compressed."""

    level: Annotated[int, Field(ge=0, le=9)]
    strategy: Literal["default", "filtered", "huffman", "rle", "fixed"]
    filter: Literal["none", "sub", "up", "avg", "paeth"]


@dataclass(kw_only=True)
class Cluster(Strict):
    """Limits of one file, and who works on it."""

    address: Text | None
    limit_seconds: Above
    limit_gigabytes: Above


@dataclass(kw_only=True)
class Prepare(Command):
    """`conf/prepare.yaml`."""

    written = ("prepared_dir", "folds_csv", "splits")
    resume_hint = "Finished work is kept: run the same command to resume."
    dataset: Dataset
    crop: Section
    folds: Folds
    source: Source
    splits: Annotated[list[Literal["train", "test"]], Field(min_length=1)]
    allow_missing: bool
    max_failed_fraction: Share
    overwrite: bool
    overwrite_folds: bool
    decoders: Annotated[list[Decoder], Field(min_length=1)]
    png: Png
    workers: Count | None
    cluster: Cluster
    prepared_dir: Text
    folds_csv: Text


@dataclass(kw_only=True)
class Ema(Strict):
    """The moving average of the weights."""

    decay: Annotated[float, Field(ge=0, lt=1)] | None
    start: Count


def _with_target(section: Section) -> Section:
    if "_target_" not in section:
        raise ValueError("should have metadata._target_=rsna_bcd.tables.metadata.Metadata")
    return section


def _ascending(folds: list[int]) -> list[int]:
    """Refuse another order: the same folds in two orders would be two settings."""
    if folds != sorted(set(folds)):
        raise ValueError(f"should be ascending, each fold once: {sorted(set(folds))}")
    return folds


@dataclass(kw_only=True)
class Distillation(Strict):
    """Soft targets from earlier runs."""

    teachers: Name | None
    weight: Annotated[float, Field(gt=0, le=1)]


@dataclass(kw_only=True)
class Train(Command):
    """`conf/train.yaml`.

    Its keys are in the record of a run, which another run in the same folder must equal, unless
    they are marked: as without effect on the result, or because the stage records a part of them.
    """

    written = ("run_dir",)
    resume_hint = "Finished epochs are kept: run the same command to resume."
    dataset: Dataset = unrecorded()
    crop: Section
    folds: Folds = unrecorded()
    augment: Section
    network: Section
    loss: Section
    trainer: Section = unrecorded()
    logger: Section = unrecorded()
    name: Name = missing("give name=..., or experiment=..., which has a name")
    fold: Fold
    left_out_folds: Annotated[list[Count], AfterValidator(_ascending)]
    training_share: Annotated[float, Field(gt=0, le=1)]
    seed: Seed
    epochs: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(ge=0)]
    negatives_per_positive: Above | None
    positives_per_batch: Count
    checkpoint_path: Text | None
    auxiliary: Weights
    metadata: Annotated[Section, AfterValidator(_with_target)] | None
    breast_rule: Literal["mean", "max"]
    tta: Annotated[Any, AfterValidator(tta_transforms)]
    select: Literal["last", "best"]
    patience: Positive | None
    workers: Count | None = unrecorded()
    crops_in_memory: bool = unrecorded()
    resume: bool = unrecorded()
    overwrite: bool = unrecorded()
    views: Section
    distillation: Distillation
    ema: Ema
    mix: Section
    rates: Section
    deep_weight: Annotated[float, Field(ge=0)]
    penalties: Weights
    compile: bool
    run_dir: Text = unrecorded()
    prepared_dir: Text = unrecorded()
    folds_csv: Text = unrecorded()
    data: Section = unrecorded()
    optimizer: Section
    scheduler: Section
    classifier: Section = unrecorded()
    callbacks: Section = unrecorded()


@dataclass(kw_only=True)
class Ensemble(Command):
    """`conf/ensemble.yaml`."""

    written = ("ensemble_dir",)
    name: Name
    members: Annotated[list[Name], Field(min_length=1)] = missing(
        "give members=[...], names of runs", _RUNS
    )
    blend: Literal["mean", "logit_mean", "rank_mean"]
    weights: list[float] | Literal["fitted"] | None
    rule: Literal["own", "auto"]
    threshold: Literal["pf1", "recall_rate"]
    recall_rate: Annotated[float, Field(gt=0, lt=1)] | None
    by_site: Positive | None
    calibration: Literal["none", "temperature", "platt", "isotonic"]
    networks: Literal["folds", "all"]
    groups: Groups
    resamples: Positive
    seed: Seed
    overwrite: bool = unrecorded()
    ensemble_dir: Text = unrecorded()


@dataclass(kw_only=True)
class Budget(Strict):
    """Limits of a submission."""

    hours: Above | None


@dataclass(kw_only=True)
class Submit(Command):
    """`conf/submit.yaml`."""

    written = ("submission_dir",)
    resume_hint = "Predictions are kept: run the same command to resume."
    dataset: Section  # whose name, which may be missing, names nothing here
    name: Name = missing("give name= of an ensemble", _ENSEMBLES)
    source: Source
    batch_size: Positive
    device: Text
    unread: Literal["negative", "positive", "prior"]
    workers: Count | None
    ahead: Positive
    overwrite: bool
    precision: Literal["auto", "float32", "fp16", "bf16"]
    engine: Literal["auto", "torch", "onnx"]
    budget: Budget
    ensemble_json: Text
    exports_dir: Text
    sample_submission: Text
    submission_dir: Text


@dataclass(kw_only=True)
class Predict(Command):
    """`conf/predict.yaml`. The stage itself names the missing key and how to get a model."""

    written = ("predictions_dir",)
    name: Name | None = None
    inputs: Text | list[Text] | None = None
    pictures: bool
    batch_size: Positive
    device: Text
    workers: Count | None
    ahead: Positive
    overwrite: bool
    predictions_dir: Text | None = None


@dataclass(kw_only=True)
class Report(Command):
    """`conf/report.yaml`."""

    written = ("report_dir", "name", "run")
    name: Name | None
    run: Name | None
    baseline: list[Name] | Name | None
    cases: Count
    maps: bool
    device: Text
    samples: Count
    groups: Groups
    resamples: Groups
    band_resamples: Groups
    seed: Seed
    report_dir: Text


@dataclass(kw_only=True)
class Compare(Command):
    """`conf/compare.yaml`."""

    written = ("json", "csv")
    runs: list[Name] | Text | int | None
    json: Text | None
    metric: Text
    reference: Name | None
    most: Positive
    csv: Text | None
    fold: list[Count] | Count | None
    groups: Groups
    resamples: Positive
    seed: Seed


@dataclass(kw_only=True)
class Evaluate(Command):
    """`conf/evaluate.yaml`."""

    written = ("paths.output", "name")
    name: Name = missing("give name= of a submission", _SUBMISSIONS)
    solution: Text
    baseline: bool
    resamples: Positive
    seed: Seed


@dataclass(kw_only=True)
class Export(Command):
    """`conf/export.yaml`."""

    written = ("export_dir", "format")
    name: Name = missing("give name= of a run", _RUNS)
    fold: Fold
    format: Literal["onnx", "torch"]
    seed: Seed
    overwrite: bool
    run_dir: Text
    export_dir: Text


@dataclass(kw_only=True)
class Index(Command):
    """`conf/index.yaml`."""

    written = ("index_dir",)
    name: Name = missing("give name=... of the folder for the index")
    images: Text
    workers: Count
    index_dir: Text


@dataclass(kw_only=True)
class Search(Command):
    """`conf/search.yaml`."""

    written = ("search_dir",)
    resume_hint = "Finished trials are kept: run the same command to resume."
    space: Section
    name: Name = missing("give name=... for the search")
    train: str
    fold: list[Count] | Count
    metric: Text
    direction: Literal["maximize", "minimize"]
    trials: Positive
    seed: Seed
    overwrite: bool
    search_dir: Text


@dataclass(kw_only=True)
class Size(Strict):
    """Size of a synthetic competition."""

    train_patients: Positive
    test_patients: Positive
    prevalence: Share


@dataclass(kw_only=True)
class Appearance(Strict):
    """Appearance of synthetic images."""

    pixel_mm: Annotated[float, Field(ge=0.05, le=2)]
    radius_mm: Annotated[float, Field(ge=2, le=12)]
    contrast: Share
    lookalikes: Share
    lesion_views: Literal["both", "one"]


@dataclass(kw_only=True)
class Synthesize(Command):
    """`conf/synthesize.yaml`."""

    written = ("paths.data",)
    seed: Seed
    workers: Count | None
    overwrite: bool
    size: Size
    appearance: Appearance


@dataclass(kw_only=True)
class Bundle(Command):
    """`conf/bundle.yaml`."""

    written = ("bundle_dir",)
    name: Name = missing("give name= of an ensemble", _ENSEMBLES)
    owner: Text
    title: Text
    licence: Text
    competition: Text
    hours: Above
    accelerator: Text
    python: Text
    image: list[Text]
    unused: list[Text]
    lock: Text
    from_source: list[Text]
    wheelhouse: Text | None
    push: Literal["create", "version"] | None
    bundle_dir: Text


@dataclass(kw_only=True)
class Rehearse(Command):
    """`conf/rehearse.yaml`."""

    written = ("bundle_dir",)
    name: Name = missing("give name= of an ensemble", _ENSEMBLES)
    interpreter: Text
    packages: Text | None
    bundle_dir: Text
    submission_dir: Text


COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command for command in Command.__subclasses__()
}
