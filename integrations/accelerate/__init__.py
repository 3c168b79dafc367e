"""Towers under Accelerate and the trainers built on it: Hugging Face's ``Trainer`` prepares its model in the same way.

``Accelerator.prepare`` calls ``deepspeed.initialize(model=..., config_params=..., ...)`` itself, where the
configuration is the one of its ``DeepSpeedPlugin``. Inside :func:`towers`:

1. that call is ours, which hands everything on to DeepSpeed's where there is no "dmt" section;
2. it gets the example batch, which Accelerate has no argument for;
3. Accelerate, which wants to replace every ``"auto"`` of a configuration by a value of its own, and stops at one it
   does not know, leaves the "dmt" section alone: there "auto" is a value;
4. DeepSpeed's communication starts without compiling for a minute, as it does with ``dmt_plugin.initialize``.

From then on, ``Accelerator.get_state_dict`` of such a model, by which the ``Trainer`` saves it too, is on the main
process the state of the whole model, gathered from all ranks, and None on the others, as it is under ZeRO 3; stock
Accelerate would take what this rank holds, without tables, for it.

The optimizer comes from the configuration (``accelerate.utils.DummyOptim`` stands for it in the script, as always with
Accelerate; the ``Trainer`` does so by itself), or is one on the flat model, in place of which one like it is built.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch.distributed as dist

from dmt_plugin.checkpoint import gather_state
from dmt_plugin.core.errors import DMTError
from dmt_plugin.integrations.deepspeed import initialize, private
from dmt_plugin.topology.agreement import gather

logger = logging.getLogger(__name__)

SECTION = "dmt"


@contextmanager
def towers(
    *, example_batch: Any = None, weights: Any = None, table_init: Any = None, shares_from: Any = None
) -> Iterator[None]:
    """Let what Accelerate prepares in the ``with`` block become a tower-decomposed model.

    ::

        with towers(example_batch=batch):
            accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config="ds.json"))
            model, optimizer, loader = accelerator.prepare(model, DummyOptim(model.parameters()), loader)

    or, with a ``transformers.Trainer``, around the making of its ``TrainingArguments`` (which start DeepSpeed's
    communication) and of itself, and ``trainer.train()``. Without a "dmt" section, or with
    ``"enabled": false``, nothing changes.

    Args:
        example_batch: A call of the model, see :func:`dmt_plugin.initialize`. Not needed where
            ``dmt.transform.example_batch`` names one.
        weights: What tables start from, see :func:`dmt_plugin.initialize`.
        table_init: Makes rows of tables that are on meta, see there.
        shares_from: Batches to count distinct rows on, see there.

    Raises:
        DMTError: Accelerate is not installed, or has no longer what is needed here.
    """
    plugin = _plugin_class()
    _gather_state_dicts()
    stock_initialize, stock_fill = deepspeed.initialize, plugin.fill_match

    def with_example(*args: Any, **kwargs: Any) -> Any:
        own = {"example_batch": example_batch, "weights": weights, "table_init": table_init, "shares_from": shares_from}
        results = initialize(*args, **{**own, **kwargs})
        _say_uncounted_ranks()
        return results

    deepspeed.initialize = with_example
    plugin.fill_match = _sparing(stock_fill)
    try:
        with private.without_shm_build():
            yield
    finally:
        deepspeed.initialize = stock_initialize
        plugin.fill_match = stock_fill


def _say_uncounted_ranks() -> None:
    """Accelerate knows no ranks where there is no accelerator, and then deals out no data: that must be seen."""
    from accelerate import PartialState

    counted, ranks = PartialState().num_processes, dist.get_world_size()
    if counted != ranks and dist.get_rank() == 0:
        logger.warning(
            "Accelerate counts %d process(es), but there are %d ranks (without an accelerator it does not use "
            "DeepSpeed's): it deals no data out to them and gathers nothing. Give each rank's loader its own "
            "samples, for example with a DistributedSampler.",
            counted,
            ranks,
        )


def _gather_state_dicts() -> None:
    """Accelerate's state of an engine becomes the whole model's, for good: the engine outlives the block."""
    from accelerate import Accelerator

    stock = Accelerator.get_state_dict
    if getattr(stock, "gathers_towers", False):
        return

    @functools.wraps(stock)
    def get_state_dict(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        state = getattr(model, "dmt", None)
        if state is None:
            return stock(self, model, *args, **kwargs)
        saves = gather(state.groups, bool(self.is_main_process), "gathering the trained model")
        return gather_state(state.placed, state.groups, [rank for rank, main in enumerate(saves) if main])

    get_state_dict.gathers_towers = True  # type: ignore[attr-defined]
    Accelerator.get_state_dict = get_state_dict


def _plugin_class() -> Any:
    try:
        from accelerate import DeepSpeedPlugin
    except ImportError as error:
        raise DMTError(
            "dmt_plugin.integrations.accelerate needs Accelerate, which is not installed: pip install accelerate"
        ) from error
    if not hasattr(DeepSpeedPlugin, "fill_match"):
        raise DMTError(
            "this version of Accelerate has no DeepSpeedPlugin.fill_match, through which it would change the "
            '"dmt" section; expected one such as 1.15. Install that, or use dmt_plugin.initialize'
        )
    return DeepSpeedPlugin


def _sparing(fill_match: Callable[..., Any]) -> Callable[..., Any]:
    """``fill_match`` that leaves the "dmt" section as it is."""

    def fill(self: Any, ds_key_long: str, *args: Any, **kwargs: Any) -> Any:
        if ds_key_long.split(".")[0] == SECTION:
            return None
        return fill_match(self, ds_key_long, *args, **kwargs)

    return fill
