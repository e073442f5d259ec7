"""Vision transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sweeper.errors import ConfigError


def vit(
    shape: tuple[int, ...],
    n_classes: int,
    patch: int = 4,
    dim: int = 32,
    depth: int = 2,
    heads: int = 2,
    mlp: int = 64,
    dropout: float = 0.0,
) -> nn.Module:
    """A transformer over image patches that classifies by a token of its own.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, Eqs. 1–4:
    pre-norm blocks, learned positions, GELU. Dropout acts on the embedding, on each attention's
    output and inside each MLP.

    Parameters
    ----------
    shape : (n_channels, height, width) of one sample.
    patch : side of a patch in pixels; divides height and width.
    dim : width of a token; a multiple of `heads`.
    depth : number of blocks; may be 0.
    mlp : hidden units of a block's MLP.

    Raises
    ------
    ConfigError : samples are not images, or an option does not fit.
    """
    if len(shape) != 3:
        raise ConfigError("name", f"samples of shape `{shape}`", "images are needed")
    _, height, width = shape
    at_least = {"patch": 1, "dim": 1, "depth": 0, "heads": 1, "mlp": 1}
    given = {"patch": patch, "dim": dim, "depth": depth, "heads": heads, "mlp": mlp}
    for option, least in at_least.items():
        if given[option] < least:
            raise ConfigError(option, f"`{given[option]}`", f"a whole number at least {least}")
    if height % patch or width % patch:
        raise ConfigError(
            "patch", f"`{patch}`", f"a divisor of the image's sides, {height} and {width}"
        )
    if dim % heads:
        raise ConfigError("heads", f"`{heads}`", f"a divisor of `dim`, {dim}")
    blocks = [_Block(dim, heads, mlp, dropout) for _ in range(depth)]
    embedding = _Embedding(shape, patch, dim, dropout)
    return nn.Sequential(embedding, *blocks, _Head(dim, n_classes))


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

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, mlp),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self._attend(self.attention_norm(x)))
        return x + self.mlp(x)

    def _attend(self, x: Tensor) -> Tensor:
        batch, n_tokens, dim = x.shape
        packed = self.queries_keys_values(x).view(batch, n_tokens, 3, self.heads, -1)
        queries, keys, values = packed.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(queries, keys, values)
        return self.attention_out(mixed.transpose(1, 2).reshape(batch, n_tokens, dim))


class _Head(nn.Module):
    """Logits read off the class token."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x[:, 0]))
