"""The arrows of the design: who may import whom, and names that would hide two jobs."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rsna_bcd"

# Directory -> which directories it may import, besides itself and `SHARED_BELOW`.
ALLOWED: dict[str, set[str]] = {
    "phantom": {"tables"},
    "imaging": set(),
    "tables": {"scoring"},
    "scoring": set(),
    "preparation": {"imaging", "tables"},
    "data": {"imaging", "tables"},
    "models": {"tables", "scoring"},
    "reporting": {"tables", "scoring", "models", "inference"},
    "bundling": set(),
    "inference": {"phantom", "imaging", "tables", "scoring", "preparation", "data", "models"},
}
NO_TORCH = {"bundling", "phantom", "imaging", "tables", "scoring", "preparation"}
TORCH = {"torch", "torchvision", "timm", "pytorch_lightning"}
STAGES = "rsna_bcd.stages."
HEAVY = {"torch", "pandas", "numpy", "cv2", "matplotlib", "pytorch_lightning", "wandb"}
CONFIGURATION = {"hydra", "omegaconf"}
MAY_REBUILD_A_RUN = "inference/run.py"
SHARED_AT_THE_TOP = {
    "durations", "errors", "files", "processes", "settings", "__main__", "_validation", "_records",
    "_stage", "targets",
}  # fmt: skip
SHARED_BELOW = {"durations", "errors", "files", "processes", "targets"}
JUNK = {"util", "utils", "common", "helper", "helpers", "misc", "base", "core"}

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(module: Path) -> set[str]:
    """Dotted names that a module imports, `from a import b` as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, line {node.lineno}"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def ours(module: Path) -> set[str]:
    """First parts below `rsna_bcd` that a module imports."""
    below = {name.split(".")[1] for name in imports(module) if name.startswith("rsna_bcd.")}
    known = {path.parts[0].removesuffix(".py") for path in MODULES}
    return below & known


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_keeps_to_the_arrows(module: Path) -> None:
    external = {name.split(".")[0] for name in imports(module)}
    commands = {path.stem for path in MODULES if path.parts[0] == "stages"}
    if len(module.parts) == 1:  # a command, or a module that commands share
        assert not ours(module) & (commands - {module.stem}), "a command imports a command"
        assert not external & HEAVY, "a command answers --help and a typo at once"
        return
    if module.parts[0] == "stages":
        stages = {name.split(".")[2] for name in imports(module) if name.startswith(STAGES)}
        assert not {s for s in stages if not s.startswith("_")}, "a stage imports a stage"
        assert not ours(module) & commands, "a stage imports a command"
        return
    layer = module.parts[0]
    assert layer in ALLOWED, f"{layer}/ is new: say in ALLOWED what it may import"
    assert ours(module) <= ALLOWED[layer] | {layer, *SHARED_BELOW}
    if layer in NO_TORCH:
        assert not external & TORCH
    if module.as_posix() != MAY_REBUILD_A_RUN:
        assert not external & CONFIGURATION, "only stages know Hydra"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_has_one_job(module: Path) -> None:
    assert not {part.removesuffix(".py") for part in module.parts} & JUNK
    source = (PACKAGE / module).read_text(encoding="utf-8")
    assert source.count("\n") <= 600
    assert "pickle" not in {name.split(".")[0] for name in imports(module)}
    assert not re.search(r"Console\((?!.*markup=False)", source), "names are no markup"


# Words of a private dialect, and names that the glossary replaced (`of_x` and `x_of` by nouns).
DIALECT = re.compile(
    r"\b(anew|amiss|nobody|whoever|goes on|one row an?|has no say|taught besides|doubts?|judged"
    r"|shed|spent|settle|readings)\b",
    re.IGNORECASE,
)
FORMER_NAMES = re.compile(
    r"of_\w+|\w+_of|answering|answers|BreastAnswer|doubts|readings|words|Judged|contrasts|contents"
    r"|bands|HeldOut|pull|on_scale|stretch|tell|device_named|settle|go_on|made_from|anew|averaging"
    r"|ranks|roles|dealt|presentation|shown_overview|ways|turns|ranges"
)
# They stay, in quotation marks.
PUBLIC = {
    "shed": "key of summary.json",
    "amiss": "the same",
    "doubts": "key of predictions.json and column",
}

ROOT = PACKAGE.parent
TEXTS = sorted(
    file
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "conf/**/*.yaml",
        "benchmarks/**/*.py",
        "benchmarks/**/*.yaml",
        "tests/**/*.py",
    )
    for file in ROOT.glob(pattern)
    if file != Path(__file__)
) + sorted(PACKAGE.rglob("*.py"))


def dialect(text: str, *, is_python: bool) -> list[str]:
    """Words of the dialect, and former names of functions and classes."""
    for key in PUBLIC:
        text = re.sub(rf"([\"']){key}\1", "''", text)
    found = [match.group() for match in DIALECT.finditer(text)]
    if is_python:
        named = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, named)]
        found += [name for name in names if FORMER_NAMES.fullmatch(name.lstrip("_"))]
    return found


def test_the_dialect_stays_out() -> None:
    found = {
        str(file.relative_to(ROOT)): dialect(
            file.read_text("utf-8"), is_python=file.suffix == ".py"
        )
        for file in TEXTS
    }
    assert {file: words for file, words in found.items() if words} == {}
    assert not [file for file in TEXTS if FORMER_NAMES.fullmatch(file.stem)]


def test_dialect_is_found() -> None:
    assert dialect("def _weights_of(): ...  # one row a breast", is_python=True) == [
        "one row a", "_weights_of",
    ]  # fmt: skip
    assert dialect("{'shed': 1}", is_python=True) == []
