"""What ranks would spend seconds on importing, each for itself; the server that they are forked from imports it once.

1. The package and what it imports when it is used: the engine, both lookups, the modules that stock DeepSpeed imports
   within ``initialize`` (among them one that compiles at import, and so brings all of torch's compiler).
2. What is absent here (torchrec and fbgemm are optional) is left to the rank, which says so by itself.
3. One small model is captured, so that PyTorch's tables of what operations give are filled. Nothing else is called, no
   thread is started, and random numbers are as they were.
4. The garbage collector rests meanwhile, and then leaves these objects alone; its first walk in a fork would copy all
   of their pages.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

MODULES = (
    "torch.distributed",
    "torch._inductor.compile_fx",
    "torch.profiler",
    "dmt_plugin.api",
    "dmt_plugin.compiler",
    "dmt_plugin.checkpoint",
    "dmt_plugin.integrations.deepspeed",
    "dmt_plugin.nn.lookup.fbgemm",
    "dmt_plugin.metrics",
    "dmt_plugin.report.explain.explanation",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "fbgemm_gpu.split_table_batched_embeddings_ops_training",
    "deepspeed.utils.pin_memory",
    "torchrec",
    "einops.layers.torch",
    "pytest",
    "tests.zoo.catalogue",
)



def _capture() -> None:
    import torch

    from dmt_plugin.capture import ExampleBatch, capture
    from tests.zoo.models import ZOO

    with torch.random.fork_rng(devices=[]):
        model, batch = ZOO["dlrm"]()
        capture(model, ExampleBatch(batch(5, 0)))


gc.disable()
for _name in MODULES:
    with suppress(Exception):
        import_module(_name)
with suppress(Exception):
    _capture()
gc.collect()
gc.freeze()
gc.enable()
