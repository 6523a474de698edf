"""The transformer block of the decoder and of the small encoder."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.models.interface import Encoder


@cache
def _has_matrix_unit() -> bool:
    # Older versions of torch cannot tell. "No" is then only slower, and only on a machine that has AMX.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def fused_attention_pays(device: torch.device) -> bool:
    """Return whether ``scaled_dot_product_attention`` is faster here than two products and a softmax.

    Under bf16 autocast on a CPU it is not: with its backward pass it takes 1.4 to 4.3 times as long (measured with
    AMX), and without AMX 407 against 262 ms for a layer of ViT-B/16. Its forward pass alone is faster with AMX.
    """
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return True
    return not torch.is_grad_enabled() and _has_matrix_unit()


def choose_attention(net: nn.Module, device: torch.device) -> None:
    """Let the attentions of timm in a network take the fastest way, see ``fused_attention_pays``."""
    fused = fused_attention_pays(device)
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 (of no type that is known here)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split over {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (B, n, D)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if fused_attention_pays(x.device):
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (B, n, D)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: training leaves a sample's branch out with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Take and return (B, n, D)."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        kept = torch.empty(branch.shape[0], 1, 1, device=branch.device, dtype=branch.dtype).bernoulli_(keep)
        return branch * kept / keep


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth: a sample's branch is left out with rate ``drop_path``."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0, hidden: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width, hidden or 4 * width)
        self.drop_path = DropPath(drop_path)
        for layer in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (B, n, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class TinyViT(Encoder):
    """A small ViT for the synthetic scenes: a convolutional stem of stride 4, learnt positions, a few blocks.

    The stem follows Xiao et al., "Early convolutions help transformers see better" (NeurIPS 2021): a ViT that starts
    from random weights learns within a minute only with convolutions below it. Group norm keeps images independent.
    """

    def __init__(self, *, width: int = 64, depth: int = 2, heads: int = 2, grid: int = 12) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(
            *_stem_layer(3, half, stride=2),
            *_stem_layer(half, width, stride=1),
            *_stem_layer(width, width, stride=2),
            nn.Conv2d(width, width, 1),
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, width, grid, grid))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.width = width
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take (B, 3, H, W) with sides of a multiple of 4; return the map of tokens and the blocks' outputs."""
        x = self.stem(images)
        height, width = x.shape[-2:]
        place: Tensor = self.pos_embed
        if place.shape[-2:] != (height, width):
            place = functional.interpolate(place, size=(height, width), mode="bicubic", align_corners=False)
        tokens = (x + place).flatten(2).transpose(1, 2)
        stages = []
        for block in self.blocks:
            tokens = block(tokens)
            stages.append(as_map(tokens, height, width))
        return as_map(self.norm(tokens), height, width), tuple(stages)


def _stem_layer(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.GELU(),
    )


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Show tokens (B, h*w, D) as a map (B, D, h, w), without copying."""
    return tokens.transpose(1, 2).reshape(*tokens.shape[::2], height, width)
