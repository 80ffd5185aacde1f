"""Settings of all tests. Hypothesis draws the same examples in every run; ``HYPOTHESIS_PROFILE=explore`` draws new ones."""

import os

# Read once, when huggingface_hub is imported. Without it a test of a wrong model name asks the Hub, for minutes where there is no network.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from hypothesis import settings

# The models are tiny: threads cost more than they give, most of all when several test processes share the cores.
torch.set_num_threads(1)

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))
