"""The arrows of the design: who may import whom, and names that would hide two jobs."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rsna_bcd"

# Directory -> which directories it may import, besides itself, `errors`, `files`,
# `processes` and `targets`.
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
    "errors", "files", "processes", "settings", "__main__", "_validation", "_records",
    "_stage", "targets",
}  # fmt: skip
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
    if len(module.parts) == 1:  # a command, or what commands share
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
    assert ours(module) <= ALLOWED[layer] | {layer, "errors", "files", "processes", "targets"}
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


def test_an_arrow_that_does_not_exist_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: scoring does not import torch, and would be refused if it did."""
    monkeypatch.setitem(ALLOWED, "tables", set())
    module = Path("tables/images.py")
    assert "errors" in ours(module)
    assert not ours(module) <= ALLOWED["tables"] | {"tables"}
