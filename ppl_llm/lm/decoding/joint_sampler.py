"""Draws for several steps in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...kv_cache.joint_pass import JointPass
from .decoder import DecodeRequest, Draw
from .sampling import draw, sample_each


class JointSampler:
    """Answers decode requests of sequences in KV caches, whichever programs they come from.

    :param JointPass joint_pass: also an attribute.
    :param bool inference_mode: for a model all of whose weights lie on the CPU: without versions and views to keep account of, passes of
        few sequences, which consist of small operations, take 6 % less time. Weights that are moved to where they are needed may not
        become inference tensors.
    """

    def __init__(self, joint_pass: JointPass, inference_mode: bool = False) -> None:
        self.joint_pass, self._inference_mode = joint_pass, inference_mode

    def __call__(self, requests: Sequence[DecodeRequest]) -> list[Draw]:
        with torch.inference_mode() if self._inference_mode else nullcontext():
            passing = [i for i, request in enumerate(requests) if request.tokens is not None]
            if len(passing) < 2:
                return sample_each(requests)
            passing.sort(key=lambda i: hash(_distribution(requests[i])))  # equal ones are drawn from in one go
            logits = self.joint_pass.run([requests[i].decoder.prepare(requests[i].tokens) for i in passing])
            draws = dict(zip(passing, _drawn([requests[i] for i in passing], logits), strict=True))
            others = [i for i in range(len(requests)) if i not in draws]
            draws |= zip(others, sample_each([requests[i] for i in others]), strict=True)
            return [draws[i] for i in range(len(requests))]


def _distribution(request: DecodeRequest) -> tuple[Any, ...]:
    """What requests must have in common to be drawn from in one go."""
    return request.options, request.figures, request.temperatures is None


def _drawn(requests: Sequence[DecodeRequest], logits: Sequence[Tensor]) -> list[Draw]:
    """Draws after the forward passes, of neighbours with equal options in one go.

    :param logits: of the requests' sequences one after the other, ``[A, V]`` each; they are overwritten.
    """
    draws: list[Draw] = []
    for batch in logits:
        begin = 0
        while begin < len(batch):
            first, end = requests[len(draws)], begin
            same: list[DecodeRequest] = []
            for request in requests[len(draws) :]:
                if _distribution(request) != _distribution(first) or end == len(batch):
                    break
                same.append(request)
                end += len(request.uniforms)
            sizes = [len(request.uniforms) for request in same]
            uniforms = torch.cat([request.uniforms for request in same])
            own = [request.temperatures for request in same if request.temperatures is not None]
            found = draw(batch[begin:end], uniforms, first.options, first.figures, torch.cat(own) if own else None)
            draws += [Draw(*each) for each in zip(*(each.split(sizes) for each in found), strict=True)]
            for request, rows in zip(same, batch[begin:end].split(sizes), strict=True):
                request.decoder.finish(rows, request.alive)
            begin = end
    return draws
