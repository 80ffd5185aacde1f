"""The state of torch's random number generators."""

from __future__ import annotations

from typing import Any

import torch


def rng_state() -> dict[str, Any]:
    """States of the default generators of the CPU and, once CUDA is in use, of every GPU: plain tensors."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def set_rng_state(state: dict[str, Any]) -> None:
    """:raises ValueError: for the state of more GPUs than there are."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        here = torch.cuda.device_count()
        if len(state["cuda"]) > here:
            raise ValueError(f"the generator states are those of {len(state['cuda'])} GPUs, here there are {here}")
        for device, each in enumerate(state["cuda"]):
            torch.cuda.set_rng_state(each, device)
