"""The page as a file: its data are the posterior's, its texts are data, it asks for nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import ppl_llm.inference.viewer.page as page_module
from ppl_llm import PIMH, SMC, BeamSearch, BestOfN, Importance, ParticleGibbs, SelfConsistency, SuffixMH, TemperedSMC
from ppl_llm.inference.viewer.page import page
from tests.inference.viewer.models import HOSTILE, run, solutions, three_problems, walk, writer


class Reader(HTMLParser):
    """Tags with their attributes and what stands in scripts, as an HTML parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles[-1] += data
        else:
            self.text += data


def check_safe(text: str) -> dict[str, Any]:
    """One script of data and one of ours, in a policy that lets nothing else run or load; the data."""
    read = Reader(text)
    names = [tag for tag, _ in read.tags]
    assert names.count("script") == 2 and not {"img", "iframe", "object", "embed", "link", "base", "form"} & set(names), names
    assert not [(tag, name) for tag, attributes in read.tags for name in attributes if name.startswith("on") or name in ("src", "href")]
    policy = next(a["content"] for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for content in (read.styles[0], read.scripts[1]):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    data: dict[str, Any] = json.loads(read.scripts[0])
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text), "a reference to outside"
    return data


def check_population(shown: dict[str, Any], posterior: Any, plate: tuple[int, ...] = ()) -> None:
    """Edges equal ancestors, weights sum to one, and all particles are there once."""
    ancestors = posterior.ancestors[(slice(None), slice(None), *plate)].tolist()
    for c, column in enumerate(shown["columns"]):
        assert column["parent"] == (ancestors[c - 1] if c else None)
        assert sum(column["weight"]) == pytest.approx(1, abs=1e-3)
        assert sorted(column["row"]) == list(range(posterior.num_particles))
        assert column["ess"] == pytest.approx(float(posterior.ess[(c, *plate)]), rel=1e-4)
        assert column["resampled"] == bool(posterior.resampled[(c, *plate)])
        assert len(column["text"]) == len(column["score"]) == len(column["factor"]) == len(column["idle"]) == posterior.num_particles
    last = shown["last"]
    assert sum(last["weight"]) == pytest.approx(1, abs=1e-3)
    assert last["weight"] == pytest.approx(posterior.weights[(slice(None), *plate)].tolist(), rel=1e-4)
    if len(shown["columns"]) == len(ancestors):
        assert last["particle"] == ancestors[-1]
    names = [name for name, _ in shown["answers"]]
    given = [posterior.particle((n, *plate)).answers() for n in range(posterior.num_particles)]
    assert [names[i] for i in last["answer"]] == given
    assert sum(p for _, p in shown["answers"]) == pytest.approx(1, abs=1e-3)


def test_solutions() -> None:
    data = check_safe(page(solutions()))
    (shown,) = data["populations"]
    check_population(shown, solutions())
    assert shown["problem"] == "g" and shown["label"] == ""
    assert any(HOSTILE in text for text in shown["texts"])
    assert shown["evidence"] == pytest.approx(float(solutions().log_evidence), rel=1e-4)


def test_problems_of_a_plate() -> None:
    data = check_safe(page(three_problems()))
    assert [shown["label"] for shown in data["populations"]] == ["problem 0", "problem 1", "problem 2"]
    assert [shown["problem"] for shown in data["populations"]] == ["g", "gg", "g;"]
    for plate, shown in enumerate(data["populations"]):
        check_population(shown, three_problems(), (plate,))


def test_rejects_other_edges_and_weights() -> None:
    def broken(change: Any) -> None:
        (shown,) = check_safe(page(solutions()))["populations"]
        change(shown)
        with pytest.raises(AssertionError):
            check_population(shown, solutions())

    resampled = int(solutions().resampled.nonzero()[0])
    broken(lambda shown: shown["columns"][resampled + 1].update(parent=list(range(16))))
    broken(lambda shown: shown["columns"][2]["parent"].reverse())
    broken(lambda shown: shown["columns"][3].update(weight=[1.0] * 16))
    broken(lambda shown: shown["last"]["weight"].reverse())
    broken(lambda shown: shown["last"]["answer"].reverse())


def test_title_is_text() -> None:
    assert check_safe(page(solutions(), title=HOSTILE))["title"] == HOSTILE
    assert check_safe(page(solutions(), describe=lambda name, value: HOSTILE, answer=lambda particle: HOSTILE))["populations"][0][
        "answers"
    ] == [[HOSTILE, 1.0]]


