"""A study: its YAML file, and the runs that it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml  # type: ignore[import-untyped]
from commands import composed
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass as checked

from rsna_bcd._stage import check, user_message
from rsna_bcd._validation import Name, check_value, to_plain
from rsna_bcd.errors import InputError
from rsna_bcd.settings import Count, Positive, Seed, Source

T = TypeVar("T")


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("has a value twice")
    return values


Distinct = AfterValidator(_distinct)
Flip = Literal["hflip", "vflip", "both"]
Input = Literal["mean", "max", "min", "CC", "MLO", "other", "age"]
_CHECKED = ConfigDict(extra="forbid")
_NEEDS_EPOCHS = ("select=", "patience=")  # the checkpoint of an epoch other than the last
_SET_BY_THE_STUDY = {"name", "seed", "fold", "dataset.name", "paths.data", "paths.output"}
_KEYS: dict[str, set[str]] = {  # of each kind of variant, besides its own
    "overrides": {"distilled"},
    "combine": {"distilled"},
    "flips": {"of"},
    "head": {"of", "other_breast"},
    "stack": {"of"},
    "ensemble": {"seeds"},
    "choose": set(),
}


@checked(frozen=True, config=_CHECKED)
class Variant:
    """One row of the table; exactly one of its kinds is set.

    Attributes:
        name: of the row, and of its runs (`<name>_s<seed>`).
        overrides: of `rsna_bcd.train`: the variant is trained.
        distilled: on soft targets of teachers, which are runs of the same overrides.
        flips: the logits of the images and of these flips of them are averaged.
        head: trained on stored features of the images.
        stack: inputs of a cross-fitted logistic regression on out-of-fold predictions.
        ensemble: names of trained variants, whose probabilities are averaged.
        choose: names of variants: for each fold, those are chosen and blended that are best on the
            other folds.
        of: the trained variant that flips, a head or a stack start from.
        other_breast: the head sees the images of the other breast as well.
        seeds: of an ensemble: averaged over these; empty: one ensemble per seed of the study.
    """

    name: Name
    overrides: tuple[str, ...] | None = None
    distilled: StrictBool = False
    flips: Annotated[tuple[Flip, ...], Distinct] = ()
    head: Literal["attention"] | None = None
    stack: Annotated[tuple[Input, ...], Distinct] = ()
    ensemble: Annotated[tuple[str, ...], Distinct] = ()
    choose: Annotated[tuple[str, ...], Distinct] = ()
    of: str | None = None
    other_breast: StrictBool = False
    seeds: Annotated[tuple[Seed, ...], Distinct] = ()

    @property
    def is_predicted(self) -> bool:
        """Whether it needs the network or the features of a trained run."""
        return bool(self.flips or self.head)

    @property
    def sources(self) -> tuple[str, ...]:
        """The trained variants that it starts from."""
        return (*self.ensemble, *([self.of] if self.of else []))


@checked(frozen=True, config=_CHECKED)
class Study:
    """A study as its YAML file has it.

    Attributes:
        dataset: name of the prepared data set.
        source: of the images where crops have to be made first: dicom or image.
        folds: held out one after the other.
        seeds: of each variant.
        reference: name of the variant that the others are compared with.
        base: overrides of `rsna_bcd.train` for all trained variants.
        variants: by name, in the order of the table.
        resamples: of the patients, for intervals and p-values.
        keep_checkpoints: false: only of runs that another variant starts from.
        synthesize: overrides of `rsna_bcd.synthesize`, for a data folder that does not exist.
        prepare: further overrides of `rsna_bcd.prepare`.
        patients: crops that are resized from larger ones are those of this many patients, half of
            them with cancer where there are so many; None: of all.
    """

    dataset: Name
    folds: Annotated[tuple[Count, ...], Field(min_length=1), Distinct]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Distinct]
    reference: str
    base: tuple[str, ...]
    variants: dict[str, Variant]
    source: Source = "image"
    resamples: Positive = 5000
    keep_checkpoints: StrictBool = True
    synthesize: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    patients: Positive | None = None


@dataclass(frozen=True)
class Run:
    """One training of one variant, and the predictions made with it.

    Attributes:
        variant: its name.
        seed: of the training.
        fold: held out.
        overrides: of `rsna_bcd.train`, those that decide about the result; may contain {weights}.
        predicted: variants that start from it.
        left_out: a further fold that is left out, by a teacher of that fold's run.
        teachers: are trained before it.
    """

    variant: str
    seed: int
    fold: int
    overrides: tuple[str, ...]
    predicted: tuple[Variant, ...] = field(default=())
    left_out: int | None = None
    teachers: tuple["Run", ...] = ()

    @property
    def name(self) -> str:
        """The `name` of the run."""
        name = run_name(self.variant, self.seed)
        return name if self.left_out is None else f"{name}_without{self.left_out}"


def run_name(variant: str, seed: int) -> str:
    """The folder of a variant's runs of one seed."""
    return f"{variant}_s{seed}"


