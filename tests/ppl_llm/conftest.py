"""Settings of these tests."""

import torch

# The models are tiny: threads cost more than they give, most of all when several test processes share the cores.
torch.set_num_threads(1)
