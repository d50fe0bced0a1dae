"""Prove the project on a GPU, offline: checks, throughput, a study, inference, memory.

    make gpu                              # or: python benchmarks/gpu.py
    make gpu PACK=gpu_pack                # crops, weights and wheels from `make gpu-pack`
    python benchmarks/gpu.py steps=checks,throughput seconds=200 output=output/gpu

Each step has a share of the time (`seconds`, 520 by default) and is stopped when it is used up.
Each result is printed and written to `<output>/<device>/results.jsonl` as soon as it exists; the
same command skips finished steps, and `overwrite=true` measures again. `report.md` has all tables.
Without a GPU, or with `device=cpu`, the same code runs on the processor with tiny networks and
crops.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
SHARES = {  # seconds; the checks end within 90 s of the start, and all within 9 minutes
    "checks": 75, "throughput": 125, "study": 130, "inference": 80, "loader": 65, "memory": 45,
}  # fmt: skip
_NO_TESTS = "5"  # pytest's exit code where all were passed before
GRACE = 5  # seconds between asking a step to end and killing it
EXPERIMENTS = ("lite0", "effnet_b5", "convnext_small")  # whose speed is measured
MEMBERS = EXPERIMENTS[1:]  # whose inference is
_KEYS = ("steps", "pack", "output", "device", "seconds", "jobs", "overwrite")


@dataclass
class Context:
    """The settings of a step.

    Attributes:
        device: `cuda` or `cpu`.
        folder: for logs and runs.
        pack: unpacked folder of `make gpu-pack`; None without one.
        deadline: in seconds of `time.monotonic()`.
        jobs: processes of the study side by side; None lets it choose.
        done: names of the rows that an earlier call has measured.
    """

    device: str
    folder: Path
    pack: Path | None
    deadline: float
    jobs: int | None = None
    done: set[str] = field(default_factory=set)

    @property
    def small(self) -> bool:
        """Whether this is the small size, for a processor."""
        return self.device == "cpu"

    @property
    def cores(self) -> int:
        """Processor cores that this process may use."""
        return len(os.sched_getaffinity(0))

    def has(self, name: str) -> bool:
        """Whether a row is there already."""
        return name in self.done


# Steps: each yields rows with a `name`; those with an `error` are tried again by the next call.


def checks(context: Context) -> Iterator[Row]:
    """The tests of `tests/gpu`, file by file, side by side on a machine with many cores."""
    folder = ROOT / "tests" / "gpu"
    compiling = folder / "test_gpu_compile.py"
    units = [str(file) for file in sorted(folder.glob("test_*.py")) if file != compiling]
    # Each in a process, for compiling takes longest.
    units = [*(f"{compiling}::test_a_compiled_step[{name}]" for name in EXPERIMENTS), *units]
    environment = {**os.environ, "RSNA_BCD_GPU_CHECKS": context.device}
    environment |= {"RSNA_BCD_GPU_PACK": str(context.pack or ""), "PYTHONUNBUFFERED": "1"}
    passed = (f"tests/gpu/{'.py::'.join(name.split(': ', 1))}" for name in sorted(context.done))
    options = ["-m", "gpu", "-v", "-rsfE", "--tb=short", "-p", "no:cacheprovider"]
    options += [f"--deselect={test}" for test in passed]
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def log_file(unit: str) -> Path:
        return context.folder / f"{re.sub(r'[^a-z0-9]+', '_', Path(unit).name)}.log"

    def run() -> None:
        while waiting:
            unit = waiting.pop(0)
            with log_file(unit).open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "pytest", *options, unit], cwd=ROOT, env=environment,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    lines.put((unit, line))
                code = process.wait()
            lines.put((unit, f"ended {code}"))

    waiting, running, told = list(units), len(units), set()
    for _ in range(min(len(units), max(1, context.cores // 2))):
        Thread(target=run, daemon=True).start()
    while running:
        unit, line = lines.get()
        if ended := re.fullmatch(r"ended (-?\d+)", line):
            running -= 1
            if unit not in told and not (context.done and ended[1] == _NO_TESTS):
                yield {"name": Path(unit).name, "error": f"no test was run, see {log_file(unit)}"}
        elif found := re.match(r"\S+/(test_\w+)\.py::(\S.*?) (PASSED|FAILED|ERROR|SKIPPED)", line):
            told.add(unit)
            row = {"name": f"{found[1]}: {found[2]}", "outcome": found[3].lower()}
            if found[3] in ("FAILED", "ERROR"):
                row["error"] = f"see {log_file(unit)}"
            yield row


def throughput(context: Context) -> Iterator[Row]:
    """Speed of a training step."""
    import gpu_throughput

    return gpu_throughput.throughput(context)


def memory(context: Context) -> Iterator[Row]:
    """Memory of a training step."""
    import gpu_throughput

    return gpu_throughput.memory(context)


def study(context: Context) -> Iterator[Row]:
    """Paired differences of the study's variants."""
    from crops import crop_settings, synthetic_crops
    from study import run_study
    from study_config import read_study

    kind = "small" if context.pack is None or context.small else "gpu"
    config = ROOT / "benchmarks" / "studies" / f"{kind}.yaml"
    data = context.pack
    if data is None:
        data, small = context.folder / "study_crops", read_study(config)
        synthetic_crops(
            data, small.dataset, crop_settings("h512_wide"), small.patients or 48,
            n_folds=len(small.folds),
        )  # fmt: skip
    table = run_study(
        config, data, context.folder / ("study" if kind == "gpu" else "study_small"),
        device=context.device, deadline=context.deadline - 15, jobs=context.jobs,
    )  # fmt: skip
    for record in json.loads(table.to_json(orient="records")):
        row = {"name": record.pop("variant"), **record}
        yield {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    for reason in table.attrs.get("failed", []):
        yield {"name": reason.split(":")[0], "error": reason}
    if (table["missing"] != "").any():  # the same call resumes
        yield {"state": "stopped"}


def inference(context: Context) -> Iterator[Row]:
    """Decoding, networks, and both at once."""
    import gpu_inference

    return gpu_inference.inference(context)


def loader(context: Context) -> Iterator[Row]:
    """Training from crops on disk: the wait for data."""
    import gpu_inference

    return gpu_inference.loader(context)


STEPS = {
    "checks": checks, "throughput": throughput, "study": study, "inference": inference,
    "loader": loader, "memory": memory,
}  # fmt: skip


class Results:
    """Rows and states of steps, kept as lines of JSON.

    Args:
        file: to read and to append to.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[str, dict[str, Row]] = {step: {} for step in STEPS}
        self.states: dict[str, Row] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                self._take(json.loads(line))

    def add(self, step: str, row: Row) -> None:
        """Keep a row with a `name`, or the state of a step with a `state`."""
        self._take({"step": step, **row})
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **row}) + "\n")

    def forget(self, steps: Sequence[str]) -> None:
        """Drop all that is known of some steps."""
        for step in steps:
            self.rows[step] = {}
            self.states.pop(step, None)
        kept = [{"step": step, **row} for step in STEPS for row in self.rows[step].values()]
        kept += [{"step": step, **state} for step, state in self.states.items()]
        self._file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def is_finished(self, step: str) -> bool:
        """Whether a step has run to its end without an error."""
        return self.states.get(step, {}).get("state") == "finished"

    def _take(self, line: Row) -> None:
        row = {key: value for key, value in line.items() if key != "step"}
        if "state" in row:
            self.states[line["step"]] = row
        else:
            self.rows[line["step"]][row["name"]] = row


def run_step(step: str, command: Sequence[str], limit: float, results: Results, log: Path) -> str:
    """Run a step in a process group of its own, and kill it when its time is used up.

    Args:
        step: its name.
        command: that writes rows as lines of JSON to its standard output.
        limit: seconds.
        results: get the rows as they come.
        log: gets its standard error.

    Returns:
        `finished`, `stopped` or `failed`.
    """
    begin = time.monotonic()
    lines: SimpleQueue[str | None] = SimpleQueue()
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    Thread(target=read, daemon=True).start()
    failed, state = False, ""
    while not state:
        try:
            line = lines.get(timeout=max(0.0, begin + limit - time.monotonic()))
        except Empty:
            state = "stopped"
            break
        if line is None:
            state = "failed" if process.wait() or failed else "finished"
        else:
            row = json.loads(line)
            if "state" in row:  # it has ended by itself before all was done
                state = row["state"]
                break
            failed = failed or "error" in row
            results.add(step, row)
            print(f"  {shown(row)}", flush=True)
    _end(process)
    seconds = round(time.monotonic() - begin, 1)
    results.add(step, {"state": state, "seconds": seconds, "limit": round(limit, 1)})
    if state == "failed":
        print(f"  failed: see {log}", flush=True)
    return state


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process group: ask, then kill the rest."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def step_limit(step: str, ahead: Sequence[str], seconds: float) -> float:
    """A step's share of the seconds that are left for it and those after it."""
    return seconds * SHARES[step] / sum(SHARES[name] for name in ahead)


def shown(row: Row) -> str:
    """A row as a line of text."""
    values = "  ".join(f"{k} {v}" for k, v in row.items() if k != "name" and v is not None)
    return f"{row['name']}: {values}"


def report(results: Results, machine: Row) -> str:
    """All tables in Markdown."""
    lines = ["# " + machine["device"], "", f"{machine['about']}", ""]
    for step, rows in results.rows.items():
        state = results.states.get(step)
        how = "not run" if state is None else f"{state['state']} after {state['seconds']:.0f} s"
        lines += [f"## {step}: {how}", ""]
        if rows:
            columns = list(dict.fromkeys(key for row in rows.values() for key in row))
            lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            for row in rows.values():
                cells = ("" if row.get(c) is None else str(row.get(c)) for c in columns)
                lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
            lines.append("")
    lines += ["## Goals", "", "| goal | measured | met |", "|---|---|---|"]
    for goal, value, is_met in goals(results):
        measured = "not measured" if value is None else f"{value:.3g}"
        met = "" if value is None else "yes" if is_met else "no"
        if machine["device"] == "processor" and value is not None:
            met = "void on a processor"
        lines.append(f"| {goal} | {measured} | {met} |")
    return "\n".join(lines) + "\n"


def goals(results: Results) -> list[tuple[str, float | None, bool]]:
    """The goals of a GPU: the goal, the figure (None: not measured), and whether it is met."""
    found: list[tuple[str, float | None, bool]] = []

    def add(goal: str, value: float | None, bound: float, *, at_least: bool = False) -> None:
        met = value is not None and (value >= bound if at_least else value <= bound)
        found.append((goal, value, met))

    for name in EXPERIMENTS:
        rows = results.rows["throughput"]
        fast = rows.get(f"{name}, ours, compiled", {})
        slow = rows.get(f"{name}, float32 eager", {}).get("images_per_second")
        ratio = fast["images_per_second"] / slow if slow and "images_per_second" in fast else None
        add(f"{name}: compiled bf16 over float32 eager, at least 2", ratio, 2, at_least=True)
        over = fast.get("over_bare")
        add(f"{name}: our step over the bare loop, at least .97", over, 0.97, at_least=True)
        wait = results.rows["loader"].get(name, {}).get("data_wait")
        add(f"{name}: wait for data, at most .03", wait, 0.03)
    for name in MEMBERS:
        over = results.rows["inference"].get(name, {}).get("submit_over_slower")
        add(f"{name}: submit over the slower part, at most 1.15", over, 1.15)
    return found


def machine_facts(device: str) -> Row:
    """The device to use and its description, found in a process that ends before the steps."""
    code = (
        "import json, torch, sys; d = sys.argv[1]; "
        "d = ('cuda' if torch.cuda.is_available() else 'cpu') if d == 'auto' else d; "
        "p = torch.cuda.get_device_properties(0) if d == 'cuda' else None; "
        "print(json.dumps({'kind': d, 'device': p.name if p else 'processor', "
        "'torch': torch.__version__, 'gib': p.total_memory / 2**30 if p else None}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, device], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    facts: Row = json.loads(output.splitlines()[-1])
    memory = f", {facts['gib']:.1f} GiB" if facts["gib"] else ""
    cores = len(os.sched_getaffinity(0))
    facts["about"] = f"{facts['device']}{memory}, {cores} cores, torch {facts['torch']}"
    return facts


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """`key=value` arguments; an unknown key or step ends the program with a message."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := set(given) - {*_KEYS, "run"}:
        sys.exit(f"error: unknown {', '.join(sorted(unknown))}; there are {', '.join(_KEYS)}.")
    names = given.get("steps", ",".join(STEPS)).strip("[]").split(",")
    if wrong := [name for name in names if name not in STEPS]:
        sys.exit(f"error: no step {', '.join(wrong)}; there are {', '.join(STEPS)}.")
    return {**given, "steps": ",".join(name for name in STEPS if name in names)}


def install_wheels(pack: Path, folder: Path) -> Path:
    """Put those wheels of the pack whose package is missing where Python finds them.

    Returns:
        That folder; the environment stays as it is.
    """
    known = {re.sub(r"[-_.]+", "-", d.metadata["Name"] or "").lower() for d in distributions()}
    wheels = [
        str(wheel)
        for wheel in sorted((pack / "wheels").glob("*.whl"))
        if re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower() not in known
    ]
    target = folder / "site"
    if wheels and not target.is_dir():
        options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
    return target


def run_one(given: dict[str, str]) -> None:
    """Run a step in this process; rows go to standard output as lines of JSON."""
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    context = Context(**json.loads(given["run"])["context"])
    context.folder, context.done = Path(context.folder), set(context.done)
    context.pack = None if context.pack is None else Path(context.pack)
    for row in STEPS[json.loads(given["run"])["step"]](context):
        print(json.dumps(row), file=protocol, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the steps; the exit code is 1 if one failed."""
    given = parse(arguments)
    if "run" in given:
        run_one(given)
        return 0
    begin, seconds = time.monotonic(), float(given.get("seconds", sum(SHARES.values())))
    output = Path(given.get("output", ROOT / "output" / "gpu")).resolve()
    output.mkdir(parents=True, exist_ok=True)
    pack = Path(given["pack"]).resolve() if given.get("pack") else None
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    if pack is not None:
        paths.append(str(install_wheels(pack, output)))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    machine = machine_facts(given.get("device", "auto"))
    folder = output / re.sub(r"\W+", "-", machine["device"].lower()).strip("-")
    folder.mkdir(exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # shared by the steps
    print(machine["about"])
    if machine["kind"] == "cpu":
        print("No GPU is used: tiny networks on the processor. Speeds mean nothing.")
    results = Results(folder / "results.jsonl")
    ahead = given["steps"].split(",")
    if given.get("overwrite") == "true":
        results.forget(ahead)
    for step in [step for step in ahead if results.is_finished(step)]:
        print(f"{step}: finished already (overwrite=true measures again)")
    ahead = [step for step in ahead if not results.is_finished(step)]
    failed = False
    while ahead:
        step = ahead[0]
        limit = step_limit(step, ahead, begin + seconds - time.monotonic())
        print(f"{step}, at most {limit:.0f} s:", flush=True)
        done = [n for n, row in results.rows[step].items() if "error" not in row]
        context = {
            "device": machine["kind"], "folder": str(folder), "pack": pack and str(pack),
            "deadline": time.monotonic() + limit, "done": done,
            "jobs": int(given["jobs"]) if "jobs" in given else None,
        }  # fmt: skip
        request = json.dumps({"step": step, "context": context})
        command = [sys.executable, str(Path(__file__).resolve()), f"run={request}"]
        state = run_step(step, command, limit, results, folder / f"{step}.log")
        failed = failed or state == "failed"
        (folder / "report.md").write_text(report(results, machine), encoding="utf-8")
        ahead = ahead[1:]
    text = report(results, machine)
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(text + str(folder / "report.md"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
