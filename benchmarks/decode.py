"""Decoders side by side, by transfer syntax, and JPEG 2000 at reduced resolution.

    python benchmarks/decode.py                     # synthetic files
    RSNA_BCD_REAL_DATA=... python benchmarks/decode.py --json decode.json

One process, one core; for each file all decoders in turn, several rounds, and of each the median.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
from mammograms import SYNTAXES, mammograms, transcoded
from pydicom.pixels import pixel_array
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rsna_bcd.imaging.codecs import DECODERS, extract_frame
from rsna_bcd.imaging.dicom import check_header
from rsna_bcd.imaging.mammogram import overview_level


def decoders_for(file: Path) -> dict[str, Callable[[], object]]:
    """The decoders of a file, by name; headers are read beforehand."""
    dataset = pydicom.dcmread(file)
    encoded = extract_frame(dataset, check_header(dataset))
    pipelines: dict[str, Callable[[], object]] = {}
    for name, decoder in DECODERS.items():
        if encoded.syntax in decoder.reads:
            pipelines[name] = lambda decoder=decoder: decoder.decode(encoded, 0)  # type: ignore[misc]
    pipelines["pydicom's default"] = lambda: pixel_array(dataset)
    if encoded.stream and encoded.stream.levels:
        reduced = {"half": 1, "a quarter": 2}
        scout = overview_level(encoded.stream.height, encoded.stream.width)
        reduced["for the overview"] = scout
        for name, level in reduced.items():
            pipelines[f"openjpeg, {name}"] = lambda level=level: DECODERS["openjpeg"].decode(  # type: ignore[misc]
                encoded, level
            )
    return pipelines


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--syntaxes", nargs="+", default=list(SYNTAXES), choices=list(SYNTAXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {}
    megapixels: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files, origin = mammograms(Path(folder))
        for syntax in arguments.syntaxes:
            recoded = transcoded(files, Path(folder), syntax)
            for file in track(recoded, syntax, console=Console(stderr=True)):
                pipelines = decoders_for(file)
                rounds = [
                    {name: cpu_seconds(pipeline) for name, pipeline in pipelines.items()}
                    for _ in range(arguments.rounds)
                ]
                for name in pipelines:
                    median = statistics.median(times[name] for times in rounds)
                    seconds.setdefault((syntax, name), []).append(median)
                header = pydicom.dcmread(file, stop_before_pixels=True)
                megapixels[syntax] = megapixels.get(syntax, 0) + header.Rows * header.Columns / 1e6
    table = Table("syntax", "decoder", "ms/image", "ms/megapixel", "times the fastest")
    listed = []
    for (syntax, name), times in seconds.items():
        whole = min(
            sum(t) for (s, n), t in seconds.items() if s == syntax and not n.startswith("openjpeg,")
        )
        row = {
            "syntax": syntax,
            "decoder": name,
            "ms": statistics.mean(times) * 1e3,
            "ms_per_megapixel": sum(times) / megapixels[syntax] * 1e3,
            "ratio": sum(times) / whole,
        }
        listed.append(row)
        table.add_row(
            syntax,
            name,
            f"{row['ms']:.0f}",
            f"{row['ms_per_megapixel']:.1f}",
            f"{row['ratio']:.2f}",
        )
    console = Console(width=100)
    console.print(f"{origin}, {arguments.rounds} rounds")
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"files": origin, "results": listed}, indent=1))


if __name__ == "__main__":
    main()
