"""From DICOM to probabilities: ours beside its parts and beside a plain loop, on one and two cores.

    python benchmarks/inference.py --json inference.json             # synthetic files
    python benchmarks/inference.py --real FOLDER --weights tf_efficientnet_lite0.pth --json ...
    python benchmarks/inference.py --only 2 stage --rounds 5         # two cores, and the memory

Files of real size, each as JPEG 2000 (.90) and as JPEG lossless (.70), as the competition mixes
them; one network, `tf_efficientnet_lite0` at 1024 x 512, unless `--members` names experiments. The
files lie in memory after the first pass, so that reading them costs next to nothing.

Measurements are interleaved (A B C D A B C D ...), each in a fresh process: other load on the
machine affects all. `others` is the share of the machine that other processes used in the worst
round: above a few per cent, trust CPU seconds rather than those of the clock.

- decode and crop: the preparation alone, on as many processes as cores.
- network: alone, on crops in memory, with as many threads as cores.
- ours: both at once, as `submit` has them.
- plain loop: one file after the other is decoded (dicomsdl, at full resolution), windowed, cut to
  the breast, resized and put through the network by torch, with as many threads as cores.

The cost of a start (processes, imports) is measured apart, on one pass over the files, and
subtracted: of 32,000 images it is nothing. The part `stage` is `submit` itself, as a user starts
it, on two cores, and the memory of its processes while it works.

With `--json`, parts that the file has by the same settings and the same sources of this package
are not measured again.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
from inference_pipelines import (
    DECODE,
    LOOP,
    NETWORK,
    OURS,
    Setting,
    per_image,
    start_seconds,
)
from inference_stage import measure_submit
from large_test_set import make_ensemble
from mammograms import mammograms, transcoded
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import ALLOCATOR, limited_to, measure_in_process, median_and_range

from rsna_bcd._stage import CONF
from rsna_bcd.preparation.engine import source_hash

STAGE = "stage"
TEST_IMAGES = 32_000  # images of the competition's test set, about
_TOLERANCE = 5e-3  # of the mean probability: half precision, and other engines
_UNTOUCHED = {"json", "only", "files", "folder"}  # settings that change no figure of a part


def both_syntaxes(files: list[Path], folder: Path) -> list[Path]:
    """Each file as JPEG 2000 and as JPEG lossless, in turns."""
    coded = [transcoded(files, folder, syntax) for syntax in (".90", ".70")]
    return list(itertools.chain.from_iterable(zip(*coded, strict=True)))


def source_files(real: list[Path], folder: Path, batch_size: int) -> tuple[list[Path], str]:
    """The files, and a description of them."""
    if real:
        files = sorted(file for root in real for file in root.rglob("*.dcm"))
        origin = f"{len(files)} real files"
    else:
        files, origin = mammograms(folder)
    both = both_syntaxes(files, folder)
    both *= -(-batch_size // len(both))  # a pass fills a batch
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    mega = statistics.mean(h.Rows * h.Columns for h in headers) / 1e6
    return both, f"{origin} of {mega:.1f} megapixels on average, as .90 and as .70"


def measure_interleaved(
    cores: int, files: list[Path], runs: list[Path], a: argparse.Namespace
) -> dict[str, Any]:
    """Figures by pipeline and round, and the mean probability of each pipeline."""
    setting = partial(
        Setting, cores=cores, files=list(map(str, files)), runs=list(map(str, runs)),
        batch_size=a.batch_size, device=a.device,
    )  # fmt: skip
    settings = {DECODE: setting(pipeline=DECODE, passes=a.passes, engine="torch")}
    for engine in a.engines:
        settings[NETWORK + suffix(engine)] = setting(
            pipeline=NETWORK, passes=a.passes - 1, engine=engine
        )
        settings[OURS + suffix(engine)] = setting(pipeline=OURS, passes=a.passes, engine=engine)
    settings[LOOP] = setting(pipeline=LOOP, passes=1, engine="torch")
    script = str(Path(__file__).with_name("inference_pipelines.py"))
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    everything = list(itertools.product(range(a.rounds), settings.items()))
    for _, (name, one) in track(everything, f"{cores} core(s)", console=Console(stderr=True)):
        # The plain loop gets the allocator of our decoders; all else is as the stage finds it.
        allocator = ALLOCATOR if name == LOOP else {}
        with limited_to(cores):
            rounds[name].append(
                measure_in_process(script, asdict(one), {**environment, **allocator})
            )
    probability = {n: measured[0]["probability"] for n, measured in rounds.items() if n != DECODE}
    for engine in a.engines:
        ours, network = (probability[name + suffix(engine)] for name in (OURS, NETWORK))
        if abs(ours - network) > _TOLERANCE:
            raise RuntimeError(f"Ours and the network alone differ on our crops: {probability}")
    return {"turns": rounds, "probability": probability, "compared": compared(rounds, a)}


def suffix(engine: str) -> str:
    """Text after the name of a pipeline."""
    return "" if engine == "auto" else f", {engine}"


def compared(turns: Any, a: argparse.Namespace) -> dict[str, list[float]]:
    """Ratios of the pipelines, by round."""
    decode, loop = per_image(turns[DECODE], "seconds"), per_image(turns[LOOP], "seconds")
    values = {}
    for engine in a.engines:
        name = OURS + suffix(engine)
        network = per_image(turns[NETWORK + suffix(engine)], "seconds")
        rounds = list(zip(decode, network, per_image(turns[name], "seconds"), loop, strict=True))
        parts = f"({DECODE} + {NETWORK}{suffix(engine)})"
        values[f"{name} / {parts}"] = [o / (d + n) for d, n, o, _ in rounds]
        if a.device != "cpu":
            values[f"{name} / the slower of both"] = [o / max(d, n) for d, n, o, _ in rounds]
        values[f"{name} - {parts}, s"] = [o - d - n for d, n, o, _ in rounds]
        values[f"{LOOP} / {name}"] = [loop / o for _, _, o, loop in rounds]
    return values


def show_cores(console: Console, cores: int, part: Any) -> None:
    """The table of the pipelines on so many cores."""
    console.print(f"\nOn {cores} core(s), seconds:")
    table = Table("pipeline", "s/image", "CPU s/image", "start", f"{TEST_IMAGES:,}, h", "others")
    for pipeline, turns in part["turns"].items():
        each = per_image(turns, "seconds")
        table.add_row(
            pipeline,
            median_and_range(each, 3),
            median_and_range(per_image(turns, "cpu"), 3),
            f"{start_seconds(turns):.1f}" if turns[0]["first_images"] else "",
            f"{statistics.median(each) * TEST_IMAGES / 3600:.2f}",
            f"{max(turn['others'] for turn in turns):.0%}",
        )
    console.print(table)
    for name, values in part["compared"].items():
        digits = 3 if name.endswith(", s") else 2
        console.print(f"{name}: {median_and_range(values, digits)}", highlight=False)


def show_stage(console: Console, part: Any, beside: Any, a: argparse.Namespace) -> None:
    """Time and memory of `submit`, beside the pipelines on as many cores, if they were measured."""
    console.print(
        f"\nsubmit, {part['images']} images on {part['cores']} cores: {part['seconds']:.0f} s, "
        f"{part['start']:.0f} of them whatever the number of images; then "
        f"{part['seconds_an_image']:.3f} s/image, {TEST_IMAGES:,} in "
        f"{(part['start'] + part['seconds_an_image'] * TEST_IMAGES) / 3600:.2f} h. "
        f"{part['failures']} failures; {part['how']}. Other work had {part['others']:.0%} of the "
        "machine.",
        highlight=False,
    )
    stages = ", ".join(f"{name} {s:.3f}" for name, s in part["stages"].items())
    console.print(f"Stages, s/image: {stages}.", highlight=False)
    quarters = ", ".join(f"{mb:.0f}" for mb in part["quarters_mb"])
    slope = part["slope_mb"]
    rise = "" if slope is None else f"; {slope:+.1f} MB per 1,000 images"
    console.print(
        f"Memory of all its processes together: at most {part['peak_mb'] / 1024:.2f} GB, "
        f"{part['weights_mb']:.0f} MB of weights among them; median by quarter of the time "
        f"{quarters} MB{rise}.",
        highlight=False,
    )
    if beside is None:
        return
    each = {
        pipeline: statistics.median(per_image(t, "seconds"))
        for pipeline, t in beside["turns"].items()
    }
    network = NETWORK + suffix(a.engines[0])
    both = each[DECODE] + each[network]
    console.print(
        f"submit / ({DECODE} + {network}): {part['seconds_an_image'] / both:.2f}; "
        f"{LOOP} / submit: {each[LOOP] / part['seconds_an_image']:.2f}",
        highlight=False,
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=["1", "2", STAGE], metavar="PART",
                        help=f"numbers of cores, and `{STAGE}`")  # fmt: skip
    parser.add_argument("--real", nargs="+", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--weights", type=Path, help="of the network; else random ones")
    parser.add_argument("--members", nargs="+", help="experiments, each with its own crop")
    parser.add_argument("--folds", type=int, default=1, help="networks of each member")
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones, of train")
    parser.add_argument("--submit", nargs="*", default=[], help="overrides of submit")
    parser.add_argument("--engines", nargs="+", choices=["auto", "torch", "onnx"], default=["auto"],
                        help="of our networks; auto: the one that submit takes")  # fmt: skip
    batch_size = OmegaConf.load(Path(CONF, "submit.yaml")).batch_size
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3, help="over the files, of a measurement")
    parser.add_argument("--images", type=int, default=2000, help=f"of the part `{STAGE}`")
    parser.add_argument("--stage-cores", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.passes < 2 or not all(p == STAGE or p.isdecimal() for p in arguments.only):
        parser.error(f"--passes is 2 at least; --only names numbers of cores and `{STAGE}`")
    return arguments


def experiments(a: argparse.Namespace) -> list[list[str]]:
    """Of each member, overrides of `train`."""
    rest = ["network.pretrained=false", *a.overrides]
    if a.members:
        return [[f"experiment={name}", "checkpoint_path=null", *rest] for name in a.members]
    weights = "null" if a.weights is None else a.weights.resolve()
    return [["name=lite0_h1024", "crop=h1024", f"checkpoint_path={weights}", *rest]]


def main() -> None:
    """Measure, print the tables, write JSON."""
    a = parse()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        files, origin = source_files(a.real, Path(folder), a.batch_size)
        settings = {k: str(v) for k, v in vars(a).items() if k not in _UNTOUCHED}
        settings |= {"files": origin, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        settings["sources"] = source_hash()
        parts: dict[str, Any] = {}
        if a.json and a.json.is_file():
            before = json.loads(a.json.read_text())
            if before["settings"] == settings:
                parts = before["parts"]
        models, onnx = Path(folder, "models"), a.device == "cpu"
        runs = make_ensemble(models, experiments(a), a.folds, onnx=onnx)
        console.print(f"{origin}; {a.rounds} rounds; median (lowest to highest)")
        for part in a.only:
            if part not in parts and part == STAGE:
                overrides = [f"batch_size={a.batch_size}", f"device={a.device}", *a.submit]
                parts[part] = {"cores": a.stage_cores} | measure_submit(
                    files, a.images, runs, models, a.stage_cores, overrides
                )
            elif part not in parts:
                parts[part] = measure_interleaved(int(part), files, runs, a)
            if part == STAGE:
                show_stage(console, parts[part], parts.get(str(a.stage_cores)), a)
            else:
                show_cores(console, int(part), parts[part])
            if a.json:
                a.json.write_text(json.dumps({"settings": settings, "parts": parts}, indent=1))


if __name__ == "__main__":
    main()
