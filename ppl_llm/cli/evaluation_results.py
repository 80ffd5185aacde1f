"""The commands that read what ``evaluate`` recorded: ``report``, ``recommend``, ``calibrate`` and ``fit-reward``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .errors import reported
from .loading import DTYPE


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that evaluate wrote.")],
    other: Annotated[Path | None, typer.Argument(help="Another one, to compare the first with.", show_default=False)] = None,
    failures: Annotated[
        bool, typer.Option("--failures", help="List solutions without an answer, and wrong ones, by their last lines.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
) -> None:
    """Tables on the terminal, and figures in one HTML file that opens without a network.

    Of two runs: what differs, on the problems and seeds that both have.
    """
    with reported(verbose):
        from ..evaluation.comparison import Comparison
        from ..evaluation.report import tables, write
        from ..evaluation.results import Results

        if failures:
            from ..evaluation.failures import failures as listed

            if other is not None:
                raise ValueError("--failures goes with one run")
            return _print(listed(Results.read(folder)))
        try:
            if other is None:
                results = Results.read(folder)
                path, found = write(folder, results), tables(results)
            else:
                comparison = Comparison.read(folder, other)
                path, found = comparison.write(folder), comparison.tables()
        except ImportError as error:
            raise ValueError(str(error)) from error
        _print(found)
        typer.echo(f"figures and tables: {path}")


def recommend(
    folders: Annotated[list[Path], typer.Argument(help="Folders that evaluate wrote, for instance one per preset.")],
    tokens: Annotated[float, typer.Option(help="Tokens sampled per problem that you can afford.")],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
) -> None:
    """The most accurate method and budget that fit into a number of tokens, by how hard a problem looks.

    How hard is read off the agreement of independent samples, not off gold answers.
    """
    with reported(verbose):
        from ..evaluation.recommend import recommend as choose
        from ..evaluation.results import Results
        from ..evaluation.tables import as_text

        rows = [["samples that agree", "problems", "run", "method", "budget", "tokens", "accuracy"]]
        for c in choose({folder.name: Results.read(folder) for folder in folders}, tokens):
            between = f"{c.agreement[0]:.2f} to {c.agreement[1]:.2f}"
            rows.append([between, str(c.num_problems), c.run, c.method, str(c.budget), f"{c.tokens:.0f}", str(c.accuracy)])
        typer.echo(as_text(rows))


def calibrate(
    folder: Annotated[Path, typer.Argument(help="A folder that evaluate wrote, with the method importance.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; by default into the directory of the reward model.", show_default=False)
    ] = None,
    labels: Annotated[str, typer.Option(help="gold answers, or agreement of the samples where there are none.")] = "gold",
    prm: Annotated[
        str | None, typer.Option(help="Where the reward model is now; by default where the run found it.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
) -> None:
    """Fit the reward model's log-odds to right and wrong solutions, and show how well calibrated they are before and after."""
    with reported(verbose):
        from ..evaluation.calibrate import calibrate as fit
        from ..evaluation.calibrate import saved
        from ..evaluation.results import Results
        from ..reward.calibration import CALIBRATION_FILE

        results = Results.read(folder)
        found = fit(results, labels)
        kept = saved(found, results, folder.name, labels, prm)
        if out is None and not Path(kept.prm).expanduser().is_dir():
            raise ValueError(f"the reward model {kept.prm!r} is no directory of yours; say where to write its calibration with --out")
        path = out if out is not None else Path(kept.prm).expanduser() / CALIBRATION_FILE
        kept.save(path)
        typer.echo(
            f"log-odds / {kept.calibration.temperature:.3f} {kept.calibration.bias:+.3f} for {kept.prm}, fitted on {found.num_solutions} "
            f"solutions; on {found.num_held_out} solutions to the other half of the problems the calibration error goes from "
            f"{found.error[0]:.3f} to {found.error[1]:.3f}, the Brier score from {found.brier[0]:.3f} to {found.brier[1]:.3f}, the AUROC "
            f"from {found.auroc[0]:.3f} to {found.auroc[1]:.3f}. Written to {path}; use it with --calibration {path}"
        )
        for title, bins in (("before", found.before), ("after", found.after)):
            line = ", ".join(f"{b.confidence:.2f}: {b.frequency:.2f} ({b.size})" for b in bins)
            typer.echo(f"stated probability: how often right (solutions), {title}: {line}")


def fit_reward(
    folder: Annotated[Path, typer.Argument(help="A folder that evaluate --keep-texts wrote.")],
    lm: Annotated[str, typer.Option(help="The language model of the run: demo, a directory, or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Where to write the head, in safetensors format.")],
    pooling: Annotated[
        str, typer.Option(help="What the head is shown of a step: the state at its end, or the mean over its tokens.")
    ] = "end",
    device: Annotated[str | None, typer.Option(help="Where the language model runs, e.g. cuda; by default the CPU.")] = None,
    dtype: Annotated[str | None, typer.Option(help=DTYPE)] = None,
    seed: Annotated[int, typer.Option(help="Of the split of the problems and of the training.")] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Warnings and tracebacks.")] = False,
) -> None:
    """Train a reward on the language model's own hidden states from right and wrong solutions; show how good it is on other problems."""
    from . import loading

    with loading.quiet(verbose), reported(verbose):
        from ..evaluation.results import Results
        from ..evaluation.trained_reward import check_model, solutions
        from ..evaluation.trained_reward import fit_reward as fit

        results = Results.read(folder)
        solutions(results)
        check_model(results, lm)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: there is no directory {str(out.absolute().parent)!r}")
        loading.check_device(device)
        prompts = {name: results.configuration.get(name) for name in ("system_prompt", "chat_template")}
        found = fit(results, loading.load_lm(lm, device, dtype, **prompts), pooling=pooling, seed=seed)
        found.reward.save(out, lm, {"run": folder.name, "seed": seed, **found.about})
        figures = found.figures
        typer.echo(
            f"trained on {found.trained} solutions to {found.trained_problems} problems. On {found.held_out} solutions to "
            f"{found.held_out_problems} other problems, {found.share:.0%} of them right: AUROC of the answer {figures.answer_auroc}, among "
            f"solutions of the same problem {figures.within_auroc}, of a step {figures.step_auroc}; calibration error {figures.error}, "
            f"Brier score {figures.brier}. Written to {out}; use it with --reward hidden:{out} --preset twisted"
        )


def print_tables(folder: Path) -> None:
    """Of a folder, on the terminal."""
    from ..evaluation.report import tables
    from ..evaluation.results import Results

    _print(tables(Results.read(folder)))


def _print(tables: Sequence[tuple[str, list[list[str]]]]) -> None:
    from ..evaluation.tables import as_text

    for title, rows in tables:
        typer.echo(f"\n{title}\n\n{as_text(rows)}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Examples:\n\nppl-llm report runs/first\n\nppl-llm report runs/first runs/second")(report)
    app.command(epilog="Example:\n\nppl-llm recommend runs/first --tokens 500")(recommend)
    app.command("fit-reward", epilog="Example:\n\nppl-llm fit-reward runs/texts --lm demo --out head.safetensors")(fit_reward)
    app.command(epilog="Example:\n\nppl-llm calibrate runs/first --out demo.json\n\nppl-llm solve ... --calibration demo.json")(calibrate)
