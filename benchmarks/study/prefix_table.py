"""A table of all prefixes that a small network was ever asked about, each run once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from .memory import ENTRY, PROCESS, Memory

Ints = NDArray[np.int64]
_ROOT = -1
_FORWARD_TOKENS = 2048
SEQUENCES = 512
"""That are worked on at a time: what they take has to be held, whatever the limit."""


def digest(tokens: Ints) -> bytes:
    """A key for a sequence of tokens that is short however long they are."""
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()


class PrefixTable:
    """Outputs of a Qwen2 network at the ends of token sequences.

    Methods, budgets and seeds of a study visit the same prefixes again and again. A node stands for a sequence of tokens; it holds the keys
    and values of its last token, and the network's output there: about 4 KiB each for the demo models. The forward pass is written out: on
    a network this small the layers of a general implementation cost more than the arithmetic.

    Where the tables of ``memory`` hold too much, nodes that were not used for long are forgotten, and run again when they are asked for.
    Numbers of nodes hold until :meth:`make_room` forgets some.

    :param backbone: a ``Qwen2Model``.
    :param head: from the last hidden states ``[A, hidden]`` to outputs ``[A, V]``.
    :param Memory memory: what bounds this table and others.
    :ivar int width: V.
    :ivar int node_bytes: that a node takes.
    :ivar int passes: forward passes so far.
    """

    _parent: Ints
    _token: Ints
    _depth: Ints
    _used: Ints
    _stored: NDArray[np.bool_]
    _known: NDArray[np.bool_]
    _outputs: NDArray[np.float32]

    def __init__(self, backbone: Any, head: Callable[[Tensor], Tensor], memory: Memory = PROCESS) -> None:
        config = backbone.config
        self._backbone, self._head, self.memory = backbone, head, memory
        self._eps, self._heads, self._kv_heads = config.rms_norm_eps, config.num_attention_heads, config.num_key_value_heads
        self._vocab_size = config.vocab_size
        self._layers = [_Weights(layer) for layer in backbone.layers]
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = backbone.rotary_emb(torch.zeros(1, 1, config.hidden_size), positions)
        self._cos, self._sin = cos[0], sin[0]
        with torch.no_grad():
            self.width = head(torch.zeros(1, config.hidden_size)).shape[1]
        states = ((2, self._kv_heads, config.hidden_size // self._heads), np.float32)
        self._fields: dict[str, tuple[tuple[int, ...], Any]] = {
            **dict.fromkeys(("parent", "token", "depth", "used"), ((), np.int64)),
            **dict.fromkeys(("stored", "known"), ((), np.bool_)),  # keys and values, outputs
            "outputs": ((self.width,), np.float32),
            **{f"states_{i}": states for i in range(len(self._layers))},
        }
        self.node_bytes = ENTRY + sum(np.dtype(kind).itemsize * math.prod(shape) for shape, kind in self._fields.values())
        self.passes = 0
        self.forget()
        memory.join(self)

    def forget(self) -> None:
        """Empty the table."""
        self._size = self._capacity = 0
        self._child: dict[int, int] = {}
        self._by_path: dict[bytes, int] = {}
        self._allocate(np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self._size

    @property
    def held(self) -> int:
        """Bytes."""
        return self._size * self.node_bytes + len(self._by_path) * ENTRY

    def last_uses(self) -> Ints:
        """See :class:`~benchmarks.study.memory.Table`; a node is used where a longer sequence is."""
        used, parent, depth = (values[: self._size] for values in (self._used.copy(), self._parent, self._depth))
        order = np.argsort(-depth, kind="stable")
        for level in np.split(order, np.flatnonzero(np.diff(depth[order])) + 1):
            inside = level[parent[level] != _ROOT]
            np.maximum.at(used, parent[inside], used[inside])
        return used

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """See :class:`~benchmarks.study.memory.Table`."""
        number = np.cumsum(kept) - 1
        self._by_path = {key: int(number[node]) for key, node in self._by_path.items() if kept[node]}
        self._allocate(np.flatnonzero(kept))
        parent = self._parent[: self._size]
        parent[parent != _ROOT] = number[parent[parent != _ROOT]]
        keys = (parent + 1) * self._vocab_size + self._token[: self._size]
        self._child = dict(zip(keys.tolist(), range(self._size), strict=True))

    def _allocate(self, kept: Ints, least: int = 1) -> None:
        """New arrays that begin with some of the nodes.

        Pages that nothing was written to take no memory, so the arrays have room for all that may be held.
        """
        capacity = max(self.memory.limit // self.node_bytes, len(kept), least)
        for name, (shape, kind) in self._fields.items():
            array = np.zeros((capacity, *shape), dtype=kind)
            if len(kept):
                np.take(getattr(self, f"_{name}"), kept, 0, out=array[: len(kept)], mode="clip")  # other modes copy twice
            setattr(self, f"_{name}", array)
        self._size, self._capacity = len(kept), capacity

    def make_room(self, nodes: Ints, expected: int) -> bool:
        """Whether nodes had to be forgotten, others than those of ``nodes`` and on the way to them, whose numbers have changed.

        :param int expected: nodes that the work will add.
        """
        self.memory.now += 1
        self._used[nodes] = self.memory.now
        return self.memory.make_room(expected * self.node_bytes)

    def find(self, paths: Sequence[Ints], expected: int = 0) -> Ints:
        """The node of each sequence of tokens.

        :param int expected: nodes that will be added to them; room is made.
        """
        keys = [digest(path) for path in paths]
        for key, path in zip(keys, paths, strict=True):
            if key not in self._by_path:
                self._by_path[key] = self.extend(_ROOT, path.tolist())
        nodes = np.array([self._by_path[key] for key in keys], dtype=np.int64)
        if self.make_room(nodes, expected):
            nodes = np.array([self._by_path[key] for key in keys], dtype=np.int64)
        return nodes

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
        if self._size == self._capacity:
            self._allocate(np.arange(self._size), 2 * self._size)
        node, self._size = self._size, self._size + 1
        self._parent[node], self._token[node], self._used[node] = parent, token, self.memory.now
        self._depth[node] = 0 if parent == _ROOT else self._depth[parent] + 1
        self._child[key] = node
        return node

    @torch.no_grad()
    def outputs(self, nodes: Ints) -> Tensor:
        """``[A, V]``, after each node's last token."""
        self._used[nodes] = self.memory.now
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
                    if sizes[order[stop]] * (stop + 1 - start) > _FORWARD_TOKENS or stop - start == SEQUENCES:
                        break
                    stop += 1
                rows = order[start:stop]
                self._compute(missing[rows], path[rows], int(sizes[rows].max()))
                start = stop
        return torch.from_numpy(self._outputs[nodes])

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
        self._outputs[nodes] = self._head(last).numpy()
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
        states = torch.from_numpy(getattr(self, f"_states_{index}"))
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
