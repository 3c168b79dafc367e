"""TorchRec's wire formats by the names used here, and what it needs to run them."""

from __future__ import annotations

from typing import Any

import torch

FORMATS = ("fp32", "fp16", "int8")


def codecs(precision: str, reductions: bool = True) -> dict[str, Any] | None:
    """Codecs of TorchRec's exchanges of rows and of gradients; None for fp32, which needs none.

    Args:
        precision: one of ``FORMATS``.
        reductions: whether the reduce-scatter of row-wise plans has one too; int8's stops in it.

    int8 is TorchRec's own row-wise one, with rows of 32 entries. (bf16 would silently be fp16 on gloo.)
    """
    from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
    from torchrec.distributed.types import CommOp

    if precision not in FORMATS:
        raise ValueError(f"wire precision {precision!r}; expected one of {', '.join(FORMATS)}")
    kind = CommType(precision)
    found = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=kind, backward_precision=kind), device=torch.device("cpu")
    )
    if found and not reductions:
        del found[CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER.name]
    return found
