"""Attention modules with correction, and temporal attention in windows (Sec. 4.1, Eq. 9-22).

All take hidden states h, b f l d (batch, frames, tokens of a frame, channels), and an optional
`stage` (a `bus.Stage`: the bus as one stage sees it); without one they are plain attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .bus import OnBus, Stage, State
from .models.kernels import Linear, once
from .operators import S, back_project

Attend = Callable[..., Tensor]
ContextStates = dict[str, tuple[Tensor, ...]]  # by module name: what `project` returned


class Attention(OnBus):
    """Base of self-, cross- and temporal attention: heads * head_dim channels inside, dim out."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_out = Linear(heads * head_dim, dim)

    def output(self, stage: Stage | None, attend: Attend, states: State,
               corrected: State | None) -> Tensor:
        """Attention over the module's own states, blended with that over the corrected ones, and
        projected: b f l d."""
        o = attend(**states)
        if stage is not None and corrected is not None:
            o = stage.blend(o, attend(**corrected))
        return self.to_out(o)


class SpatialSelfAttention(Attention):
    """Attention among the tokens of a frame.

    The query is corrected with S (Eq. 10), key and value with A1 or A2 (Eq. 11-14). bias: whether
    they have biases, here and below."""

    def __init__(self, dim: int, heads: int, head_dim: int, bias: bool = False) -> None:
        super().__init__(dim, heads, head_dim)
        self.to_qkv = Linear(dim, 3 * heads * head_dim, bias)

    def forward(self, h: Tensor, stage: Stage | None = None) -> Tensor:
        q, k, v = self.to_qkv(h).chunk(3, dim=-1)
        corrected = None
        if stage is not None:
            A = stage.kv_operator(self.name)
            corrected = stage.exchange(self.name, "spatial", q=(q, S(stage.n)), k=(k, A), v=(v, A))
        return self.output(stage, self.attend, {"q": q, "k": k, "v": v}, corrected)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        f = q.shape[1]
        q, k, v = (rearrange(x, "b f l (h d) -> (b f) h l d", h=self.heads) for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "(b f) h l d -> b f l (h d)", f=f)


class CrossAttention(Attention):
    """Attention from the tokens of all frames to those of a prompt.

    The query is corrected with S (Eq. 10); the prompt's keys and values need no correction (A.2).
    They depend on no frame, step or stage: `project` them once and pass the result to every
    forward. A module that attends to more than a prompt overrides `project` and `attend`, which
    gets what `project` returned.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int,
                 bias: bool = False) -> None:
        super().__init__(dim, heads, head_dim)
        self.to_q = Linear(dim, heads * head_dim, bias)
        self.to_kv = Linear(context_dim, 2 * heads * head_dim, bias)

    def project(self, context: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of a prompt. context: b m c (m text tokens); returns two of b h m d."""
        k, v = rearrange(self.to_kv(context), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        return k, v

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None = None) -> Tensor:
        q = self.to_q(h)
        states = context[self.name]
        o = self.attend(q, *states)
        if stage is not None:
            corrected = stage.exchange(self.name, "spatial", q=(q, S(stage.n)))
            if corrected is not None:  # S changes q, and so o, at key frames only
                o_hat = self.attend(corrected["q"][:, :: stage.n], *states)
                o = back_project(o, stage.blend(o[:, :: stage.n], o_hat), S(stage.n))
        return self.to_out(o)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        f = q.shape[1]
        q = rearrange(q, "b f l (h d) -> b h (f l) d", h=self.heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h (f l) d -> b f l (h d)", f=f)


class TokenCrossAttention(OnBus):
    """Attention to a context of one token (Stable Video Diffusion's image), spatial or temporal.

    Softmax over one token is 1: every query gets that token's value. So queries and keys are left
    out, nothing needs correction, and `project` makes the output once for all frames and steps.
    """

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        self.to_v = Linear(context_dim, dim, bias=False)
        self.to_out = Linear(dim, dim)

    def project(self, context: Tensor) -> tuple[Tensor]:
        """The output for an image. context: b 1 c, else ValueError; returns b 1 1 d."""
        if context.shape[1] != 1:
            raise ValueError(f"a context of {context.shape[1]} tokens; this network takes one")
        return (self.to_out(self.to_v(context))[:, None],)

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None = None) -> Tensor:
        return context[self.name][0]


