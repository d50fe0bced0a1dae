"""Sphinx settings of the site: `make docs`."""

import importlib.metadata
import re

from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

project = "rsna_bcd"
copyright = "2026, the rsna_bcd authors"
release = importlib.metadata.version("rsna_bcd")
extensions = [
    "myst_parser",  # the pages are Markdown, and read as well in the repository
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "rsna_bcd"
myst_heading_anchors = 3  # of links such as `page.md#heading`

# One page per directory of the package, made from the docstrings into docs/api/.
apidoc_modules = [{"path": "../rsna_bcd", "destination": "api", "module_first": True}]
apidoc_automodule_options = {"members"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "code"  # a word in single backticks
napoleon_use_ivar = True  # fields of a dataclass are described once

# The pages of the site in order; the README's links to them are of the repository.
PAGES = {
    "Use": [
        "commands/prepare", "commands/train", "commands/search", "commands/ensemble",
        "commands/report", "commands/submit", "commands/predict", "commands/evaluate",
        "commands/export", "commands/kaggle", "commands/synthesize", "datasets", "gpu",
    ],
    "Understand": ["architecture", "guarantees", "benchmarks", "study", "glossary"],
    "Extend": ["extend", "API reference <api/modules>"],
}  # fmt: skip


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add the table of contents to the first page, which is a plain list in the repository."""
    if docname == "index":
        for caption, pages in PAGES.items():
            listed = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def convert_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn the Markdown of a docstring into reStructuredText: code, and blocks of code."""
    parts = re.split(r"^( *)```\w*\n(.*?)^ *```$", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    text = ""
    for prose, indent, block in zip(
        parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True
    ):
        code = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda match: f"``{match[1].strip()}``", prose)
        text += re.sub(r"(?<!\*)\*\*(?=[{\w])", r"\*\*", code)  # keyword arguments, not bold
        if block:
            shifted = re.sub(r"^", "    ", block, flags=re.MULTILINE).rstrip()
            text += f"{indent}.. code-block:: text\n\n{shifted}\n"
    lines[:] = text.split("\n")


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Write `ArrayLike` in place of the types that it stands for."""
    if not signature:
        return None
    whole = stringify_annotation(ArrayLike, "smart")
    return signature.replace(whole, "ArrayLike"), (returns or "").replace(whole, "ArrayLike")


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", convert_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", shorten_signature)
