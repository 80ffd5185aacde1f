"""The model card, written from the figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .problems import LEVELS, example

__all__ = ["write_card"]

_CARD = r"""# Demo models

Three small networks that make the examples, tests and notebooks of this package run offline: a language model (`lm/`, name `"demo"`), a
process reward model (`prm/`, name `"demo"`) and a weaker one (`weak_prm/`, name `"demo-weak"`). All are Qwen2 architecture with hidden size
128, 4 layers (the PRM 6), float32 weights; the reward models have the layout and the input format of Qwen2.5-Math-PRM. {parameters}

## Task
A number goes through two (level 1) to seven (level 6) operations:

> {problem}

> {solution}

`ppl_llm.demo.check_steps` decides without a model whether a step is right: the ordinal, the operation and the operand are the problem's,
the left operand is what the step before states, and the arithmetic holds. An error does not make later steps wrong by itself. A hash of the
problem's text decides whether it is for training (90 %), validation (5 %) or held out (5 %).

## Figures
Measured on {problems} held-out problems, {samples} samples of the language model at temperature 1, with the weights as shipped.

{table}

ECE: expected calibration error of the probability that a step is right, 15 bins of equal width, before and after one temperature fitted on
validation samples and folded into `score.2`.

| | temperature | ECE before | ECE after |
|---|---|---|---|
{calibration}

## Training
`{command}`: seed {seed}, {steps} optimiser steps of the backbone, {minutes}.
1. A byte-level BPE tokenizer (digits one by one) on training problems.
2. A backbone on right solutions (loss on the solution only; levels 1 to 3 first, then all) and on unconnected right steps.
3. The language model is an early checkpoint of it (step {checkpoint}), so that it makes mistakes: the one whose pass@1 on validation
   problems comes nearest to a curve falling from 0.7 at level 1 to 0.04 at level 6.
4. The PRM is the last checkpoint, frozen, with two more layers on top. {find} steps teach it to mark the token where a step goes wrong,
   {gather} steps to judge a step at its `<extra_0>`. Data: {own} samples of the language model and half as many solutions spoilt at random
   (wrong digit, operation, operand or copied number), labelled by the checker.
5. The weak PRM is the last checkpoint without more layers, all of it trained for {weak} steps on the same data.
{remark}
## What they are not good for
They know nothing but these problems: other text, other wording, more steps or larger numbers give noise
(`ppl_llm.demo.looks_like_demo` tells). The reward models were trained on mistakes of this one language model and on artificial ones. Their
figures say nothing about real models.
"""


def _row(name: str, figures: Mapping[int, float], digits: int) -> str:
    return f"| {name} | " + " | ".join(f"{figures[level]:.{digits}f}" for level in LEVELS) + " |"


def write_card(figures: Mapping[str, Any], path: Path, command: str = "python -m ppl_llm.demo.train --out DIR", remark: str = "") -> None:
    """Write the card.

    :param str remark: what a reader has to know about this run.
    :param figures: what ``ppl_llm.demo.train`` measured.
    """
    run, lm = figures["run"], figures["lm"]
    names = {"prm": "PRM", "weak_prm": "weak PRM"}
    table = [
        "| level | " + " | ".join(map(str, LEVELS)) + " |",
        "|---" * (len(LEVELS) + 1) + "|",
        _row("pass@1 of the LM", lm["pass_at_1"], 3),
        _row("share of wrong steps", lm["step_error_rate"], 3),
        _row("pass@1 of the last checkpoint (not shipped)", figures["backbone"]["pass_at_1"], 3),
        *(_row(f"step AUROC of the {name}", figures[key]["auroc"], 3) for key, name in names.items()),
    ]
    calibration = [
        f"| {name} | {figures[key]['temperature']:.2f} | {figures[key]['ece_before']:.3f} | {figures[key]['ece_after']:.3f} |"
        for key, name in names.items()
    ]
    sizes = [f"{name} {figures[key]['parameters']:,}" for key, name in {"lm": "LM", **names}.items()]
    shown = example(2)
    path.write_text(
        _CARD.format(
            parameters="Parameters: " + ", ".join(sizes) + ".",
            problem=shown.text,
            solution="\n>\n> ".join(shown.steps),
            problems=lm["problems"],
            samples=lm["samples"],
            table="\n".join(table),
            calibration="\n".join(calibration),
            command=command,
            seed=run["seed"],
            steps=run["steps"],
            minutes=run["time"],
            checkpoint=lm["checkpoint"],
            find=run["find"],
            gather=run["gather"],
            weak=run["weak"],
            own=run["own"],
            remark=remark and f"\n{remark}\n",
        )
    )
