"""A marker that a user may put into forward: these tensors are the embeddings of a group.

:func:`mark_embeddings` gives back what it is given: in eager mode, under ``torch.compile``
and under ``torch.export`` it is nothing. Under a torch.fx tracer it is one node, which
:mod:`dmt_plugin.passes.logical.read_marks` reads and removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, fx

Embeddings = TypeVar("Embeddings", Tensor, list[Tensor], tuple[Tensor, ...])


def mark_embeddings(name: str, embeddings: Embeddings, keys: Sequence[str] | None = None) -> Embeddings:
    """Says that ``embeddings`` are one group of features. Computes nothing.

    Args:
        name: what the group is called.
        embeddings: the vectors before they are joined: ``(B, F, N)``, or one tensor
            ``(B, N)`` or ``(B, 1, N)`` per feature.
        keys: the names of the features, in order; they appear in plans and reports in
            place of the tables' names.

    Returns:
        ``embeddings`` itself.

    Raises:
        ValueError: the number of keys is not that of the features, or one is there twice.
    """
    items: list[Any] = list(embeddings) if isinstance(embeddings, (list, tuple)) else [embeddings]
    proxy = next((item for item in items if isinstance(item, fx.Proxy)), None)
    if proxy is not None:
        own = None if keys is None else list(keys)
        marked: Any = proxy.tracer.create_proxy("call_function", mark_embeddings, (name, embeddings, own), {})
        if isinstance(embeddings, list):
            return [marked[i] for i in range(len(items))]
        return tuple(marked[i] for i in range(len(items))) if isinstance(embeddings, tuple) else marked
    if keys is not None:
        count = embeddings.shape[1] if isinstance(embeddings, Tensor) and embeddings.dim() == 3 else len(items)
        if len(keys) != count:
            raise ValueError(f"mark_embeddings({name!r}): {len(keys)} keys for {count} feature(s)")
        if len(set(keys)) != len(keys):
            raise ValueError(f"mark_embeddings({name!r}): a key is there twice in {list(keys)}")
    return embeddings
