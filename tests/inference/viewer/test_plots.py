"""Figures show the numbers of the posterior."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch

from ppl_llm import SMC, BeamSearch, ParticleGibbs
from ppl_llm.inference.viewer.canvas import COLOURS, figure
from ppl_llm.inference.viewer.genealogy import Genealogy
from ppl_llm.inference.viewer.plots import _DEAD, _paint
from ppl_llm.inference.viewer.populations import one
from tests.inference.viewer.models import run, solutions, three_problems, walk, writer


def of(posterior: Any, plate: Any = None, **kwargs: Any) -> Genealogy:
    return Genealogy.of(one(posterior, plate, "a genealogy"), **kwargs).trimmed()


def test_lines_of_descent() -> None:
    found, drawn = of(solutions()), solutions().plot_genealogy()
    top, ess, evidence = drawn.axes
    assert len(top.collections[0].get_segments()) + len(top.collections[1].get_segments()) == 16 * found.num_columns
    ends = {(round(line[0][0]), round(line[0][1]), round(line[-1][1])) for each in top.collections[:2] for line in each.get_segments()}
    for c, parents in enumerate(found.parents.tolist()):
        for particle, parent in enumerate(parents):
            assert (c + 1, int(found.rows[c, parent]), int(found.rows[c + 1, particle])) in ends
    assert [bar.get_height() for bar in ess.patches] == pytest.approx(solutions().ess[: found.num_columns].tolist())
    assert evidence.lines[0].get_ydata()[-1] == pytest.approx(float(solutions().log_evidence))
    assert drawn._repr_png_().startswith(b"\x89PNG")


def test_colours_lead_to_answers() -> None:
    found = of(solutions())
    colours, last, legend = _paint(found, None)
    assert [[colour == _DEAD for colour in column] for column in colours] == (~found.alive).tolist()
    assert found.answers is not None
    by_answer = {answer: {colour for given, colour in zip(found.answers, last, strict=True) if given == answer} for answer in found.answers}
    assert all(len(each) == 1 for each in by_answer.values()) and len({next(iter(each)) for each in by_answer.values()}) == len(by_answer)
    # The last column's particles have the colour of their particles.
    for i, (c, particle) in enumerate(zip(found.column.tolist(), found.particle.tolist(), strict=True)):
        if int((found.particle == particle).sum()) == 1:
            assert colours[c][particle] == last[i]
    assert legend[0][1] == COLOURS[0] and legend[0][0].endswith(f"{max(solutions().answers().probs.values()):.2f}")
    pooled = _paint(found, lambda a, b: True)
    assert len(set(pooled[1])) <= 2


def test_answers() -> None:
    (axes,) = solutions().plot_answers().axes
    probs = solutions().answers().probs
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(probs.values()))
    assert axes.get_yticklabels()[0].get_text() == str(next(iter(probs)))
    (axes,) = solutions().plot_answers(top=1).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([max(probs.values()), 1 - max(probs.values())])
    (axes,) = three_problems().plot_answers(2).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(three_problems().answers()[2].probs.values()))
    (axes,) = run(SMC(walk(), 8)).plot_answers(answer=lambda z: bool(z > 0)).axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(1)
    with pytest.raises(TypeError, match="answers"):
        run(SMC(walk(), 8)).plot_answers()
    with pytest.raises(ValueError, match="top"):
        solutions().plot_answers(top=0)


def test_strips_of_several_populations() -> None:
    islands = run(SMC(walk(), 8, islands=3))
    for drawn, values in ((islands.plot_ess(), "ess"), (islands.plot_evidence(), None)):
        (axes,) = drawn.axes
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["island 0", "island 1", "island 2"]
        if values:
            lines = [line.get_ydata() for line in axes.lines if line.get_marker() in ("", "None")]
            np.testing.assert_allclose(lines, [island.ess.numpy() for island in islands.islands])
    (axes,) = three_problems().plot_evidence().axes
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx(three_problems().log_evidence.tolist())
    with pytest.raises(ValueError, match="11 lines are too many"):
        run(SMC(walk(2, plates=11), 3, max_plate_nesting=1)).plot_ess()
    with pytest.raises(ValueError, match="beam search gives no evidence"):
        run(BeamSearch(writer(), 2, 2), "g").plot_evidence()


def test_given_axes() -> None:
    for method in ("plot_genealogy", "plot_answers", "plot_ess", "plot_evidence"):
        drawn, axes = figure()
        assert getattr(solutions(), method)(ax=axes) is drawn and drawn.axes == [axes]


def test_what_has_no_single_genealogy() -> None:
    with pytest.raises(ValueError, match=r"pass e.g. plate=0"):
        three_problems().plot_genealogy()
    chain = run(ParticleGibbs(walk(3), 4), 2)
    with pytest.raises(ValueError, match=r"posterior.iterations\[0\]"):
        chain.plot_genealogy()
    assert chain.iterations[-1].plot_genealogy().axes
    drawn = three_problems().plot_genealogy(1)
    heights = [bar.get_height() for bar in drawn.axes[1].patches]
    torch.testing.assert_close(torch.tensor(heights).double(), three_problems().ess[: len(heights), 1].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        (lambda posterior: posterior.plot_genealogy(), "matplotlib", "plots"),
        (lambda posterior: posterior.to_dataframe(), "pandas", "dataframe"),
        (lambda posterior: posterior.to_arviz(), "arviz", "arviz"),
    ],
)
def test_missing_packages(call: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"pip install 'ppl-llm\[{extra}\]'"):
        call(solutions())