@pytest.mark.parametrize("where", ["data", "title"])
def test_rejects_text_that_is_not_escaped(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "data":
        monkeypatch.setattr(page_module, "embedded", json.dumps)
    else:
        monkeypatch.setattr(page_module.html, "escape", lambda text: text)
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        check_safe(page(solutions(), title=HOSTILE))


def test_rejects_a_script_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    asset = page_module._asset
    monkeypatch.setattr(page_module, "_asset", lambda name: asset(name) + ("fetch('https://x')" if name == "panel.js" else ""))
    with pytest.raises(AssertionError, match="outside"):
        check_safe(page(solutions()))


POSTERIORS = {
    "islands": lambda: run(SMC(writer(), 6, islands=2), "g"),
    "particle gibbs": lambda: run(ParticleGibbs(writer(), 4), 3, "g"),
    "side by side": lambda: run(ParticleGibbs(writer(), 4, num_references=2), 2, "g"),
    "pimh": lambda: run(PIMH(writer(), 4), 6, "g"),
    "suffix": lambda: run(SuffixMH(walk()), 5),
    "tempered": lambda: run(TemperedSMC(walk(), 6)),
    "importance": lambda: run(Importance(writer(), 6), "g"),
    "beam": lambda: run(BeamSearch(writer(), 3, 2), "g"),
    "best": lambda: run(BestOfN(writer(), 4), "g"),
    "vote": lambda: run(SelfConsistency(writer(), 4), "g"),
    "stopped": lambda: next(SMC(writer(), 4).iterate("g")),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_every_algorithm(name: str) -> None:
    posterior = POSTERIORS[name]()
    data = check_safe(page(posterior))
    shown = data["populations"]
    assert len(shown) == {"islands": 2, "particle gibbs": 3, "side by side": 4}.get(name, len(shown))
    assert all((each["evidence"] is not None) == (name in ("islands", "tempered", "importance", "stopped")) for each in shown)
    assert data["unit"] == ("stage" if name == "tempered" else "step")
    assert data["event"] == ("selected" if name in ("beam", "best", "vote") else "resampled")
    assert ("stopped before" in data["note"]) == (name == "stopped")
    if name == "pimh":
        assert len(shown) == len(posterior.parts) < len(posterior.iterations) and "shown once" in data["note"]


def test_too_much_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_POPULATIONS", 2)
    data = check_safe(page(three_problems()))
    assert [shown["label"] for shown in data["populations"]] == ["problem 0", "problem 1"] and data[
        "note"
    ] == "2 of 3 populations are shown."
    chain = check_safe(page(POSTERIORS["particle gibbs"]()))
    assert [shown["label"] for shown in chain["populations"]] == ["iteration 1", "iteration 2"]
    monkeypatch.setattr(page_module, "MOST_NODES", 20)
    with pytest.raises(ValueError, match=r"16 particles x \d+ steps are too many .*to_dataframe"):
        page(solutions())


def test_to_html(tmp_path: Path) -> None:
    path = solutions().to_html(tmp_path / "run.html", title="mine", equivalent=lambda a, b: True)
    data = check_safe(path.read_text(encoding="utf-8"))
    assert data["title"] == "mine" and len([name for name, _ in data["populations"][0]["answers"] if name is not None]) == 1
    with pytest.raises(OSError):
        solutions().to_html(tmp_path / "none" / "run.html")


def test_in_a_notebook() -> None:
    framed = Reader(solutions().viewer(height=300)._repr_html_())
    ((tag, attributes),) = framed.tags
    assert tag == "iframe" and attributes["sandbox"] == "allow-scripts" and attributes["srcdoc"] == page(solutions())
    for posterior in (solutions(), three_problems(), POSTERIORS["islands"](), run(SMC(walk(), 4))):
        summary = Reader(posterior._repr_html_())
        assert not {"script", "style", "img", "iframe", "b "} & {tag for tag, _ in summary.tags}
        assert not [name for _, attributes in summary.tags for name in attributes if name not in ("style",)]
        assert repr(posterior) in summary.text and len(posterior._repr_html_()) < 6000
    probs = solutions().answers().probs
    assert all(str(answer) in Reader(solutions()._repr_html_()).text for answer in list(probs)[:5] if answer is not None)
    assert "problem 2" in Reader(three_problems()._repr_html_()).text


def test_why_this_answer() -> None:
    """One explanation for each problem, in the words of ``explain()``; islands share theirs, and a model without answers has none."""
    data = check_safe(page(three_problems()))
    assert [data["explanations"][each["explained"]] for each in data["populations"]] == [e.lines for e in three_problems().explain()]
    islands = check_safe(page(run(SMC(writer(), 6, islands=2), "g")))
    assert len(islands["explanations"]) == 1 and {each["explained"] for each in islands["populations"]} == {""}
    assert check_safe(page(run(Importance(walk(), 6))))["explanations"] == {}
    hostile = check_safe(page(solutions(), describe=lambda name, value: HOSTILE, answer=lambda particle: HOSTILE))
    assert any("</script>" in line for line in hostile["explanations"][""])
