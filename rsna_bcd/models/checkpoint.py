"""Checkpoints: writing, checked reading, hashes, initial weights, and the runs they come from."""

import errno
import hashlib
import json
import logging
import re
import shutil
import sys
import zipfile
from _pickle import UnpicklingError  # raised by torch for other files; nothing is pickled here
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.files import atomic_file
from rsna_bcd.models.backbone import REFUSALS
from rsna_bcd.models.encoder import Encoder
from rsna_bcd.tables.folds import unseen_folds

State = dict[str, Tensor]
Record = dict[str, Any]

_log = logging.getLogger(__name__)
_COUNTER = "num_batches_tracked"  # of BatchNorm; old files lack it
_SHOWN = 3  # parameters named in a message
_SHARE = 0.9  # of the tensors of another's file and of the backbone that must agree
_DEEPEST = 6  # parts of a prefix
_AVERAGED = re.compile(r"(^|_)ema|teacher", re.IGNORECASE)  # keys of averaged weights
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Raised by torch and safetensors for other files, depending on their first bytes.
_UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, EOFError, RuntimeError, UnpicklingError,
    SafetensorError, zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip
NETWORK = "network."  # before the names of the network's parameters in a checkpoint of a run
_RECORD = "config"  # key of the record in a checkpoint
_SUFFIXES = (".ckpt", ".safetensors")
_COMPILED = "_orig_mod."  # added to names by torch.compile
# The parts of an encoder, and its places in networks: a network that derives from Encoder is one
# itself. Where a file has several, the first that fits is taken.
_BACKBONE = "backbone."
_ENCODER = (_BACKBONE, "mean", "std", "pool.")
_PLACES = ("", "local_encoder.", "global_encoder.")
_KEPT = ("name", "fold", "dataset", "folds")  # of the record of an earlier run


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its file, then renames it: a kill leaves the old or the new one.

    Lightning writes to the folder for temporary files and moves the file: a copy, half of which may
    be left, if that is another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside the file, then rename.

        Raises:
            StorageError: the disk is full; an earlier file of this name is still there.
        """
        assert storage_options is None
        path = Path(path)
        try:
            with atomic_file(path, sync=True) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # Where a write fails, torch may raise a RuntimeError of its own instead.
            number = getattr(error, "errno", None) or getattr(error.__context__, "errno", None)
            sizes: list[int] = []
            apply_to_collection(checkpoint, Tensor, lambda tensor: sizes.append(tensor.nbytes))
            needed = sum(sizes)
            free = shutil.disk_usage(path.parent).free
            if number not in _NO_SPACE and (number is not None or free > needed):
                raise
            kept = "The checkpoint before it is kept. " if path.exists() else ""
            raise StorageError(
                f"{path} cannot be written: the disk has {free / 1e6:,.0f} MB left, a checkpoint "
                f"needs {needed / 1e6:,.0f} MB. {kept}Free some space, then run the same command "
                "to resume."
            ) from error


def find_checkpoint(run: Path, select: str) -> Path | None:
    """The file with the `last` or `best` weights in a run's folder; None if there is none."""
    files = [run / "checkpoints" / f"{select}{suffix}" for suffix in _SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def read_checkpoint(file: Path, *, checksums: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run, on the processor: its `state_dict`, and `config` if it has it.

    Args:
        file: `.ckpt` or `.safetensors`.
        checksums: compare those of a `.ckpt`, which torch does not. This reads the whole file, most
            of which is the state of the optimizer.

    Raises:
        InputError: the file is absent, damaged, or of something else.
    """
    remedy = "Copy it again from where it was trained, or train again with overwrite=true."
    if not file.is_file():
        raise InputError(f"{file} is absent. {remedy}")
    try:
        if checksums:
            with zipfile.ZipFile(file) as parts:
                damaged = parts.testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged}")
        content = _load(file)
    except _UNREADABLE as error:
        raise InputError(f"{file} is damaged ({error}). {remedy}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{file} is not a checkpoint of training. {remedy}")
    return content


def _load(file: Path) -> Any:
    """Read a file of torch or safetensors; tensors on the processor, those of torch are mapped."""
    if file.suffix != ".safetensors":
        is_zip = zipfile.is_zipfile(file)  # torch before 1.6 wrote another format
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    with safe_open(file, framework="pt") as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        record = (opened.metadata() or {}).get(_RECORD)
    return {"state_dict": state, **({} if record is None else {_RECORD: json.loads(record)})}


def save_safetensors(checkpoint: dict[str, Any], file: Path) -> None:
    """Write the weights of a checkpoint, bit for bit, and its record."""
    # Weights may be laid out for channels_last, or share memory: the format knows neither.
    state = {name: values.contiguous().clone() for name, values in checkpoint["state_dict"].items()}
    record = checkpoint.get(_RECORD)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, None if record is None else {_RECORD: json.dumps(record)})


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: of its names, types, shapes and values, not of its file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def start_from(network: nn.Module, file: Path) -> list[str]:
    """Load the weights that a network starts from.

    The file holds a checkpoint of a run of ours (`checkpoints/last.ckpt`; averaged weights, where
    the run has them), or the state dict of a network of ours, or the weights of the timm network
    that is the backbone: at any depth of dictionaries (`model`, `state_dict`; averaged ones first)
    and under any common prefix (`module.`, `encoder.`, ...). Of these, the first convolution is
    summed to one channel, as timm does, the classifier is left out, and 90 % of the tensors must
    agree. How many were taken is logged. Position embeddings of images of another size are
    resampled.

    Our networks share the encoder: the backbone, the normalisation it was trained with, its
    pooling. The backbone must fit. Of a run, all else (heads, aggregator) is taken where names and
    shapes agree; layers without weights are logged.

    Args:
        network: is an encoder, or has some.
        file: `.safetensors`, or anything that torch reads with `weights_only=True`.

    Returns:
        Names of encoders that the file does not fit, if it fits another one of the network.

    Raises:
        InputError: the file is absent, holds no weights, those of another backbone, or values that
            are not finite.
    """
    content = _read_weights(file)
    ours = _own_state(content)
    own = network.state_dict()
    taken: State = {}
    misfits: dict[str, str] = {}
    encoders = {name: m for name, m in network.named_modules() if isinstance(m, Encoder)}
    for name, encoder in encoders.items():
        place = f"{name}." if name else ""
        find = _own_encoder if ours else _foreign_encoder
        found, problem = find(ours or content, place, encoder, _encoder_at(place, own))
        if problem:
            misfits[name] = f"the weights of {encoder.architecture}. {problem}"
        taken |= {place + key: value for key, value in found.items()}
    if len(misfits) == len(encoders):
        raise InputError(
            f"checkpoint_path={file} does not hold {next(iter(misfits.values()))}. "
            "Choose the network= that the file belongs to."
        )
    if ours:
        shared = tuple(place + part for place in _PLACES for part in _ENCODER)
        taken |= {k: v for k, v in ours.items() if not k.startswith(shared) and _fits(k, v, own)}
    if broken := [k for k, v in taken.items() if not v.isfinite().all()]:
        raise InputError(
            f"checkpoint_path={file} holds weights that are not finite ({_some(broken)}): its "
            "training had failed. Choose another file."
        )
    network.load_state_dict(taken, strict=False)
    _log_taken(file, taken, own, bool(ours))
    return list(misfits)


def _log_taken(file: Path, taken: State, own: State, is_ours: bool) -> None:
    """Log how many tensors a network has from a file, and which it lacks."""
    counted = [k for k in own if not k.endswith(_COUNTER)]
    if not is_ours:  # of another's file the backbone alone is wanted
        counted = [k for k in counted if _BACKBONE in k]
    statistics = ("mean", "std")  # of the encoder
    lacking = [k for k in counted if k not in taken and k.split(".")[-1] not in statistics]
    rank_zero_only(_log.info)(
        "%s: %d of %d tensors are taken%s", file, len(counted) - len(lacking), len(counted),
        "" if is_ours else " (of the backbone)",
    )  # fmt: skip
    if lacking:
        rank_zero_only(_log.info)(
            "%s has no matching weights for these, which start from random ones: %s",
            file,
            ", ".join(lacking),
        )


def record_in(file: Path) -> Record | None:
    """The settings in a checkpoint of a run (`models.callbacks.ConfigInCheckpoint`), else None.

    Others may have a `config`, too: a run's says of which data and folds it is.
    """
    try:
        content = _load(file)
    except _UNREADABLE:
        return None  # `start_from` refuses such a file
    config = content.get(_RECORD) if isinstance(content, dict) else None
    if not isinstance(config, dict) or not {"name", "fold"} <= config.keys():
        return None
    parts = config.get("dataset"), config.get("folds")
    is_run = all(isinstance(part, dict) for part in parts) and "strategy" in config["folds"]
    return config if is_run else None


def _encoder_at(place: str, state: State) -> State:
    """Entries of an encoder, under the names that it has for them; none, if it is not there."""
    names = tuple(place + part for part in _ENCODER)
    part = {k.removeprefix(place): v for k, v in state.items() if k.startswith(names)}
    return part if any(k.startswith(_BACKBONE) for k in part) else {}


def _adapted(weights: State, backbone: Any) -> State:
    """Turn timm's weights of a network into those of its backbone for one channel."""
    classifiers, stems = (
        (names,) if isinstance(names, str) else tuple(names or ())
        for names in (backbone.pretrained_cfg.get(key) for key in ("classifier", "first_conv"))
    )
    heads = tuple(f"{_BACKBONE}{name}." for name in classifiers)
    state = {k: v for k, v in weights.items() if not k.startswith(heads)}
    for stem in (f"{_BACKBONE}{name}.weight" for name in stems):
        if stem in state and state[stem].ndim == 4 and state[stem].shape[1] % 3 == 0:
            state[stem] = adapt_input_conv(1, state[stem])
    return state


def _resampled(state: State, backbone: Any) -> State:
    """Resample position embeddings of a backbone to the size of its images, as timm does."""
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    own = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
    wanted = backbone.state_dict()
    if convert is None or all(_fits(k, v, wanted) for k, v in own.items() if k in wanted):
        return state
    try:
        own = convert(own, backbone)
    except (*REFUSALS, ArithmeticError):
        return state  # of another network, which is said by the caller
    others = {k: v for k, v in state.items() if not k.startswith(_BACKBONE)}
    return others | {_BACKBONE + k: v for k, v in own.items()}


def _fits(name: str, value: Tensor, wanted: State) -> bool:
    return name in wanted and value.shape == wanted[name].shape


def _difference(found: State, wanted: State) -> str:
    """Say how the backbones of two encoders differ; "" if they do not."""
    found, wanted = (
        {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
        for state in (found, wanted)
    )
    differing = {
        "missing": [k for k in wanted if k not in found and not k.endswith(_COUNTER)],
        "unknown": [k for k in found if k not in wanted],
        "of another shape": [k for k in found if k in wanted and not _fits(k, found[k], wanted)],
    }
    return "; ".join(
        f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in differing.items() if keys
    )


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''}"


def _read_weights(file: Path) -> Any:
    """Read a file of initial weights."""
    if not file.is_file():
        raise InputError(
            f"checkpoint_path={file} does not exist. Give a file of weights or a run's "
            "checkpoints/last.ckpt, or start from timm's with checkpoint_path=null."
        )
    try:
        return _load(file)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"checkpoint_path={file} cannot be read as weights ({type(error).__name__}: "
            f"{reason[:200]}). Where it holds other objects than tensors, and you trust it, write "
            "its state dict to a file of its own with torch.save."
        ) from error


def _states(content: Any) -> Iterator[State]:
    """Yield all state dicts within a file: averaged weights before the others, as timm does."""
    if not isinstance(content, dict):
        return
    state = {str(k).replace(_COMPILED, ""): v for k, v in content.items() if isinstance(v, Tensor)}
    if state:
        yield state
    for key in sorted(map(str, content), key=lambda key: (not _AVERAGED.search(key), key)):
        yield from _states(content.get(key))


def _prefixes(state: State) -> list[str]:
    """Prefixes that names of a state dict share: "", "module.", "module.backbone.", ..."""
    found = {""}
    for name in state:
        parts = name.split(".")[:-1]
        found |= {".".join(parts[:n]) + "." for n in range(1, min(len(parts), _DEEPEST) + 1)}
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _own_state(content: Any) -> State:
    """The state of a network of ours, which has the normalisation beside its backbone; or {}."""
    if not isinstance(content, dict):
        return {}
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        return {}
    state = {
        str(k).replace(_COMPILED, "").removeprefix(NETWORK): v
        for k, v in state.items()
        if isinstance(v, Tensor)
    }
    is_ours = any(
        {f"{place}mean", f"{place}std"} <= state.keys() and _encoder_at(place, state)
        for place in _PLACES
    )
    return state if is_ours else {}


def _own_encoder(state: State, place: str, encoder: Encoder, wanted: State) -> tuple[State, str]:
    """Entries of an encoder in the state of a network of ours, and "" or why none fits."""
    sources = {source: part for source in _PLACES if (part := _encoder_at(source, state))}
    problems = []
    for source in sorted(sources, key=lambda s: s != place):  # preferably from the same place
        part = _resampled(sources[source], encoder.backbone)
        difference = _difference(part, wanted)
        if not difference:
            return {k: v for k, v in part.items() if _fits(k, v, wanted)}, ""
        problems.append(f"Parameters: {difference}")
    return {}, problems[0]


def _foreign_encoder(
    content: Any, place: str, encoder: Encoder, wanted: State
) -> tuple[State, str]:
    """Entries of a backbone in a file that is not ours, and "" or why they are refused."""
    names = {k.removeprefix(_BACKBONE) for k in wanted if k.startswith(_BACKBONE)}
    best, most = {}, -1
    for state in _states(content):
        for prefix in _prefixes(state):
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if len(names & part.keys()) > most:
                best, most = part, len(names & part.keys())
    if not best:
        return {}, "It holds no tensors"
    found = _adapted({_BACKBONE + k: v for k, v in best.items()}, encoder.backbone)
    found = _resampled(found, encoder.backbone)
    found = {k: v for k, v in found.items() if not k.endswith(_COUNTER)}
    needed = [k for k in wanted if k.startswith(_BACKBONE) and not k.endswith(_COUNTER)]
    taken = {k: v for k, v in found.items() if _fits(k, v, wanted)}
    reshaped = any(k in wanted and k not in taken for k in found)
    # Of the file as well: a deeper network has the names of a shallow one, and more.
    if reshaped or len(taken) < _SHARE * max(len(needed), len(found)):
        return {}, (
            f"{len(taken)} of {len(needed)} tensors fit, of {len(found)} in the file. "
            f"Parameters: {_difference(found, wanted)}"
        )
    return taken, ""


def starts_from(file: Path) -> list[Record]:
    """The runs whose training a file's weights have gone through.

    Args:
        file: of weights of any kind.

    Returns:
        Of each run `name, fold, dataset, folds`, which of its weights were taken (`select`), and
        its `patience`; the latest run first. Empty for a file that is no checkpoint of a run.
    """
    run = record_in(file)
    if run is None:
        return []
    # A file of another name: the weights that the run keeps, which a bundle copies.
    select = file.stem if file.stem in ("best", "last") else run.get("select", "last")
    own = {key: run[key] for key in _KEPT} | {"select": select, "patience": run.get("patience")}
    own |= {key: run[key] for key in ("left_out_folds",) if key in run}
    return [own, *run.get("starts_from", [])]


def check_unseen(record: Record) -> None:
    """Refuse to start from weights that have learnt from the patients held out now.

    Raises:
        InputError: a run in `starts_from` had other patients of the same data set held out.
    """
    unseen = unseen_folds(record)
    for run in record.get("starts_from", []) if unseen else []:
        seen = unseen - unseen_folds(run) if run["folds"] == record["folds"] else unseen
        if run["dataset"] == record["dataset"] and seen:
            raise InputError(
                f"checkpoint_path={record['network']['checkpoint_path']} has learnt from patients "
                f"of {record['dataset']['name']} in fold {', '.join(map(str, sorted(seen)))}, "
                "which this run holds out or leaves out: it comes from "
                f"{run['name']}, fold {run['fold']}, folds {run['folds']['strategy']}. Start "
                "from the same fold of that run, on the same folds, with the same left_out_folds."
            )


def is_optimistic(record: Record) -> bool:
    """Whether an epoch was chosen on the patients held out: of this run, or of one before it."""
    if record["fold"] == "all":
        return False
    before = [r for r in record.get("starts_from", []) if r["dataset"] == record["dataset"]]
    return any(
        run.get("select") == "best" or run.get("patience") is not None for run in (record, *before)
    )
