"""Habits of models whose layers, parameters and attention have to follow the streams (see ``heads``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.passes.heads import DENSE, Head, Streams


class GeneratedVectors(Head):
    """A layer's output cut into vectors by literals, beside a compression of the streams; residual over fields."""

    def build(self, n: int, d: int) -> None:
        self.d = d
        self.make = nn.Sequential(nn.Linear(DENSE, 3 * d), nn.ReLU())
        self.compress = nn.Parameter(torch.randn(2, n) * 0.3)
        self.residual = nn.Linear(n, 5, bias=False)
        self.norm = nn.LayerNorm(d)
        self.top = nn.Linear(5 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        mixed = torch.cat([self.make(x).view(-1, 3, self.d), torch.matmul(self.compress, t)], dim=1)
        mixed = mixed + self.residual(t.permute(0, 2, 1)).permute(0, 2, 1)
        return self.top(self.norm(mixed).flatten(1))


class FieldGate(Head):
    """A layer's output seen as one vector per field, by literals."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.gate = nn.Linear(DENSE, n * d)
        self.top = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1) * torch.sigmoid(self.gate(x)).view(-1, self.n, self.d)
        return self.top(t.flatten(1))


class FlatGate(Head):
    """A gate over the flat vectors, whichever comes first in the product; cut into vectors behind it."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.first, self.second = nn.Linear(DENSE, n * d), nn.Linear(DENSE, n * d)
        self.top = nn.Linear(n, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        flat = torch.cat(streams, dim=1)
        flat = self.first(x).sigmoid() * flat * self.second(x).sigmoid()
        return self.top(flat.view(-1, self.n, self.d).sum(dim=2))


class TransposedVectors(Head):
    """A layer's output cut into columns instead of rows."""

    def build(self, n: int, d: int) -> None:
        self.d = d
        self.make = nn.Linear(DENSE, d * 3)
        self.top = nn.Linear(n * 3, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        return self.top(torch.bmm(torch.stack(streams, dim=1), self.make(x).view(-1, self.d, 3)).flatten(1))


class RegroupedLayer(Head):
    """A layer of fixed size, cut by the width that is read off the streams: as rows and as columns."""

    def build(self, n: int, d: int) -> None:
        self.rows, self.columns = nn.Linear(n * d, 48), nn.Linear(n * d, 32)
        self.top = nn.Linear((48 // d) * (32 // d), 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        batch, _, width = t.shape
        flat = torch.reshape(t, (batch, -1))
        rows = torch.relu(self.rows(flat)).reshape([batch, -1, width])
        return self.top(torch.bmm(rows, self.columns(flat).reshape([batch, width, -1])).reshape(batch, -1))


class CountedVectors(Head):
    """A fixed number of vectors as wide as the streams, read off them: the layer's size follows."""

    def build(self, n: int, d: int) -> None:
        self.make = nn.Linear(DENSE, 3 * d)
        self.top = nn.Linear(3 * n, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        made = self.make(x).view(x.size(0), 3, t.size(2))
        return self.top(torch.matmul(made, t.transpose(1, 2)).flatten(1))


class LayersInOneParameter(Head):
    """Cross layers with experts, all matrices of a kind in one parameter behind indices."""

    def build(self, n: int, d: int) -> None:
        flat = n * d + DENSE
        self.u = nn.Parameter(torch.randn(2, 3, flat, 4) * 0.1)
        self.v = nn.Parameter(torch.randn(2, 3, flat, 4) * 0.1)
        self.bias = nn.Parameter(torch.randn(2, flat, 1) * 0.1)
        self.scale = nn.Parameter(torch.randn(flat, 2) * 0.1)
        self.top = nn.Linear(flat, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x0 = xl = torch.cat([x, *streams], dim=1).unsqueeze(2)
        for i in range(2):
            experts = [torch.matmul(self.u[i][e], torch.matmul(self.v[i, e].t(), xl).tanh()) for e in range(3)]
            xl = x0 * (torch.stack(experts, dim=0).sum(0) + self.bias[i]) + xl * self.scale[None, :, i : i + 1]
        return self.top(xl.squeeze(2))


class OwnParameters(Head):
    """A bias per field and entry, flat or not, a weight per field, a bilinear form."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.bias = nn.Parameter(torch.randn(n, d) * 0.1)
        self.flat_bias = nn.Parameter(torch.randn(n * d) * 0.1)
        self.weight, self.other = nn.Parameter(torch.randn(n)), nn.Parameter(torch.randn(n))
        self.form = nn.Parameter(torch.randn(d, d) * 0.3)
        self.top = nn.Linear(n * n, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1) + self.bias + self.flat_bias.view(1, self.n, self.d)
        t = t * self.weight.view(1, -1, 1) * torch.softmax(self.other, dim=0)[None, :, None]
        return self.top(torch.matmul(torch.matmul(t, self.form), t.transpose(1, 2)).flatten(1))


class ParameterReadTwice(Head):
    """A parameter that takes part in the forward pass at two places, one of which nothing changed."""

    def build(self, n: int, d: int) -> None:
        self.d = d
        self.form = nn.Parameter(torch.randn(d, 3) * 0.3)
        self.top = nn.Linear(3, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        size = self.form.abs().sum(dim=1).view(1, self.d)
        return self.top(torch.matmul(torch.stack(streams, dim=1).sum(1), self.form)) + size.sum(1, keepdim=True)


class ProjectedAttention(Head):
    """torch's attention over the fields at a width of its own, the fields first."""

    def build(self, n: int, d: int) -> None:
        self.project, self.residual = nn.Linear(d, 6), nn.Linear(d, 6)
        self.attend = nn.ModuleList(nn.MultiheadAttention(6, 2) for _ in range(2))
        self.top = nn.Linear(n * 6, 1)
        self.size = n * 6

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        found = self.project(t).transpose(0, 1)
        for layer in self.attend:
            found, _ = layer(found, found, found)
        return self.top(torch.relu(found.transpose(0, 1) + self.residual(t)).contiguous().view(-1, self.size))


class AttentionOverStreams(Head):
    """torch's attention at the streams' width, with a residual; its weights are used as well."""

    def build(self, n: int, d: int) -> None:
        self.attend = nn.MultiheadAttention(d, 2, batch_first=True)
        self.pool = nn.MultiheadAttention(d, 1, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, d))
        self.top = nn.Linear(n * n + d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        found, weights = self.attend(t, t, t, need_weights=True)
        t = t + found
        pooled = self.pool(self.query.expand(x.size(0), -1, -1), t, t, need_weights=False)[0]
        return self.top(torch.cat([weights.flatten(1), pooled.squeeze(1)], dim=1))


class HeadsApart(Head):
    """Attention weights per head, and an encoder layer behind it; the batch in the middle."""

    def build(self, n: int, d: int) -> None:
        self.attend = nn.MultiheadAttention(d, 2)
        self.encode = nn.TransformerEncoderLayer(d, 2, 7, dropout=0.0)
        self.stack = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 2, 7, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
        )
        self.top = nn.Linear(2 * n * n + n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1).transpose(0, 1)
        found, weights = self.attend(t, key=t, value=t, average_attn_weights=False)
        found = self.stack(self.encode(found + t).transpose(0, 1))
        return self.top(torch.cat([weights.flatten(1), found.flatten(1)], dim=1))


class NormsOverFields(Head):
    """Norms over the stacked vectors: a channel per field, the entries of a vector."""

    def build(self, n: int, d: int) -> None:
        self.fields, self.entries, self.both = nn.BatchNorm1d(n), nn.LayerNorm(d), nn.LayerNorm([n, d])
        self.top = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        return self.top(self.both(self.entries(self.fields(torch.stack(streams, dim=1)))).flatten(1))


class BilinearForms(Head):
    """torch's bilinear layers: of a vector with itself, and of a vector with dense inputs."""

    def build(self, n: int, d: int) -> None:
        self.form, self.mixed = nn.Bilinear(d, d, 3, bias=False), nn.Bilinear(DENSE, n * d, 2)
        self.top = nn.Linear(n * 3 + 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        return self.top(torch.cat([self.form(t, input2=t).flatten(1), self.mixed(x, t.flatten(1))], dim=1))


class SameNumberResidual(Head):
    """A residual over the fields without a layer: it holds as long as there are as many streams."""

    def build(self, n: int, d: int) -> None:
        self.number = nn.Linear(1, d)
        self.make = nn.Linear(DENSE, 3 * d)
        self.compress = nn.Parameter(torch.randn(4, n + 1) * 0.3)
        self.d = d
        self.top = nn.Linear(7 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack([self.number(x[:, :1]), *streams], dim=1)
        mixed = torch.cat([self.make(x).view(-1, 3, self.d), torch.matmul(self.compress, t)], dim=1)
        return self.top((mixed + t).flatten(1))
