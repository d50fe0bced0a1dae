"""A notebook without a network and without this package."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rsna_bcd.bundling.image import lay_out, make_image, run_offline, write_image
from rsna_bcd.errors import InputError

_NAMESPACE = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"]), "true"]

needs_namespaces = pytest.mark.skipif(
    subprocess.run(_NAMESPACE, check=False, capture_output=True).returncode != 0,
    reason="network namespaces may not be made here",
)
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

CELL = """
import os, socket, sys
from pathlib import Path
root = Path(os.environ["KAGGLE_ROOT"])
assert Path.cwd() == root / "working"
assert not [name for name in os.environ if name.startswith("PYTHON")]
found = (root / "input" / "mine" / "file.txt").read_text()
"""
NEXT = """
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    found += f" {type(error).__name__} {error.errno == 101}"
Path("made.txt").write_text(found)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    write_image(folder / "image.txt", HERE, {})
    return make_image(sys.executable, folder / "image.txt", folder / "venv")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("dataset", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").write_text(name)
    root = tmp_path / "root"
    lay_out(root, tmp_path / "dataset", "mine", tmp_path / "data", "comp")
    assert (root / "input" / "competitions" / "comp" / "file.txt").read_text() == "data"
    return root


def save(file: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), file)
    return file


@needs_namespaces
def test_run_offline_runs_all_cells_without_a_network(
    python: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_offline(python, save(tmp_path / "n.ipynb", CELL, NEXT), root)
    assert (root / "working" / "made.txt").read_text() == "dataset OSError True"


@needs_namespaces
def test_run_offline_stops_at_a_failing_cell_or_an_installed_package(
    python: Path, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notebook = save(tmp_path / "n.ipynb", "1 / 0", CELL + NEXT)
    for interpreter, problem in (
        (python, "ZeroDivisionError"),
        (Path(sys.executable), "rsna_bcd is installed here already"),
    ):
        with pytest.raises(InputError, match=r"The notebook failed \(see above\)"):
            run_offline(interpreter, notebook, root)
        assert problem in capfd.readouterr().err
        assert not (root / "working" / "made.txt").exists()


def test_check_isolation_refuses_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from rsna_bcd.bundling import cells

    class Socket:
        def close(self) -> None: ...

    def too_late(*_: object, **__: object) -> Socket:
        raise TimeoutError

    monkeypatch.setattr(cells.importlib.util, "find_spec", lambda _: None)
    for connect in (too_late, lambda *_, **__: Socket()):
        monkeypatch.setattr(cells.socket, "create_connection", connect)
        with pytest.raises(SystemExit, match="prove nothing"):
            cells.check_isolation()


def test_make_image_refuses_another_python(tmp_path: Path) -> None:
    write_image(tmp_path / "image.txt", "2.7", {})
    for interpreter in (sys.executable, "no-such-python"):
        with pytest.raises(InputError, match=r"is no Python 2\.7.*KAGGLE_PYTHON="):
            make_image(interpreter, tmp_path / "image.txt", tmp_path / "venv")
    with pytest.raises(InputError, match="packages= is a requirements file"):
        make_image(sys.executable, tmp_path / "absent.txt", tmp_path / "venv")
