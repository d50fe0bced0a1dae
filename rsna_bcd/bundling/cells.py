"""Run a notebook's code cells as plain Python, without a network.

A program of its own, for a Python that does not have this package:

    unshare --net python -P cells.py notebook.ipynb
"""

import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import Any

_OUTSIDE = ("192.0.2.1", 443)  # reserved for documentation: RFC 5737


def run_cells(notebook: Path) -> None:
    """Execute the code cells one after the other; an exception ends it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, f"<cell {i}>", "exec"), names)


def check_isolation() -> None:
    """Exit with an error if there is a network, or the package is installed already."""
    if importlib.util.find_spec("rsna_bcd") is not None:
        sys.exit("error: rsna_bcd is installed here already: the rehearsal would prove nothing.")
    try:
        socket.create_connection(_OUTSIDE, timeout=1).close()
    except TimeoutError:
        sys.exit("error: there is a route to other machines: the rehearsal would prove nothing.")
    except OSError:
        return
    sys.exit("error: there is a network: the rehearsal would prove nothing.")


if __name__ == "__main__":
    check_isolation()
    run_cells(Path(sys.argv[1]))
