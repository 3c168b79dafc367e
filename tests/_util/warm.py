"""What ranks would spend seconds on importing, each for itself; the server that they are forked from imports it once.

1. The package and what it imports when it is used: the engine, both lookups, the modules that stock DeepSpeed imports
   within ``initialize`` (among them one that compiles at import, and so brings all of torch's compiler).
2. What is absent here (torchrec and fbgemm are optional) is left to the rank, which says so by itself.
3. Nothing is called, no thread is started: a rank finds modules as an import leaves them.
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
    "torchrec",
)

gc.disable()
for _name in MODULES:
    with suppress(Exception):
        import_module(_name)
gc.collect()
gc.freeze()
gc.enable()
