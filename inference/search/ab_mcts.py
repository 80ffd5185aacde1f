"""Adaptive branching Monte Carlo tree search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..posterior.particle_posterior import ParticlePosterior
from ..util.checked import checked
from .prefix_tree import PrefixTree
from .score_posterior import ScorePosterior, Scores, score_posterior
from .simulation_search import SimulationSearch, ancestors, continued


@dataclass
class Subtrees:
    """Scores of nodes; all tensors are ``[M, *plates]``.

    :ivar Scores own: of each node itself; none of node 0.
    :ivar Scores all: of each node and all nodes below it.
    """

    own: Scores
    all: Scores


class ABMCTS(SimulationSearch):
    """Adaptive branching Monte Carlo tree search with node aggregation (AB-MCTS-A): Thompson sampling decides between wider and deeper.

    A simulation begins at the empty prefix. At each prefix it draws one mean score for a new child, from the posterior given the scores of
    the prefix's children, and one for going down, from the posterior given the scores of all that lies below these. Where the first is at
    least as great, it draws a new child here. Otherwise each child draws a mean score from the posterior given its own score and all
    those below it, and the simulation goes to the child with the greatest. Complete executions, and those of score 0, are no children to go
    to; where there are no others a new child is drawn.

    ``batch`` simulations make their draws independently of each other, and their children are drawn and scored in one run of the model, as
    for :class:`MCTS`. The answer is the complete execution with the best score; where there is none, the prefix that most simulations went
    through is completed. A search gives no evidence.

    This is the variant with conjugate posteriors of [1]. Its other variant, AB-MCTS-M, fits a mixed model by Markov chains at every prefix
    that every simulation passes, and is not here: it would cost more than the language model.

    :param model: as for :class:`SMC`.
    :param int simulations: children drawn for each problem.
    :param int batch: simulations whose children are drawn together; also the number of candidates in the result.
    :param posterior: ``normal`` (:class:`NormalScores`, normal inverse chi-squared), ``beta`` (:class:`BetaScores`, for scores in [0, 1]),
        or one of these with another prior.
    :param str value: the score of a node, as for :class:`MCTS`: ``prefix`` or ``rollout``.
    :param int max_plate_nesting: as for :class:`SMC`; each independent problem has a tree of its own.
    :param int max_tokens_total: draw nothing more once so many tokens have been sampled.
    :param callback: called after each batch with the :class:`SearchPosterior` of its children.
    :raises ValueError: for arguments out of range; from :meth:`run` for scores that the posterior is not for.

    References

    [1] *Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree Search*, Yuichi Inoue, Kou Misaki et al. (2025).
    """

    name: ClassVar[str] = "adaptive branching tree search"

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        simulations: int = 64,
        batch: int = 8,
        *,
        posterior: str | ScorePosterior = "normal",
        value: str = "prefix",
        max_plate_nesting: int = 0,
        max_tokens_total: int | None = None,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        shared = {"max_plate_nesting": max_plate_nesting, "max_tokens_total": max_tokens_total, "callback": callback}
        super().__init__(model, simulations, batch, value, **shared)  # type: ignore[arg-type]
        self.posterior = score_posterior(posterior)

    def begin(self, tree: PrefixTree) -> Subtrees:
        zeros = torch.zeros(tree.size, *tree.plates, dtype=torch.float64)
        return Subtrees(Scores(zeros, zeros, zeros), Scores(zeros, zeros, zeros))

    def select(self, tree: PrefixTree, known: Subtrees, number: int) -> Tensor:
        possible = continued(tree)[:, None]
        node = torch.zeros(number, *tree.plates, dtype=torch.long)
        walking = torch.ones_like(node, dtype=torch.bool)
        while True:
            children = tree.parent[:, None] == node
            children[0] = False
            below = possible & children
            walking = walking & below.any(0) & self.continues(known, node, children)
            if not bool(walking.any()):
                return node
            draws = self.draw(Scores(*(scores[:, None].expand_as(below) for scores in known.all)))
            node = torch.where(walking, torch.where(below, draws, -torch.inf).argmax(0), node)

    def continues(self, known: Subtrees, node: Tensor, children: Tensor) -> Tensor:
        """Whether simulations at ``node [K, *plates]`` go down rather than draw a new child.

        :param Tensor children: ``[M, K, *plates]``.
        """
        new = Scores(*(torch.where(children, scores[:, None], 0.0).sum(0) for scores in known.own))
        here, own = (Scores(*(scores.gather(0, node) for scores in group)) for group in (known.all, known.own))
        wider, deeper = self.draw(new), self.draw(here.minus(own).minus(new))
        return deeper > wider

    def draw(self, scores: Scores) -> Tensor:
        """A mean score of each group, from its posterior."""
        return self.posterior.draw(scores)

    def backup(self, tree: PrefixTree, known: Subtrees, nodes: Tensor, values: Tensor) -> None:
        self.posterior.check(values)
        new = Scores(torch.ones_like(values), values, values**2)
        nodes = nodes.view(-1, *(1,) * len(tree.plates)).expand_as(values)
        missing = tree.size - len(known.own.number)

        def told(scores: Scores) -> Scores:
            grown = (torch.cat([old, old.new_zeros(missing, *tree.plates)]) for old in scores)
            return Scores(*(old.scatter(0, nodes, value) for old, value in zip(grown, new, strict=True)))

        known.own, known.all = told(known.own), told(known.all)
        reached = torch.ones_like(values, dtype=torch.bool)
        for above in ancestors(tree, nodes):
            heard = (torch.where(reached, value, 0.0) for value in new)
            known.all = Scores(*(old.scatter_add(0, above, value) for old, value in zip(known.all, heard, strict=True)))
            reached = reached & (above > 0)

    def visits(self, known: Subtrees) -> Tensor:
        return known.all.number
