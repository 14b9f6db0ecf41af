"""The transformer of UniAD (You et al. 2022, arXiv 2206.03687): it reconstructs the tokens of a feature map.

It is kept from copying them by attention that cannot see a token's neighbourhood and by learned queries in every
decoder layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Attend(nn.Module):
    """Attention, added to its query and normalised."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)

    def forward(self, query: Tensor, memory: Tensor, code: Tensor, hidden: Tensor) -> Tensor:
        mixed, _ = self.attention(query + code, memory + code, memory, attn_mask=hidden, need_weights=False)
        return self.norm(query + self.dropout(mixed))


class _Feed(nn.Module):
    """The feed-forward part of a layer."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.second(self.dropout(F.relu(self.first(x))))))


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attend, self.feed = _Attend(width, heads, dropout), _Feed(width, inner, dropout)

    def forward(self, x: Tensor, code: Tensor, hidden: Tensor) -> Tensor:
        return self.feed(self.attend(x, x, code, hidden))


class _DecoderLayer(nn.Module):
    """Own queries attend to the encoder's answer, the result to the previous layer's."""

    def __init__(self, tokens: int, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(tokens, width))
        self.first, self.second = _Attend(width, heads, dropout), _Attend(width, heads, dropout)
        self.feed = _Feed(width, inner, dropout)

    def forward(self, x: Tensor, memory: Tensor, code: Tensor, hidden: Tensor) -> Tensor:
        queries = self.queries.expand(len(x), -1, -1)
        return self.feed(self.second(self.first(queries, memory, code, hidden), x, code, hidden))


class QueryTransformer(nn.Module):
    """Tokens (N, rows * columns, channels) to their reconstruction.

    Parameters
    ----------
    channels : int
        Of a token.
    grid : (int, int)
        Rows and columns that the tokens come from.
    width, heads, inner : int
        Of the layers.
    encoders, decoders : int
        Layers.
    neighbourhood : int
        Side of the square around a token that its attention cannot see; 1 hides the token alone, 0 nothing.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        width: int,
        heads: int,
        inner: int,
        encoders: int,
        decoders: int,
        neighbourhood: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        rows, columns = grid
        self.enter, self.leave = nn.Linear(channels, width), nn.Linear(width, channels)
        self.rows = nn.Parameter(torch.empty(rows, width // 2))
        self.columns = nn.Parameter(torch.empty(columns, width // 2))
        self.encoder = nn.ModuleList(_EncoderLayer(width, heads, inner, dropout) for _ in range(encoders))
        self.decoder = nn.ModuleList(
            _DecoderLayer(rows * columns, width, heads, inner, dropout) for _ in range(decoders)
        )
        self.norm = nn.LayerNorm(width)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)
        nn.init.uniform_(self.rows)
        nn.init.uniform_(self.columns)
        self.register_buffer("hidden", neighbours(grid, neighbourhood), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, columns = len(self.rows), len(self.columns)
        code = torch.cat(
            [
                self.columns[None].expand(rows, -1, -1),
                self.rows[:, None].expand(-1, columns, -1),
            ],
            dim=2,
        ).flatten(0, 1)
        memory = self.enter(tokens)
        for layer in self.encoder:
            memory = layer(memory, code, self.hidden)
        x = memory
        for layer in self.decoder:
            x = layer(x, memory, code, self.hidden)
        return self.leave(self.norm(x))


def neighbours(grid: tuple[int, int], side: int) -> Tensor:
    """Which tokens lie in the square of ``side`` around each: (T, T) bool."""
    rows, columns = (part.flatten() for part in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    far = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    return 2 * far < side
