"""Settings of the documentation site; ``make docs`` builds it."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import ppl_llm  # noqa: E402

for annotated in ("frame", "genealogy"):  # classes that signatures name, imported by the package on first use
    importlib.import_module(f"ppl_llm.inference.viewer.{annotated}")

project = "ppl_llm"
version = release = ppl_llm.__version__
author = "the authors of ppl_llm"
project_copyright = "the authors of ppl_llm, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "README.md", "**/README.md"]
html_theme = "furo"
html_title = "ppl_llm"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
templates_path: list[str] = []
pygments_style = "default"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 100
toc_object_entries = False

# The default of a dataclass field, <factory>, is no Python, after which Sphinx takes the type of the field to pieces.
nitpick_ignore = [("py:class", "dict[str")]
# Names of other projects cannot be looked up without a network; they are shown as plain text.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(Axes|Figure|torch|pyro|pyroapi|transformers|tokenizers|collections|functools|typing|pathlib|numpy|np|os|abc|enum|httpx|rich|typer)(\..*)?",
    ),
]


def _named(path: str) -> Any:
    """The object of a dotted name, or ``None``; also for a name that a package exports only where an extra is installed."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part, None)
        except ImportError:
            continue
        return found
    return None


def _link(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Names that Sphinx does not find where they stand: documented under another module, or members of a base class.

    What is documented becomes a link, and what exists but is not documented plain text. A name of nothing stays a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.get_domain("py")
    place = ".".join(part for part in (node.get("py:module"), node.get("py:class")) if part)
    inside = _named(place) if place else None
    homes: list[Any] = [inside, *(inspect.getmro(inside) if inspect.isclass(inside) else ())]
    homes += [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] == "ppl_llm"]
    first, *rest = target.split(".")
    found = _named(target) if rest else None
    for each in homes:
        if found is None:
            found = getattr(each, first, None)
            for part in rest:
                found = getattr(found, part, None)
    if found is None:
        noted = any(re.search(rf":ivar[^:]* {re.escape(target)}:", each.__doc__ or "") for each in homes if inspect.isclass(each))
        return text if noted else None
    for name, entry in domain.objects.items():
        if name.rpartition(".")[2] == target.rpartition(".")[2] and not entry.aliased and _named(name) is found:
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [text], name)
    return text


def _math(translator: Any, node: Any) -> None:
    """Formulas as MathML, which browsers show without scripts and without a network."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext().strip(), as_block=block)
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def _tidy(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """A lone capital such as "N." is text and no number of a list, and every numbered reference begins a paragraph."""
    for i in reversed(range(len(lines))):
        lines[i] = re.sub(r"^(:\w[^:]*: )([A-Z]\.)", r"\1\\\2", lines[i])
        if re.match(r"\[\d+\] ", lines[i]):
            lines.insert(i, "")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(_math, None), block_renderers=(_math, None))
    app.connect("autodoc-process-docstring", _tidy)
    app.connect("missing-reference", _link)