def read_study(file: Path) -> Study:
    """Read and check a study.

    Raises:
        InputError: the file is absent, or a key or a name in it is unknown.
    """
    if not file.is_file():
        raise InputError(f"There is no study {file}. Choose one of benchmarks/studies/.")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{file}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("variants"), dict):
        raise InputError(f"{file} must be a mapping, and its variants one of names to variants.")
    content = {str(key): value for key, value in content.items()}
    content |= {"reference": _names(content["reference"])} if "reference" in content else {}
    variants: dict[str, Variant] = {}
    for name, value in content["variants"].items():
        variants[str(name)] = _variant(file, str(name), value, variants)
    study = replace(_make(Study, file, "", content | {"variants": {}}), variants=variants)
    if study.reference not in variants or variants[study.reference].overrides is None:
        raise InputError(f"{file}: reference={study.reference} is not a trained variant.")
    distilled = [name for name, variant in variants.items() if variant.distilled]
    if distilled and len(study.folds) < 3:
        raise InputError(f"{file}: {distilled[0]} needs all folds of the data, three at least.")
    crossed = [name for name, variant in variants.items() if variant.stack or variant.choose]
    if crossed and len(study.folds) < 2:
        raise InputError(f"{file}: {crossed[0]} is fitted on other folds: name two at least.")
    return study


def _make(kind: type[T], file: Path, where: str, values: Mapping[str, Any]) -> T:
    """Make a part of a study of values of the right types."""
    cfg = OmegaConf.create(dict(values))
    problems = check_value(cfg, (), values, kind)
    if problems:
        lines = [f"{file}: {where}{key}{fault}" for key, fault in problems]
        raise InputError("\n".join(lines))
    return kind(**to_plain(cfg, resolve=False))


def _variant(file: Path, name: str, value: Any, before: Mapping[str, Variant]) -> Variant:
    """Make a variant of the list or the mapping in a study's file."""
    if value is None or isinstance(value, list):
        value = {"overrides": value or []}
    keys = set(map(str, value)) if isinstance(value, dict) else set()
    for key in keys & {"combine", "ensemble", "choose", "of"}:
        value |= {key: _names(value[key])}
    kinds = [kind for kind in _KEYS if kind in keys]
    unknown = sorted(keys - {*kinds}.union(*(_KEYS[kind] for kind in kinds)))
    if len(kinds) != 1 or unknown:
        raise InputError(
            f"{file}: {name} must be a list of overrides, or have one of {', '.join(_KEYS)}"
            f"{', and not ' + ', '.join(unknown) + ' with it' if unknown else ''}."
        )
    if kinds == ["combine"]:  # all that these change, one after the other
        _check_names(file, f"{name}.combine", value["combine"], before)
        combined = [before[other] for other in value["combine"]]
        own = tuple(o for variant in combined for o in variant.overrides or ())
        distilled = any(v.distilled for v in combined) or value.get("distilled", False)
        value = {"overrides": own, "distilled": distilled}
    elif kinds == ["choose"]:
        value = {"choose": _candidates(file, name, value, before)}
    elif kinds != ["overrides"]:
        given = value["ensemble"] if kinds == ["ensemble"] else [value.get("of")]
        _check_names(file, name, given, before)
    elif value["overrides"] is None:
        value = value | {"overrides": []}
    for key, given in value.items():
        if key != "overrides" and given in ([], None):
            raise InputError(f"{file}: {name}.{key} is empty.")
    return _make(Variant, file, f"{name}.", {"name": name, **value})


def _names(value: Any) -> Any:
    """Names of variants, of which YAML reads some as numbers."""
    if isinstance(value, list):
        return [str(name) for name in value]
    return str(value) if isinstance(value, int | float) else value


def _candidates(
    file: Path, name: str, value: Mapping[str, Any], before: Mapping[str, Variant]
) -> tuple[str, ...]:
    """The variants further up in the file that one is chosen from; `all`: each of them."""
    known = [candidate for candidate, variant in before.items() if not variant.choose]
    names = known if value["choose"] == "all" else value["choose"]
    if not isinstance(names, list) or not names or not set(names) <= set(known):
        raise InputError(
            f"{file}: {name}.choose must be all, or a list of variants above it that are not "
            f"chosen themselves. They are {', '.join(known)}."
        )
    return tuple(names)


