"""Vision transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sweeper.errors import ConfigError
from sweeper.train.models.layers import (
    ACTIVATIONS,
    Activation,
    StochasticDepth,
    check_affine,
    check_at_least,
    check_images,
    depth_chances,
)


def vit(
    shape: tuple[int, ...],
    n_classes: int,
    patch: int = 4,
    dim: int = 32,
    depth: int = 2,
    heads: int = 2,
    mlp: int = 64,
    qkv_bias: bool = True,
    activation: Activation = "gelu",
    norm: Literal["layer", "none"] = "layer",
    affine: bool = True,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """A transformer over image patches that classifies by a token of its own.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, Eqs. 1–4:
    pre-norm blocks, learned positions, GELU. Dropout acts on the embedding, on each attention's
    output and inside each MLP; stochastic depth on both branches of a block. With dim 512, depth
    6, heads 8, mlp 512 and no `qkv_bias` it has the 9,523,722 parameters of the `vit` of Mao et
    al., PNAS 121(12), 2024, doi:10.1073/pnas.2310002121, on CIFAR-10; they draw positions and
    token with a standard deviation of 1, here 0.02 and 0.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample.
    patch : side of a patch in pixels; divides height and width.
    dim : width of a token; a multiple of `heads`.
    depth : number of blocks; without one, the token would see no patch.
    mlp : hidden units of a block's MLP.
    qkv_bias : whether queries, keys and values have biases.
    norm : of every token alone.

    Raises
    ------
    ConfigError : samples are not images, or an option does not fit.
    """
    check_images(shape)
    _, height, width = shape
    check_at_least(1, patch=patch, dim=dim, depth=depth, heads=heads, mlp=mlp)
    check_affine(norm, affine, usual=True)
    if height % patch or width % patch:
        raise ConfigError(
            "patch", f"`{patch}`", f"a divisor of the image's sides, {height} and {width}"
        )
    if dim % heads:
        raise ConfigError("heads", f"`{heads}`", f"a divisor of `dim`, {dim}")
    design = _Design(dim, heads, mlp, qkv_bias, activation, norm, affine, dropout)
    blocks = [_Block(design, chance) for chance in depth_chances(stochastic_depth, depth)]
    embedding = _Embedding(shape, patch, dim, dropout)
    return nn.Sequential(embedding, *blocks, _Head(design, n_classes))


@dataclass(frozen=True)
class _Design:
    """What all blocks share."""

    dim: int
    heads: int
    mlp: int
    qkv_bias: bool
    activation: Activation
    norm: str
    affine: bool
    dropout: float

    def normalise(self) -> nn.Module:
        """A norm of tokens, a new one each time."""
        if self.norm == "none":
            return nn.Identity()
        return nn.LayerNorm(self.dim, elementwise_affine=self.affine)


class _Embedding(nn.Module):
    """An image as tokens: its patches after one for the class, each with its position."""

    def __init__(self, shape: tuple[int, ...], patch: int, dim: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = shape
        n_patches = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, n_patches + 1, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.positions)


class _Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens and added to what came in."""

    def __init__(self, design: _Design, chance: float) -> None:
        super().__init__()
        dim, dropout = design.dim, design.dropout
        self.heads = design.heads
        self.attention_norm = design.normalise()
        self.queries_keys_values = nn.Linear(dim, 3 * dim, bias=design.qkv_bias)
        self.attention_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            design.normalise(),
            nn.Linear(dim, design.mlp),
            ACTIVATIONS[design.activation](),
            nn.Dropout(dropout),
            nn.Linear(design.mlp, dim),
            nn.Dropout(dropout),
        )
        self.stochastic_depth = StochasticDepth(chance)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stochastic_depth(self.dropout(self._attend(self.attention_norm(x))))
        return x + self.stochastic_depth(self.mlp(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, n_tokens, dim = x.shape
        packed = self.queries_keys_values(x).view(batch, n_tokens, 3, self.heads, -1)
        queries, keys, values = packed.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(queries, keys, values)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, n_tokens, dim))


class _Head(nn.Module):
    """Logits read off the class token."""

    def __init__(self, design: _Design, n_classes: int) -> None:
        super().__init__()
        self.norm = design.normalise()
        self.linear = nn.Linear(design.dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x[:, 0]))
