"""From DICOM to PNG: ours beside the first place's CPU path and pydicom's defaults.

    python benchmarks/prepare.py                     # synthetic files
    RSNA_BCD_REAL_DATA=... python benchmarks/prepare.py --json prepare.json

Each way works in a process of its own, on one core, in turns (A B C A B C ...): what disturbs the
machine disturbs all. Imports and one file to warm up are not counted. CPU seconds are those of the
process and its children. The share of the codec is the time within the decoder that gives the
pixels of the crop: what it gives first to find the breast counts as ours. All ways run with the
allocator settings of our engine, which keep freed memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mammograms import mammograms, transcoded
from rich.console import Console
from rich.progress import track
from rich.table import Table

WAYS = ("ours", "ours, reduce=0", "first place", "pydicom")
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


def work(way: str, crop: str, files: list[str]) -> dict[str, Any]:
    """Do the files, in this process.

    Returns:
        CPU seconds by file, those of them within the decoders, and the peak memory in MB.
    """
    import cv2
    import ways

    from rsna_bcd.imaging.codecs import DECODERS, Decoder

    cv2.setNumThreads(1)
    codec = [0.0]
    for name, decoder in DECODERS.items():
        DECODERS[name] = Decoder(decoder.reads, _timed(decoder.decode, codec))
    do = {
        "ours": lambda: ways.ours(crop),
        "ours, reduce=0": lambda: ways.ours(crop, 0),
        "first place": lambda: ways.first_place(crop),
        "pydicom": lambda: ways.notebook(crop),
    }[way]()
    seconds, codecs = [], []
    with tempfile.TemporaryDirectory() as folder:
        do(Path(files[0]), Path(folder, "warm.png"))
        for number, file in enumerate(files):
            codec[0] = 0.0
            start = _cpu()
            do(Path(file), Path(folder, f"{number}.png"))
            seconds.append(_cpu() - start)
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


def _cpu() -> float:
    """CPU seconds of this process and its children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(way: str, crop: str, files: list[Path]) -> dict[str, Any]:
    """`work` in a fresh process."""
    request = json.dumps([way, crop, [str(file) for file in files]])
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, __file__, "--work", request],
        check=True, stdout=subprocess.PIPE, text=True, env=environment,
    ).stdout  # fmt: skip
    result: dict[str, Any] = json.loads(output)
    return result


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """CPU seconds an image (each file's median over the rounds), codec's share, peak memory."""
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(*json.loads(arguments.work))))
        return
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        files, origin = mammograms(Path(folder))
        by_syntax = {s: transcoded(files, Path(folder), s) for s in arguments.syntaxes}
        settings = [(s, c) for s in arguments.syntaxes for c in arguments.crops]
        turns = [
            (*setting, way) for setting in settings for _ in range(arguments.rounds) for way in WAYS
        ]
        rounds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for syntax, crop, way in track(turns, "Measuring", console=Console(stderr=True)):
            rounds.setdefault((syntax, crop, way), []).append(measure(way, crop, by_syntax[syntax]))
    results = {key: summary(value) for key, value in rounds.items()}
    table = Table(
        "syntax", "crop", "way", "CPU s an image", "first place /", "codec's share", "peak MB"
    )
    for (syntax, crop, way), result in results.items():
        ratios = [
            sum(theirs["seconds"]) / sum(ours["seconds"])
            for ours, theirs in zip(
                rounds[syntax, crop, way], rounds[syntax, crop, "first place"], strict=True
            )
        ]
        result["ratio"] = statistics.median(ratios)
        result["ratio_low"], result["ratio_high"] = min(ratios), max(ratios)
        share = f"{result['codec_share']:.1%}" if way.startswith("ours") else ""
        table.add_row(
            syntax, crop, way, f"{result['seconds']:.3f}",
            f"{result['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            share, f"{result['peak_mb']:.0f}",
        )  # fmt: skip
    console.print(f"{origin}, {arguments.rounds} rounds; median (lowest to highest round)")
    console.print(table)
    if arguments.json:
        listed = [
            dict(zip(("syntax", "crop", "way"), k, strict=True)) | r for k, r in results.items()
        ]
        arguments.json.write_text(json.dumps({"files": origin, "results": listed}, indent=1))


if __name__ == "__main__":
    main()
