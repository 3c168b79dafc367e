"""The registry of torch's operations: how each treats dimensions that changed, and whether it keeps samples apart.

Tower modules change the number and the width of the feature vectors (streams), so the operations behind them see
dimensions of other sizes and meanings. Shape repair (:mod:`dmt_plugin.passes.resize`) asks here what each operation
makes of them; passes that cut a batch, or compute on other ranks' samples, ask whether that leaves results as they are.

1. An entry names functions, methods or layer types and describes the call as an einsum would
   (:mod:`dmt_plugin.passes.ops.dims`): from that follow the new dimensions of the result (forward), the sizes that its
   inputs must have for a wanted size (backward), and whether samples stay apart. An answer that does not follow from
   such a description is a function of its own. An operation without an entry is refused.
2. Files hold families of operations: ``pointwise``, ``products``, ``reductions``, ``norms``, ``attention``, ``joins``,
   ``splits``, ``views``, ``transposes``, ``indexing``, ``repeats``, ``triangles``, ``shapes``. To find one, search for
   its plain name, such as ``"topk"``.
3. To add one, enter it in the file of its family with what :mod:`dmt_plugin.passes.ops.registry` offers; a new file is
   listed in :mod:`dmt_plugin.passes.ops.queries`, which holds all that passes may ask.
"""
