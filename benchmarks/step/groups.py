"""Process groups that variants share, so that thirty variants do not cost the threads of thirty.

Every gloo group has a thread that wakes a hundred times a second, also while its variant is not in turn. Variants are
never in step at the same time, so:

1. while a variant is built, each ``torch.distributed.new_group`` is counted: the how-manieth of its ranks and options;
2. the first variant that asks for it has it made, the others get the same group.

Within a variant no two groups become one, and what it would have to itself alone it still has. All ranks build the same
variants in the same order, so they agree on which groups are there already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


class SharedGroups:
    """Groups made so far."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Any] = {}

    @contextmanager
    def one_variant(self) -> Iterator[None]:
        """Build one variant inside the ``with`` block."""
        stock: Callable[..., Any] = dist.new_group
        asked: Counter[tuple[Any, ...]] = Counter()

        def new_group(ranks: Any = None, *args: Any, **options: Any) -> Any:
            wanted = (None if ranks is None else tuple(ranks), str(args), str(sorted(options.items(), key=str)))
            key = (*wanted, asked[wanted])
            asked[wanted] += 1
            if key not in self._made:
                self._made[key] = stock(ranks, *args, **options)
            return self._made[key]

        dist.new_group = new_group
        try:
            yield
        finally:
            dist.new_group = stock
