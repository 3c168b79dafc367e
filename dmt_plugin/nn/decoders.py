"""Decoders: linear layers that turn a tower's compressed output back into vectors of the features' old shapes.

They serve models whose layers behind the towers cannot take other shapes. A decoder is
``Linear(O_t -> F_t*N)`` behind the peer exchange, so the compressed output is what crosses hosts,
and the interaction of the model sees the shapes it was written for. It is a dense layer: every
rank has it, and its gradients are summed over all ranks.

How one is initialized:

1. The tower module is run on the zero input and on every unit vector; that is its matrix
   ``W`` and offset ``b``, if it is affine when it starts, which random inputs confirm (a
   DLRM tower always is, a DCN tower is until its cross layer has learned something).
2. Then the decoder is ``x = W+ (y - b)`` with the pseudo-inverse ``W+``: decoding what was
   just encoded gives the least-squares reconstruction of the embeddings, and for the
   orthogonal towers of the default ``W+`` is the transpose.
3. A tower that is not affine gets a decoder with orthonormal columns and no offset.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dmt_plugin.plan.tower_plan import TowerModuleSpec

_PROBES = 8
_TOLERANCE = 1e-4
_RANK_TOLERANCE = 1e-10
"""Of the largest eigenvalue of ``W W^T`` in double precision: below it a direction is lost in ``W``."""


def build_decoder(
    module: nn.Module, spec: TowerModuleSpec, features: int, width: int, tower: int
) -> tuple[nn.Linear, str]:
    """Builds the decoder of one tower; the same on every rank, whatever the state of its random numbers.

    Args:
        module: the tower module ``(B, F_t, N) -> (B, O_t)``, on the CPU; it is left as it is.
        spec: what the module is made of; only its seed is read.
        features: ``F_t``.
        width: ``N``.
        tower: number of the tower, part of the seed.

    Returns:
        ``Linear(O_t -> F_t*N)``, and in words how it starts.
    """
    out_features = int(module.out_features)  # type: ignore[arg-type]
    decoder = nn.utils.skip_init(nn.Linear, out_features, features * width)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed * 100_003 + tower)  # and not those of the accelerators
        found = affine_part(module, features, width)
        if found is None:
            nn.init.orthogonal_(decoder.weight)
            nn.init.zeros_(decoder.bias)
            return decoder, "orthonormal columns"
        matrix, offset = found
        inverse = _pseudo_inverse(matrix)
        decoder.weight.copy_(inverse)
        decoder.bias.copy_(-(inverse @ offset.double()))
    return decoder, "pseudo-inverse of its tower: the least-squares reconstruction"


def affine_part(module: nn.Module, features: int, width: int) -> tuple[Tensor, Tensor] | None:
    """``(W, b)`` with ``module(x) = W x + b`` for the flattened tower ``x``, or ``None`` if there is none.

    Args:
        module: the tower module ``(B, F_t, N) -> (B, O_t)``.
        features: ``F_t``.
        width: ``N``.

    Returns:
        ``W`` of shape ``(O_t, F_t*N)`` and ``b`` of shape ``(O_t,)``.
    """
    trial = copy.deepcopy(module).eval()  # a forward may count batches
    flat = features * width
    with torch.no_grad():
        offset = trial(torch.zeros(1, features, width))[0]
        matrix = (trial(torch.eye(flat).view(flat, features, width)) - offset).t()
        probes = torch.randn(_PROBES, flat)
        expected = trial(probes.view(_PROBES, features, width))
        error = (probes @ matrix.t() + offset - expected).abs().max()
        return (matrix, offset) if error <= _TOLERANCE * expected.abs().max().clamp(min=1.0) else None


def _pseudo_inverse(matrix: Tensor) -> Tensor:
    """``W+`` in double precision, by the smaller of ``W W^T`` and ``W^T W``: ``(F_t*N, O_t)``."""
    wide = matrix.double()
    rows, columns = wide.shape
    if rows <= columns:
        gram = wide @ wide.t()
        return wide.t() @ torch.linalg.pinv(gram, rtol=_RANK_TOLERANCE, hermitian=True)
    gram = wide.t() @ wide
    return torch.linalg.pinv(gram, rtol=_RANK_TOLERANCE, hermitian=True) @ wide.t()
