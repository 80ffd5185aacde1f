"""A table of all prefixes that a small network was ever asked about, each run once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

Ints = NDArray[np.int64]
_ROOT = -1
_FORWARD_TOKENS = 2048


class PrefixTable:
    """Outputs of a Qwen2 network at the ends of token sequences.

    Methods, budgets and seeds of a study visit the same prefixes again and again. A node stands for a sequence of tokens; it holds the keys
    and values of its last token, and the network's output there. Memory grows with the number of nodes: about 4 KiB each for the demo
    models. The forward pass is written out: on a network this small the layers of a general implementation cost more than the arithmetic.

    :param backbone: a ``Qwen2Model``.
    :param head: from the last hidden states ``[A, hidden]`` to outputs ``[A, V]``.
    """

    def __init__(self, backbone: Any, head: Callable[[Tensor], Tensor]) -> None:
        config = backbone.config
        self._backbone, self._head = backbone, head
        self._eps, self._heads, self._kv_heads = config.rms_norm_eps, config.num_attention_heads, config.num_key_value_heads
        self._vocab_size = config.vocab_size
        self._layers = [_Weights(layer) for layer in backbone.layers]
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = backbone.rotary_emb(torch.zeros(1, 1, config.hidden_size), positions)
        self._cos, self._sin = cos[0], sin[0]
        self.passes = 0
        self.forget()

    def forget(self) -> None:
        """Empty the table."""
        self._size = 0
        self._parent, self._token, self._depth = (np.empty(0, dtype=np.int64) for _ in range(3))
        self._stored, self._known = np.empty(0, dtype=bool), np.empty(0, dtype=bool)  # keys and values, outputs
        self._child: dict[int, int] = {}
        self._by_path: dict[bytes, int] = {}
        self._outputs = torch.empty(0, 0)
        self._states: list[Tensor] = []  # of each layer: [nodes, 2, kv_heads, head_dim]

    def __len__(self) -> int:
        return self._size

    def find(self, paths: Sequence[Ints]) -> Ints:
        """The node of each sequence of tokens."""
        found = np.empty(len(paths), dtype=np.int64)
        for i, path in enumerate(paths):
            key = path.tobytes()
            node = self._by_path.get(key)
            if node is None:
                node = self.extend(_ROOT, path.tolist())
                self._by_path[key] = node
            found[i] = node
        return found

    def extend(self, node: int, tokens: Sequence[int]) -> int:
        """The node of a longer sequence."""
        for token in tokens:
            key = (node + 1) * self._vocab_size + token
            known = self._child.get(key)
            node = known if known is not None else self._grow(key)
        return node

    def children(self, nodes: Ints, tokens: Ints) -> Ints:
        """The nodes one token on."""
        keys, which = np.unique((nodes + 1) * self._vocab_size + tokens, return_inverse=True)
        known = self._child
        return np.array([known[key] if key in known else self._grow(key) for key in keys.tolist()], dtype=np.int64)[which]

    def _grow(self, key: int) -> int:
        parent, token = key // self._vocab_size - 1, key % self._vocab_size
        if self._size == len(self._parent):
            capacity = max(4096, 2 * self._size)
            for name in ("_parent", "_token", "_depth", "_stored", "_known"):
                grown = np.zeros(capacity, dtype=getattr(self, name).dtype)
                grown[: self._size] = getattr(self, name)
                setattr(self, name, grown)
            self._outputs = _enlarged(self._outputs, capacity)
            self._states = [_enlarged(states, capacity) for states in self._states]
        node, self._size = self._size, self._size + 1
        self._parent[node], self._token[node] = parent, token
        self._depth[node] = 0 if parent == _ROOT else self._depth[parent] + 1
        self._child[key] = node
        return node

    @torch.no_grad()
    def outputs(self, nodes: Ints) -> Tensor:
        """``[A, V]``, after each node's last token."""
        missing = np.unique(nodes[~self._known[nodes]])
        if len(missing):
            path = self._paths(missing)
            sizes = np.maximum(1, ((path >= 0) & ~self._stored[path]).sum(1))
            order = np.argsort(sizes, kind="stable")
            start = 0
            while start < len(order):
                # Of similar size, so that little is run twice.
                stop = start + 1
                while stop < len(order) and sizes[order[stop]] <= 2 * sizes[order[start]]:
                    if sizes[order[stop]] * (stop + 1 - start) > _FORWARD_TOKENS:
                        break
                    stop += 1
                rows = order[start:stop]
                self._compute(missing[rows], path[rows], int(sizes[rows].max()))
                start = stop
        return self._outputs[torch.from_numpy(nodes)]

    def _paths(self, nodes: Ints) -> Ints:
        """The nodes from the root to each of ``nodes``, aligned on the left and padded with -1."""
        depth = self._depth[nodes]
        path = np.full((len(nodes), int(depth.max()) + 1), -1, dtype=np.int64)
        at = nodes.copy()
        for column in range(path.shape[1] - 1, -1, -1):
            inside = column <= depth
            path[inside, column] = at[inside]
            at = np.where(inside, self._parent[at], at)
        return path

    def _compute(self, nodes: Ints, path: Ints, width: int) -> None:
        """Run the last ``width`` tokens of sequences; some of a shorter sequence's are run again."""
        depth = self._depth[nodes]
        path = path[:, : int(depth.max()) + 1]
        position = np.maximum(depth[:, None] - width + 1 + np.arange(width), 0)
        run = np.take_along_axis(path, position, 1)
        seen = torch.from_numpy(np.arange(path.shape[1]) <= position[..., None])[:, None]  # [A, 1, width, T]
        if self._heads > self._kv_heads and width > 1:
            seen = seen.repeat(1, 1, self._heads // self._kv_heads, 1)
        write, read = torch.from_numpy(run), torch.from_numpy(np.maximum(path, 0))
        hidden = self._backbone.embed_tokens(torch.from_numpy(self._token[run]))
        at = torch.from_numpy(position)
        cos, sin = self._cos[at][:, :, None], self._sin[at][:, :, None]
        for index, layer in enumerate(self._layers):
            hidden = self._layer(index, layer, hidden, write, read, seen, cos, sin)
        self.passes += 1
        last = rms_norm(hidden[:, -1], hidden.shape[-1:], self._backbone.norm.weight, self._eps)
        outputs = self._head(last)
        if self._outputs.shape[1] == 0:
            self._outputs = torch.empty(len(self._parent), outputs.shape[1])
        self._outputs[torch.from_numpy(nodes)] = outputs
        self._stored[run], self._known[nodes] = True, True

    def _layer(self, index: int, layer: _Weights, x: Tensor, write: Tensor, read: Tensor, seen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, width, _ = x.shape
        heads, kv_heads = self._heads, self._kv_heads
        mixed = linear(rms_norm(x, x.shape[-1:], layer.norm_1, self._eps), layer.qkv, layer.qkv_bias).view(
            rows, width, heads + 2 * kv_heads, -1
        )
        turned, value = mixed[:, :, : heads + kv_heads], mixed[:, :, heads + kv_heads :]
        half = turned.shape[-1] // 2
        turned = turned * cos + torch.cat([-turned[..., half:], turned[..., :half]], -1) * sin
        query, key = turned[:, :, :heads], turned[:, :, heads:]
        if len(self._states) == index:
            self._states.append(torch.zeros(len(self._parent), 2, kv_heads, key.shape[-1]))
        states = self._states[index]
        states.index_copy_(0, write.flatten(), torch.stack([key, value], 2).flatten(0, 1))
        keys, values = states.index_select(0, read.flatten()).view(*read.shape, *states.shape[1:]).permute(2, 0, 3, 1, 4)
        folded = query.transpose(1, 2).reshape(rows, kv_heads, -1, key.shape[-1])
        attended = scaled_dot_product_attention(folded, keys, values, attn_mask=seen)
        attended = attended.reshape(rows, heads, width, -1).transpose(1, 2).reshape(rows, width, -1)
        x = x + linear(attended, layer.out)
        gate, up = linear(rms_norm(x, x.shape[-1:], layer.norm_2, self._eps), layer.gate_up).chunk(2, -1)
        return x + linear(silu(gate) * up, layer.down)


class _Weights:
    """One layer's weights, projections that read the same joined."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = torch.cat([p.weight.detach() for p in projections])
        self.qkv_bias = torch.cat([p.bias.detach() for p in projections])
        self.out, self.down = attention.o_proj.weight.detach(), mlp.down_proj.weight.detach()
        self.gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        self.norm_1, self.norm_2 = layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()


def _enlarged(tensor: Tensor, capacity: int) -> Tensor:
    grown = tensor.new_zeros(capacity, *tensor.shape[1:])
    grown[: len(tensor)] = tensor
    return grown
