"""The "dmt" section of a DeepSpeed configuration."""

from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config

__all__ = ["DMTConfig", "load_ds_config", "read_dmt_config"]
