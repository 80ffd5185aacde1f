"""The token loop: sample, watch for the end of the step, drop finished sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import torch
from torch import Tensor

from ...context import PAD
from ...inference.concurrent.program import current_program
from .decoder import Decoder, DecodeRequest, DecodeRequests, DecoderSource, Draw, StepTask
from .joint_decoding import JointDecoding, StepRequest
from .sampling import sample_each
from .watching import tell_alive

_KEEP_OCCUPANCY = 0.9
"""Rows are compacted once fewer than this share of them is alive (measured best of 0.999, 0.9, 0.75, 0.5)."""

TokenSampler = Callable[[Sequence[DecodeRequest]], list[Draw]]
"""Answers decode requests: runs the forward passes and draws from their logits."""


class StepSampler:
    """Samples steps token by token.

    :param DecoderSource source: gives a decoder for each step.
    :param TokenSampler sample_tokens: answers the decode requests of one step, or of several programs together.
    :param bool batches_programs: whether the steps of several programs are sampled in one batch.
    """

    def __init__(self, source: DecoderSource, sample_tokens: TokenSampler = sample_each, batches_programs: bool = False) -> None:
        self._source, self._sample_tokens, self.batches_programs = source, sample_tokens, batches_programs
        self._joint_decoding = JointDecoding(sample_tokens)

    def sample(self, task: StepTask) -> None:
        """Fill in the tokens and log-probabilities of a step; together with those of other programs, where there are any."""
        program = current_program() if self.batches_programs else None
        if program is not None:
            with closing(self._started_later(task)) as requests:
                return program.wait(StepRequest(self._joint_decoding, requests, len(task.active)))
        requests = _token_loop(self._source.decoder(task.context, task.active), task)
        request = next(requests)
        with suppress(StopIteration):
            while True:
                [draw] = self._sample_tokens([request])
                request = requests.send(draw)

    def _started_later(self, task: StepTask) -> DecodeRequests:
        """Prompts are run when the first request is due: a program that waits for its turn holds no memory.

        The last tokens of the step before are run with the first token of this one, in the pass that all programs share.
        """
        yield from _token_loop(self._source.decoder(task.context, task.active, wait=True), task)


def _token_loop(decoder: Decoder, task: StepTask) -> DecodeRequests:
    _, _, options, automaton, watch, eos_ids, room, uniforms, tokens, log_probs, figures, values, temperatures = task
    device = uniforms.device
    with decoder.reserved():
        # Everything lies in the order of the decoder's rows from one drop of sequences to the next: no indexing for each token.
        sequences = decoder.sequences
        own_uniforms, own_room = uniforms[sequences], room[sequences]
        own_temperatures = None if temperatures is None else temperatures[sequences]
        state = watch[sequences]
        alive = torch.ones(len(sequences), dtype=torch.bool, device=device)
        total = log_probs.new_zeros(len(sequences))
        taken: list[Tensor] = []
        found: list[Tensor] = []  # figures of the same tokens
        begin = 0  # the token place that the first of those taken belongs to
        check_every = 1 if device.type == "cpu" else 8  # reading the flags waits for the device
        # What is known without reading them: where all are alive nothing is to be masked, and before the first runs out of room none does.
        all_alive, least_room = True, int(own_room.min()) if check_every == 1 else 0
        last = decoder.pending
        for k in range(options.max_tokens):
            token, log_prob, each = yield DecodeRequest(decoder, last, alive, own_uniforms[:, k], options, figures, own_temperatures)
            taken.append(token if all_alive else torch.where(alive, token, PAD))
            total += log_prob if all_alive else torch.where(alive, log_prob, 0.0)
            if figures:
                found.append(torch.where(alive[:, None], each, 0.0))
            state = automaton.step(state, token)
            unfinished = (state != automaton.accept) & torch.isin(token, eos_ids, invert=True)
            if k + 1 >= least_room:
                unfinished &= own_room > k + 1
            alive = unfinished if all_alive else alive & unfinished
            all_alive = False
            if k % check_every == 0:
                num_alive = int(alive.sum())
                all_alive = num_alive == len(alive)
                tell_alive(num_alive)
                if num_alive == 0:
                    break
                if num_alive <= _KEEP_OCCUPANCY * len(alive) and k + 1 < options.max_tokens:
                    tokens[sequences, begin : k + 1], log_probs[sequences] = torch.stack(taken, 1), total
                    if figures:
                        values[sequences, begin : k + 1] = torch.stack(found, 1)
                    row_of = torch.zeros(uniforms.shape[0], dtype=torch.long, device=device)
                    row_of[sequences] = torch.arange(len(sequences), device=device)
                    decoder.keep(alive)
                    sequences = decoder.sequences
                    rows = row_of[sequences]
                    own_uniforms, own_room, state, alive, total, token = (
                        part[rows] for part in (own_uniforms, own_room, state, alive, total, token)
                    )
                    own_temperatures = None if own_temperatures is None else own_temperatures[rows]
                    all_alive = True
                    taken, found, begin = [], [], k + 1
            last = token
        tokens[sequences, begin : k + 1], log_probs[sequences] = torch.stack(taken, 1), total
        if figures:
            values[sequences, begin : k + 1] = torch.stack(found, 1)
