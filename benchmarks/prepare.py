"""From DICOM to PNG: ours beside the first place's CPU path and pydicom's defaults.

    python benchmarks/prepare.py                     # synthetic files
    RSNA_BCD_REAL_DATA=... python benchmarks/prepare.py --json prepare.json

Each pipeline runs in its own process on one core; see `timing`. Imports and one file to warm up do
not count. CPU seconds are those of the process and its children. The codec's share is the time in
the decoder of the crop's pixels; decoding at low resolution, to find the breast, counts as ours.
All pipelines run with the allocator settings of our decoding processes, which keep freed memory.

Last comes the command as a user types it, with all its processes and imports, beside the first
place's path in a loop (`--typed`, a number of images).
"""

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from commands import run_command
from mammograms import mammograms, transcoded
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import cpu_seconds, measure_in_process, median_and_range

PIPELINES = ("ours", "ours, reduce=0", "first place", "pydicom")


def work(pipeline: str, crop: str, files: list[str]) -> dict[str, Any]:
    """Prepare the files, in this process.

    Returns:
        CPU seconds by file, the seconds in decoders among them, and the peak memory in MB.
    """
    import cv2
    import pipelines

    from rsna_bcd.imaging.codecs import DECODERS, Decoder

    cv2.setNumThreads(1)
    codec = [0.0]
    for name, decoder in DECODERS.items():
        DECODERS[name] = Decoder(decoder.reads, _timed(decoder.decode, codec))
    do = {
        "ours": lambda: pipelines.ours(crop),
        "ours, reduce=0": lambda: pipelines.ours(crop, 0),
        "first place": lambda: pipelines.first_place(crop),
        "pydicom": lambda: pipelines.notebook(crop),
    }[pipeline]()
    seconds, codecs = [], []
    with tempfile.TemporaryDirectory() as folder:
        do(Path(files[0]), Path(folder, "warm.png"))
        for number, file in enumerate(files):
            codec[0] = 0.0
            start = cpu_seconds()
            do(Path(file), Path(folder, f"{number}.png"))
            seconds.append(cpu_seconds() - start)
            codecs.append(codec[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "codec": codecs, "peak_mb": peak}


def _timed(decode: Any, longest: list[float]) -> Any:
    """Keep the longest decoding of a file in `longest`."""

    def timed(*arguments: Any) -> Any:
        start = time.process_time()
        try:
            return decode(*arguments)
        finally:
            longest[0] = max(longest[0], time.process_time() - start)

    return timed


def as_typed(crop: str, files: list[Path], folder: Path) -> tuple[float, float]:
    """CPU seconds of `rsna_bcd.prepare` as a user types it, and of the first place's loop.

    Args:
        crop: of `conf/crop/`.
        files: DICOM files.
        folder: for the data and the crops.
    """
    from large_test_set import make_table

    data = make_table(folder / "data", files, len(files))
    paths = f"paths.data={data}", f"paths.output={folder / 'output'}"
    start = cpu_seconds()
    run_command("prepare", *paths, f"crop={crop}", "splits=[test]")
    ours = cpu_seconds() - start
    measure_in_process(__file__, ["first place", crop, list(map(str, files))])
    return ours, cpu_seconds() - start - ours


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """CPU seconds per image (each file's median over the rounds), codec's share, peak memory."""
    seconds = [
        statistics.median(times) for times in zip(*(r["seconds"] for r in rounds), strict=True)
    ]
    codec = [statistics.median(times) for times in zip(*(r["codec"] for r in rounds), strict=True)]
    return {
        "seconds": statistics.mean(seconds),
        "codec_share": sum(codec) / sum(seconds),
        "peak_mb": max(r["peak_mb"] for r in rounds),
    }


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--crops", nargs="+", default=["h1024", "h1536", "h2048"])
    parser.add_argument("--syntaxes", nargs="+", default=[".90", ".70"])
    parser.add_argument("--typed", type=int, default=132, help="images of the whole command")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(work(*json.loads(arguments.measure))))
        return
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        files, origin = mammograms(Path(folder))
        by_syntax = {s: transcoded(files, Path(folder), s) for s in arguments.syntaxes}
        settings = [(s, c) for s in arguments.syntaxes for c in arguments.crops]
        runs = [(*s, p) for s in settings for _ in range(arguments.rounds) for p in PIPELINES]
        rounds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for syntax, crop, pipeline in track(runs, "Measuring", console=Console(stderr=True)):
            rounds.setdefault((syntax, crop, pipeline), []).append(
                measure_in_process(__file__, [pipeline, crop, list(map(str, by_syntax[syntax]))])
            )
        typed: list[tuple[float, float]] = []
        many = list(itertools.islice(itertools.cycle(files), arguments.typed))
        for number in range(arguments.rounds if many else 0):
            typed.append(as_typed(arguments.crops[0], many, Path(folder, f"typed{number}")))
    results = {key: summary(value) for key, value in rounds.items()}
    table = Table(
        "syntax", "crop", "pipeline", "CPU s/image", "first place /", "codec's share", "peak MB"
    )
    for (syntax, crop, pipeline), result in results.items():
        ratios = [
            sum(theirs["seconds"]) / sum(ours["seconds"])
            for ours, theirs in zip(
                rounds[syntax, crop, pipeline], rounds[syntax, crop, "first place"], strict=True
            )
        ]
        result["ratio"] = statistics.median(ratios)
        result["ratio_low"], result["ratio_high"] = min(ratios), max(ratios)
        share = f"{result['codec_share']:.1%}" if pipeline.startswith("ours") else ""
        table.add_row(
            syntax, crop, pipeline, f"{result['seconds']:.3f}",
            f"{result['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            share, f"{result['peak_mb']:.0f}",
        )  # fmt: skip
    console.print(f"{origin}, {arguments.rounds} rounds; median (lowest to highest round)")
    console.print(table)
    if typed:
        console.print(
            f"python -m rsna_bcd.prepare crop={arguments.crops[0]}, {len(many)} images, CPU s: "
            f"{median_and_range([ours for ours, _ in typed], 1)}; first place / ours: "
            f"{median_and_range([theirs / ours for ours, theirs in typed], 2)}",
            highlight=False,
        )
    if arguments.json:
        names = ("syntax", "crop", "pipeline")
        listed = [dict(zip(names, key, strict=True)) | r for key, r in results.items()]
        arguments.json.write_text(
            json.dumps({"files": origin, "results": listed, "typed": typed}, indent=1)
        )


if __name__ == "__main__":
    main()
