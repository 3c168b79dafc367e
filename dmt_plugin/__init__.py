"""Disaggregated Multi-Tower as a DeepSpeed plugin."""
