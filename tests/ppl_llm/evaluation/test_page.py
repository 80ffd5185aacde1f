"""The report as a document: self-contained, well formed, readable in light and dark, told in words as well."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ppl_llm.evaluation.comparison import Comparison
from ppl_llm.evaluation.drawing import COLOURS, figure, inline
from ppl_llm.evaluation.page import _STYLE
from ppl_llm.evaluation.report import write
from tests.helpers.runs import METHODS, write_run

LOADING = ("src", "href", "xlink:href", "srcset", "data", "poster", "action", "formaction", "background")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Document(HTMLParser):
    """What a page refers to, its ids, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.outside, self.ids, self.anchors = text, list[str](), list[str](), list[str]()
        self.tags, self.open, self.labels, self.handlers = Counter[str](), list[str](), list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            elif name == "aria-labelledby":
                self.labels += value.split()
            elif name in LOADING:
                (self.anchors if value.startswith("#") else self.outside).append(value)
            elif name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes something else")


def faults(text: str) -> list[str]:
    """What is wrong with a page."""
    found = []
    try:
        document = Document(text)
    except ValueError as error:
        return [str(error)]
    if document.open:
        found.append(f"left open: {document.open}")
    found += [f"loads {value}" for value in document.outside if value != "data:,"]
    found += [f"runs {name}" for name in document.handlers] + [f"has {tag}" for tag in ("script", "iframe", "object") if document.tags[tag]]
    twice = [name for name, count in Counter(document.ids).items() if count > 1]
    found += [f"id {name} twice" for name in twice]
    used = [a.removeprefix("#") for a in document.anchors] + document.labels + re.findall(r"url\(#([^)\"']*)\)", text)
    found += [f"no id {name}" for name in used if name not in document.ids]
    found += [f"loads {address}" for address in re.findall(r"(?:@import|url\()\s*[\"']?((?!#)[^)\"']+)", text)]
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        try:
            tree = ET.fromstring(svg)
        except ET.ParseError as error:
            found.append(f"an svg is not well formed: {error}")
            continue
        words = [child.text or "" for child in tree if child.tag.endswith(("title", "desc"))]
        if tree.get("role") != "img" or len(words) != 2 or not all(len(word) > 5 for word in words):
            found.append("a figure is not told in words")
        if sum(element.tag.endswith("path") for element in tree.iter()) < 6:
            found.append("a figure is empty")
    if document.tags["table"] != document.tags["caption"]:
        found.append("a table has no caption")
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs")
    first, second = write_run(root / "one"), write_run(root / "two & co", skill=0.2, temperature=0.7, problems=range(4, 16))
    comparison = Comparison.read(first, second).write(first)
    assert comparison.name == "comparison-with-two-co.html"
    return {"report": write(first).read_text(), "comparison": comparison.read_text()}


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_the_page_is_self_contained_and_well_formed(name: str, pages: dict[str, str]) -> None:
    assert faults(pages[name]) == []
    assert pages[name].count("<svg") == {"report": 9, "comparison": 10}[name]


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ('<link rel="icon" href="data:,">', '<link rel="stylesheet" href="https://example.org/a.css">', "loads https://example.org/a.css"),
        ("</style>", "body { background: url(https://example.org/b.png) }</style>", "loads https://example.org/b.png"),
        ("</main>", "<script>1</script></main>", "has script"),
        ("</main>", "</div></main>", "</div> closes something else"),
        ('id="section-2"', 'id="section-1"', "id section-1 twice"),
        ('role="img"', 'role="none"', "a figure is not told in words"),
        ("<caption>", "<p>", "</caption> closes something else"),
        ('href="#section-2"', 'href="#section-99"', "no id section-99"),
        ("</title><desc", "</tilte><desc", "</tilte> closes something else"),
    ],
)
def test_a_broken_page_is_noticed(before: str, after: str, fault: str, pages: dict[str, str]) -> None:
    assert before in pages["report"]
    assert fault in faults(pages["report"].replace(before, after, 1))


def test_all_of_it_is_there(pages: dict[str, str]) -> None:
    report = pages["report"]
    for title in (
        "Accuracy",
        "Scaling-rate ratio",
        "Cost",
        "Levels",
        "Coverage",
        "Votes recomputed from the samples",
        "Reward model",
        "Expected accuracy under the posterior",
        "Calibration of the posterior",
        "Effective sample size",
        "Settings",
    ):
        assert re.search(rf'<h2 id="section-\d+">{title}</h2>', report), title
    for row in (
        *METHODS,
        "pass@k",
        "maj@k",
        "fitted power law",
        "rpc, sum",
        "rpc, mean",
        "best-of-n, model",
        "prod: wrong among the accepted",
        "first-finish",
    ):
        assert f'<th scope="row">{row}</th>' in report, row
    assert re.search(r"fitted power law exp\(-\d\.\d+ k\^-\d\.\d+\), root mean squared misfit 0\.\d+", report)
    comparison = pages["comparison"]
    assert "8 problems and 2 seeds are in both runs; left out: 4 of one, 4 of two &amp; co." in comparison
    assert '<th scope="row">temperature</th><td>1.0</td><td>0.7</td>' in comparison
    assert '<th scope="row">smc, difference</th>' in comparison and '<th scope="row">multi-temperature</th>' in comparison


def luminance(colour: str) -> float:
    """Of WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_are_readable() -> None:
    """WCAG AA: 4.5 for text, 3 for lines."""
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", _STYLE)]
    assert len(themes) == 2
    for theme in themes:
        assert min(contrast(theme[name], theme["page"]) for name in ("ink", "soft", "link")) >= 4.5
        assert min(contrast(theme["ink"], theme["mark"]), contrast(theme["soft"], theme["mark"])) >= 4.5
        assert min(contrast(colour, theme["page"]) for colour in COLOURS) >= 3


def test_figures_take_the_colour_of_the_page_and_escape_words(tmp_path: Path) -> None:
    drawn, axes = figure()
    axes.plot([1, 2], [1, 2], label="<b>")
    axes.legend()
    svg = inline(drawn, "mine", "<script>", 'a "description" & more')
    assert "#000000" not in svg and "currentColor" in svg and "<script" not in svg and "<b>" not in svg
    assert svg == inline(drawn, "mine", "<script>", 'a "description" & more')
    ET.fromstring(svg)
