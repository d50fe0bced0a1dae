"""Run a notebook's code cells, as plain Python, where nothing can be reached.

A program of its own, for a Python that does not have this package:

    unshare --net python -P cells.py notebook.ipynb
"""

import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import Any

_OUTSIDE = ("192.0.2.1", 443)  # of no one: RFC 5737


def run_cells(notebook: Path) -> None:
    """Execute the code cells one after the other; what one raises ends it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, f"<cell {i}>", "exec"), names)


def check_nothing_to_lean_on() -> None:
    """Leave with an error if there is a network, or the package is installed already."""
    if importlib.util.find_spec("rsna_bcd") is not None:
        sys.exit("error: rsna_bcd is installed here already: nothing would be shown.")
    try:
        socket.create_connection(_OUTSIDE, timeout=1).close()
    except TimeoutError:
        sys.exit("error: there is a route to other machines: nothing would be shown.")
    except OSError:
        return
    sys.exit("error: there is a network: nothing would be shown.")


if __name__ == "__main__":
    check_nothing_to_lean_on()
    run_cells(Path(sys.argv[1]))