class TemporalAttention(Attention):
    """Attention along the frames of each token; the hidden state is corrected with S (Eq. 9).

    With a stage, attention runs in overlapping windows of t0 frames (Eq. 18-22). position: a module
    (q, k, v) -> o, attention with relative positions, which start anew in every window; None: no
    positions. Absolute positions are for the network to add: see `frame_positions`.
    """

    def __init__(self, dim: int, heads: int, head_dim: int,
                 position: nn.Module | None = None, bias: bool = False) -> None:
        super().__init__(dim, heads, head_dim)
        self.to_qkv = Linear(dim, 3 * heads * head_dim, bias)
        self.position = position

    def forward(self, h: Tensor, stage: Stage | None = None) -> Tensor:
        qkv, corrected, spans = self.to_qkv(h), None, [(0, h.shape[1])]
        if stage is not None:
            spans = windows(h.shape[1], stage.window, stage.overlap)
            states = stage.exchange(self.name, "temporal", h=(h, S(stage.n)))
            if states is not None:  # S changes h, and so q, k and v, at key frames only
                at_keys = self.to_qkv(states["h"][:, :: stage.n])
                corrected = {"qkv": back_project(qkv, at_keys, S(stage.n))}
        return self.output(stage, partial(self.attend, spans), {"qkv": qkv}, corrected)

    def attend(self, spans: list[tuple[int, int]], qkv: Tensor) -> Tensor:
        def one(qkv: Tensor) -> Tensor:  # of the batch
            q, k, v = rearrange(qkv, "f l (three h d) -> three l h f d", three=3, h=self.heads)
            o = windowed(self.position or attend_frames, q, k, v, spans)
            return rearrange(o, "l h f d -> f l h d")

        return torch.stack([one(x) for x in qkv]).flatten(-2)  # one by one: fewer copies


def attend_frames(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention among few frames. q, k, v: ... f d; bias: added to the f x f logits.

    Written out on the CPU, where the fused kernel for long sequences takes four times as long.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    logits = (q @ k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5)
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def windows(f: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of each attention window (A.1, beside Eq. 18-20).

    There are ceil((f - window) / stride) + 1, stride = window - overlap; the last is moved back to
    end at f."""
    if f <= window:
        return [(0, f)]
    stride = window - overlap
    count = ceil((f - window) / stride) + 1
    starts = (min(i * stride, f - window) for i in range(count))
    return [(start, start + window) for start in starts]


def fusion_weights(window: int) -> Tensor:
    """FreeNoise's weights of the frames of a window's output (Eq. 20): 1, 2, .., 2, 1."""
    frame = torch.arange(window)
    return torch.minimum(frame + 1, window - frame).float()


def fusion_matrix(spans: Sequence[tuple[int, int]]) -> Tensor:
    """Weights that fuse the windows (Eq. 20), windows x window; they sum to 1 in every frame."""
    f = max(end for _, end in spans)
    weights = torch.zeros(len(spans), f)
    for i, (start, end) in enumerate(spans):
        weights[i, start:end] = fusion_weights(end - start)
    shares = weights / weights.sum(0)
    return torch.stack([shares[i, start:end] for i, (start, end) in enumerate(spans)])


def windowed(attention: Attend, q: Tensor, k: Tensor, v: Tensor,
             spans: list[tuple[int, int]]) -> Tensor:
    """Attend within each window and fuse the outputs (Eq. 18-20). q, k, v and result: ... f d."""
    if len(spans) == 1:
        return attention(q, k, v)
    shares = once(fusion_matrix, tuple(spans), device=q.device, dtype=q.dtype)
    o = torch.zeros_like(q)
    for (start, end), share in zip(spans, shares):
        o_window = attention(q[..., start:end, :], k[..., start:end, :], v[..., start:end, :])
        o[..., start:end, :].addcmul_(share[:, None], o_window)
    return o


def frame_positions(f: int, stage: Stage | None, device: torch.device | None = None) -> Tensor:
    """Positions of f frames for absolute embeddings: 0, 1, ..; with a stage, scaled by t0 / f
    (Eq. 16-17). The network embeds them."""
    frame = torch.arange(f, dtype=torch.float32, device=device)
    return frame if stage is None else frame * (stage.window / f)


def project_context(network: nn.Module, context: Tensor) -> ContextStates:
    """`project` of every cross-attention in a network, once per prompt or image. context: b m c."""
    cross = [m for m in network.modules() if isinstance(m, (CrossAttention, TokenCrossAttention))]
    return {module.name: module.project(context) for module in cross}
