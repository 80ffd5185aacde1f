"""Posteriors as pandas tables (extra ``dataframe``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..posterior.equivalence_classes import Equivalent, representatives
from .genealogy import Answer, Describe, Genealogy, answers_of
from .populations import Population, populations
from .viewable import Viewable


def particles(posterior: Viewable, answer: Answer | None, equivalent: Equivalent | None) -> Any:
    """A row per particle; see :meth:`~ppl_llm.inference.ParticlePosterior.to_dataframe`."""
    return _table([_particles(each, answer, equivalent) for each in populations(posterior)])


def genealogy(posterior: Viewable, describe: Describe | None, answer: Answer | None, equivalent: Equivalent | None) -> Any:
    """A row per particle and step."""
    return _table([_genealogy(each, describe) for each in populations(posterior)])


def _table(parts: list[dict[str, Any]]) -> Any:
    """
    :raises ImportError: without pandas, naming the extra.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_dataframe needs pandas; install it with: pip install 'ppl-llm[dataframe]'") from error
    return pandas.concat([pandas.DataFrame(part) for part in parts], ignore_index=True)


def _particles(population: Population, answer: Answer | None, equivalent: Equivalent | None) -> dict[str, Any]:
    posterior, n = population.posterior, population.posterior.num_particles

    def numbers(tensor: Tensor) -> Any:
        return population.of_particles(tensor).cpu().numpy()

    columns: dict[str, Any] = {
        **{name: [number] * n for name, number in population.place.items()},
        "particle": list(range(n)),
        "weight": numbers(posterior.particles.weights.normalized),
        "log_weight": numbers(posterior.particles.weights.log_weights),
    }
    answers = answers_of(population, answer)
    if answers is not None:
        stands_for = {each: each for each in answers} if equivalent is None else representatives(answers, equivalent)
        columns["answer"] = [stands_for[each] for each in answers]
    if posterior.particles.lengths is not None:
        columns["length"] = numbers(posterior.particles.lengths)
    if posterior.particles.log_likelihood is not None:
        columns["log_likelihood"] = numbers(posterior.particles.log_likelihood)
    found = dict(posterior.sites)
    found |= {f"log_prob[{name}]": value for name, value in posterior.site_log_probs.items()}
    found |= {f"score[{name}]": value for name, value in posterior.site_scores.items()}
    for name, value in found.items():
        here = population.value(value)
        if here.numel() == n:
            columns[name] = here.reshape(n).cpu().numpy()
    return columns


def _genealogy(population: Population, describe: Describe | None) -> dict[str, Any]:
    found = Genealogy.of(population, describe)
    c, n = found.num_columns, found.num_particles
    parents = torch.cat([torch.full((1, n), -1), found.parents])
    columns: dict[str, Any] = {name: [number] * (c * n) for name, number in population.place.items()}
    wide = {
        "step": torch.arange(c)[:, None].expand(c, n),
        "particle": torch.arange(n).expand(c, n),
        "parent": parents,
        "weight": found.normalized,
        "log_weight": found.log_weights,
        "log_factor": found.log_factors,
        "score": found.scores,
        "done": found.done,
        "offspring": found.offspring,
        "ess": found.ess[:, None].expand(c, n),
        "resampled": found.resampled[:, None].expand(c, n),
    }
    if found.log_evidence is not None:
        wide["log_evidence"] = found.log_evidence[:, None].expand(c, n)
    columns |= {name: tensor.flatten().numpy() for name, tensor in wide.items()}
    return columns | {"text": [text for column in found.texts for text in column]}
