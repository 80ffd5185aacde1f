"""Steps under a constraint: each token is drawn from the model restricted to what may follow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...constraints.base import Constraint, ConstraintStates, Vocabulary, unpacked
from ...context import PAD, Context
from ..base import StepOptions
from .decoder import DecoderSource, StepTask
from .rejection import adaptive_rejection, inverse_cdf_draw, log_or_dead
from .sampling import inverse_cdf_of_masses, rows_in_cache, tempered, warp

_FAINT = 1e-20
"""Masses relative to the most probable token below which float32 loses digits."""


class RestrictedDraw(NamedTuple):
    """Tokens of the restricted model.

    :ivar Tensor tokens: ``[A]``, void where nothing may follow.
    :ivar Tensor log_probs: ``[A]`` float64, of the restricted model; with an estimated mass, what the token's log-probability under the
        model is above it.
    :ivar Tensor log_masses: ``[A]`` float64, of the tokens that may follow under the model, -inf where there are none.
    """

    tokens: Tensor
    log_probs: Tensor
    log_masses: Tensor


def allowed_masks(states: ConstraintStates, vocabulary: Vocabulary) -> Tensor:
    """Bitmasks ``[A, W]`` of the tokens that may follow, the end of the text among them where the text may end."""
    ends = torch.where(states.may_end()[:, None], vocabulary.eos_mask, 0)
    return (states.masks() & ~vocabulary.eos_mask) | ends


def exact_masks(states: ConstraintStates, vocabulary: Vocabulary) -> Tensor:
    """``[A, V]`` bool: as :func:`allowed_masks`, with every token asked for where the constraint has to be asked."""
    allowed = unpacked(allowed_masks(states, vocabulary), vocabulary.size)
    if states.asks:
        allowed = allowed.clone()
        ordinary = allowed.clone()
        ordinary[:, list(vocabulary.eos_ids)] = False
        for row, token in ordinary.nonzero().tolist():
            allowed[row, token] = states.accepts(row, token)
    return allowed


def restricted_draw(logits: Tensor, allowed: Tensor, u: Tensor) -> RestrictedDraw:
    """Tokens by inverse CDF among those that may follow.

    :param Tensor logits: ``[A, V]``, warped.
    :param Tensor allowed: ``[A, V]`` bool.
    :param Tensor u: ``[A]`` in [0, 1).
    """
    top = logits.amax(-1, keepdim=True)
    mass = (logits - top).exp_()
    everything = mass.sum(-1).double().log() + top[:, 0].double()
    mass.mul_(allowed)
    faint = mass.sum(-1) < _FAINT
    dead = faint
    if bool(faint.any()):
        # Far below the most probable token, masses are rounded to zero: they are taken relative to the best that may follow.
        kept = logits[faint].masked_fill(~allowed[faint], -torch.inf)
        best = kept.amax(-1, keepdim=True)
        dead = faint.masked_scatter(faint, best[:, 0] == -torch.inf)
        mass[faint] = torch.where(best > -torch.inf, (kept - best).exp(), 1.0)
    tokens, log_probs = inverse_cdf_of_masses(mass, u)
    log_probs = log_probs.double()
    log_masses = logits.gather(-1, tokens[:, None])[:, 0].double() - everything - log_probs
    return RestrictedDraw(tokens, log_probs, torch.where(dead, -torch.inf, log_masses))


def asked_draw(logits: Tensor, allowed: Tensor, u: Tensor, states: ConstraintStates, eos_ids: tuple[int, ...]) -> RestrictedDraw:
    """As :func:`restricted_draw`, where the constraint is asked of each token that is drawn, and the masses are unbiased estimates."""
    kept = logits.masked_fill(~allowed, -torch.inf)
    top, everything = kept.amax(-1, keepdim=True), logits.logsumexp(-1).double()
    within = torch.where(top[:, 0] > -torch.inf, kept.logsumexp(-1).double() - everything, -torch.inf)
    masses = torch.where(top > -torch.inf, (kept - top).exp(), 0.0).double()
    tokens, estimates = [], []
    for row, point in enumerate(u.tolist()):

        def accepts(token: int, row: int = row) -> bool:
            return token in eos_ids or states.accepts(row, token)

        token, estimate = adaptive_rejection(masses[row], accepts, inverse_cdf_draw(point))
        tokens.append(token)
        estimates.append(log_or_dead(estimate))
    drawn = torch.tensor(tokens, device=logits.device)
    log_masses = within + torch.tensor(estimates, dtype=torch.float64, device=logits.device)
    log_p = logits.gather(-1, drawn[:, None])[:, 0].double() - everything
    return RestrictedDraw(drawn, log_p - log_masses, log_masses)


def generated(context: Context, sequences: Tensor) -> Tensor:
    """What sequences ``[A]``, flat indices, have written after their prompts: ``[A, L]``, padded with ``PAD``."""
    tokens = context.tokens.reshape(-1, context.tokens.shape[-1])[sequences]
    begin, lengths = context.prompt_lengths.flatten()[sequences], context.lengths.flatten()[sequences]
    width = int((lengths - begin).max()) if len(sequences) else 0
    column = torch.arange(width, device=tokens.device)
    place = begin[:, None] + column
    return torch.where(place < lengths[:, None], tokens.gather(-1, place.clamp(max=tokens.shape[-1] - 1)), PAD)


class ConstrainedSampler:
    """Samples steps token by token under a constraint, on any device: the host reads every token, as grammars live there.

    There is no such loop without the host, and none that is captured: the mask of the next token follows from the token before on the
    host, so that a device waits once a token, however few of its operations are launched one by one.

    :param DecoderSource source: gives a decoder for each step.
    :param Vocabulary vocabulary: of the language model.
    """

    def __init__(self, source: DecoderSource, vocabulary: Vocabulary) -> None:
        self._source, self._vocabulary = source, vocabulary

    def sample(self, task: StepTask, constraint: Constraint, log_masses: Tensor) -> None:
        """Fill in tokens, log-probabilities of the restricted model and the log of the masses' product ``[N]``.

        A sequence after which nothing may follow ends there, with mass zero.
        """
        decoder = self._source.decoder(task.context, task.active)
        with decoder.reserved():
            sequences = decoder.sequences
            states = self._states(task, constraint, sequences)
            watch = task.watch[sequences]
            last: Tensor | None = None
            for k in range(task.options.max_tokens):
                if last is not None:
                    decoder.advance(last, torch.ones_like(last, dtype=torch.bool))
                own = None if task.temperatures is None else task.temperatures[sequences]
                draw = self._draw(tempered(decoder.logits, own), task.options, states, task.uniforms[sequences, k])
                lives = draw.log_masses > -torch.inf
                task.tokens[sequences, k] = torch.where(lives, draw.tokens, PAD)
                task.log_probs[sequences] += torch.where(lives, draw.log_probs, 0.0).to(task.log_probs.dtype)
                log_masses[sequences] += draw.log_masses
                token = torch.where(lives, draw.tokens, 0)
                watch = task.automaton.step(watch, token)
                text_ends = torch.isin(token, task.eos_ids)
                alive = lives & ~text_ends & (watch != task.automaton.accept) & (task.room[sequences] > k + 1)
                num_alive = int(alive.sum())
                if k + 1 == task.options.max_tokens or not num_alive:
                    break
                states.advance(token, alive)
                if num_alive == len(alive):
                    last = token
                    continue
                row_of = torch.zeros(task.uniforms.shape[0], dtype=torch.long, device=sequences.device)
                row_of[sequences] = torch.arange(len(sequences), device=sequences.device)
                decoder.keep(alive)
                sequences = decoder.sequences
                rows = row_of[sequences]
                states, watch, last = states.select(rows), watch[rows], token[rows]

    def _states(self, task: StepTask, constraint: Constraint, sequences: Tensor) -> ConstraintStates:
        """Read from the tokens, so that whatever has moved sequences has moved their states."""
        return constraint.states(self._vocabulary, generated(task.context, sequences))

    def _draw(self, logits: Tensor, options: StepOptions, states: ConstraintStates, u: Tensor) -> RestrictedDraw:
        logits, masks, size = warp(logits, options), allowed_masks(states, self._vocabulary), logits.shape[-1]
        if states.asks:
            return asked_draw(logits, unpacked(masks, size), u, states, self._vocabulary.eos_ids)
        rows = rows_in_cache(logits)
        parts = zip(logits.split(rows), masks.split(rows), u.split(rows), strict=True)
        draws = [restricted_draw(some, unpacked(mask, size), point) for some, mask, point in parts]
        return draws[0] if len(draws) == 1 else RestrictedDraw(*map(torch.cat, zip(*draws, strict=True)))
