"""The command ``demo``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ..reward.choice import RewardChoice
from ..threads import choose_threads
from . import loading
from .console import output_console
from .errors import INTERRUPTED, reported
from .loading import DTYPE
from .settings import Settings

_EXAMPLES = "Examples:\n\nppl-llm demo\n\nppl-llm demo --particles 32 --levels 6 --problems 12 --seed 7"


def demo(
    problems: Annotated[int, typer.Option(help="Problems, solved as one batch.")] = 24,
    particles: Annotated[int, typer.Option(help="Solutions of each problem, written side by side.")] = 16,
    levels: Annotated[str, typer.Option(help="Levels of difficulty, 1 to 6, separated by commas.")] = "4,5,6",
    seed: Annotated[int, typer.Option(help="Of the problems and of the runs.")] = 0,
    prm: Annotated[str, typer.Option(help="Process reward model: demo or demo-weak.")] = "demo",
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
) -> None:
    """Compare ways to answer: one solution, a majority vote, importance sampling and SMC, on problems that the models in this package were
    not trained on.

    One batch of a few problems under one seed shows what the methods do; it does not measure them. The output says whether a difference
    is within noise. Ctrl-C shows what is there.
    """
    from .comparison import Comparison, parse_levels, problems_of

    settings = Settings(reward=RewardChoice("prm", prm), options={"particles": particles}, seed=seed, dtype=dtype)
    with reported(verbose):
        settings.check()
        if problems < 1:
            raise ValueError(f"--problems must be an integer of at least 1, got {problems}")
        batch = problems_of(parse_levels(levels), problems, seed)
    with loading.quiet(verbose):
        comparison = Comparison(batch, particles, seed, Console(stderr=True))
        with reported(verbose):
            models = loading.load_lm(settings.lm, dtype=dtype), loading.load_prm(prm, dtype=dtype)
            choose_threads(models)
            complete = comparison.run(*models)
            if not comparison.rows:
                raise KeyboardInterrupt("before the first step was complete; there is nothing to show")
    comparison.print(output_console())
    if not complete:
        raise typer.Exit(INTERRUPTED)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=_EXAMPLES)(demo)