def _check_names(file: Path, where: str, names: Any, before: Mapping[str, Variant]) -> None:
    """Check that all are trained variants from further up in the file."""
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: {where} must be a list of trained variants above it.")
    for name in names:
        if not isinstance(name, str) or name not in before or before[name].overrides is None:
            raise InputError(f"{file}: {where} names {name}, which no trained variant above is.")


def needed_runs(study: Study, trainer: str) -> list[Run]:
    """All runs of a study: seed after seed, and of a seed fold after fold.

    So the table is of use early: after the first fold of the first seed it has all rows.

    Args:
        study: with its variants.
        trainer: of `conf/trainer/`.
    """
    seeds: dict[str, set[int]] = {}
    for variant in study.variants.values():
        sources = variant.ensemble or (variant.of or variant.name,)
        for source in sources:
            seeds.setdefault(source, set()).update(variant.seeds or study.seeds)
    ordered = [*study.seeds, *sorted(set().union(*seeds.values()) - set(study.seeds))]
    runs = []
    for seed in ordered:
        for fold in study.folds:
            for name, variant in study.variants.items():
                if variant.overrides is None or seed not in seeds[name]:
                    continue
                predicted = tuple(
                    v
                    for v in study.variants.values()
                    if v.is_predicted and v.of == name and seed in study.seeds
                )
                overrides = last_of_each([f"trainer={trainer}", *study.base, *variant.overrides])
                run = Run(name, seed, fold, tuple(overrides), predicted)
                runs.append(_with_teachers(run, study.folds) if variant.distilled else run)
    return runs


def _with_teachers(run: Run, folds: Sequence[int]) -> Run:
    """A run that learns from a teacher for each other fold, none of which has seen its own."""
    left_out = (*run.overrides, f"left_out_folds=[{run.fold}]")
    teachers = tuple(
        Run(run.variant, run.seed, fold, left_out, left_out=run.fold)
        for fold in folds
        if fold != run.fold
    )
    overrides = (*run.overrides, f"distillation.teachers={teachers[0].name}")
    return replace(run, overrides=overrides, teachers=teachers)


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """Overrides of which the last one of a key counts, in its place: Hydra takes a group once."""
    by_key: dict[str, str] = {}
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        by_key.pop(key, None)
        by_key[key] = override
    # Groups first: an experiment, a crop or a network is chosen before its keys are set.
    return sorted(by_key.values(), key=lambda override: "." in override.split("=", 1)[0])


@dataclass(frozen=True)
class Place:
    """Where and how runs are trained, which decides nothing about their result.

    Attributes:
        data: folder of the data.
        output: folder of runs and predictions.
        weights: folder of the files that overrides name as {weights}; None: there is none.
        overrides: of `rsna_bcd.train`.
        saves_once: keep the checkpoint of the last epoch alone: a run takes seconds, writing after
            each of its epochs would take as long, and one that is stopped begins again.
    """

    data: Path
    output: Path
    weights: Path | None = None
    saves_once: bool = False
    overrides: tuple[str, ...] = ()


def compose_run(run: Run, study: Study, place: Place) -> DictConfig:
    """The configuration of `rsna_bcd.train` for a run.

    Raises:
        InputError: an override is not one of `rsna_bcd.train`, or needs weights that are absent.
    """
    for override in run.overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key in _SET_BY_THE_STUDY:
            raise InputError(f"Variant {run.variant}: {override}: the study sets {key} itself.")
    overrides = last_of_each([*run.overrides, *place.overrides])
    if place.saves_once and not any(o.startswith(_NEEDS_EPOCHS) for o in run.overrides):
        overrides += ["+callbacks.last.every_n_epochs=${epochs}", "~callbacks.best"]
    if place.weights is not None:
        overrides = [o.replace("{weights}", str(place.weights)) for o in overrides]
    elif any("{weights}" in override for override in overrides):
        raise InputError(
            f"Variant {run.variant} starts from weights, but there is no folder weights/ in "
            f"{place.data} or beside it. Say weights=<folder>."
        )
    try:
        cfg: DictConfig = composed(*overrides)
        cfg.name, cfg.seed, cfg.fold = run.name, run.seed, run.fold
        cfg.dataset.name = study.dataset
        cfg.paths.data, cfg.paths.output = str(place.data), str(place.output)
        check("train", cfg)
    except (HydraException, OmegaConfBaseException, InputError) as error:
        message = user_message(error, "train") or str(error)
        raise InputError(f"Variant {run.variant}: {message}") from error
    return cfg


def definition(variant: Variant) -> dict[str, Any]:
    """All that decides about the predictions of a variant and is set, as plain types."""
    return set_values(OmegaConf.to_container(OmegaConf.create(asdict(variant))))


def set_values(content: Any) -> dict[str, Any]:
    """The keys of a definition that are set: an older record has no others either."""
    return {key: value for key, value in content.items() if value}
