"""fx passes: one file per pass; :mod:`dmt_plugin.passes.base` says what a pass is, ``pipeline`` lists them."""
