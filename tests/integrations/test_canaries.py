"""Names and habits of DeepSpeed that this integration relies on; a red test here says which one moved."""

from __future__ import annotations

import importlib
import inspect
from datetime import timedelta
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed import ops
from deepspeed.moe import utils as moe_utils
from deepspeed.moe.layer import MoE
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from deepspeed.runtime import bf16_optimizer, constants
from deepspeed.runtime import engine as ds_engine
from deepspeed.runtime import utils as ds_utils
from deepspeed.runtime.fp16 import fused_optimizer, unfused_optimizer
from deepspeed.runtime.zero import stage_1_and_2
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import groups as ds_groups

from dmt_plugin.config import deepspeed as deepspeed_settings
from dmt_plugin.integrations.deepspeed import DMTEngine, initialize, private
from dmt_plugin.integrations.deepspeed.initialize import EXPERT_TOPOLOGY_KEY

# `deepspeed.comm.torch` as an attribute is torch itself.
ds_comm_torch = importlib.import_module("deepspeed.comm.torch")


def names_in(function) -> set[str]:
    code = inspect.unwrap(function).__code__
    return set(code.co_names) | {c for c in code.co_consts if isinstance(c, str)}


def test_the_signature_is_that_of_deepspeed():
    ours = dict(inspect.signature(initialize).parameters)
    theirs = inspect.signature(deepspeed.initialize).parameters
    for name in ("example_batch", "weights", "table_init", "shares_from"):
        extra = ours.pop(name)
        assert extra.kind is extra.KEYWORD_ONLY and extra.default is None
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].kind is parameter.kind, name
        assert ours[name].default == parameter.default, name


def test_initialize_looks_the_engine_up_by_name_when_called():
    assert "DeepSpeedEngine" in names_in(deepspeed.initialize)
    assert deepspeed.initialize.__globals__ is vars(deepspeed)
    stock = deepspeed.DeepSpeedEngine
    with pytest.raises(ZeroDivisionError), private.engine_class(dict):
        assert deepspeed.DeepSpeedEngine is dict
        raise ZeroDivisionError
    assert deepspeed.DeepSpeedEngine is stock


def test_groups_are_made_in_one_place_without_a_limit(monkeypatch):
    assert list(inspect.signature(ds_comm_torch.TorchBackend.new_group).parameters) == ["self", "ranks"]
    limits = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda ranks, timeout=None: limits.append(timeout))
    backend = object.__new__(ds_comm_torch.TorchBackend)
    with pytest.raises(ZeroDivisionError), private.limited_waits(7):
        backend.new_group([0])
        raise ZeroDivisionError
    backend.new_group([0])
    assert limits == [timedelta(seconds=7), None]


def test_the_shared_memory_op_is_asked_for_by_name():
    assert {"__compatible_ops__", "ShareMemCommBuilder"} <= names_in(ds_comm_torch.build_shm_op)
    assert ShareMemCommBuilder.NAME == private.SHM_OP
    before = dict(vars(ops).get("__compatible_ops__", {}))
    with private.without_shm_build():
        assert ds_comm_torch.build_shm_op() is None
    assert dict(vars(ops).get("__compatible_ops__", {})) == before


def test_a_filled_op_table_is_left_as_it_was(monkeypatch):
    table = {private.SHM_OP: True, "other": True}
    monkeypatch.setattr(ops, "__compatible_ops__", table, raising=False)
    with private.without_shm_build():
        assert table == {private.SHM_OP: False, "other": True}
    assert table == {private.SHM_OP: True, "other": True}


def test_expert_groups():
    parameters = inspect.signature(ds_groups._create_expert_and_data_parallel).parameters
    assert "use_data_before_expert_parallel_" in parameters
    for name in ("_EXPERT_PARALLEL_GROUP", "_EXPERT_PARALLEL_GROUP_RANKS", "_EXPERT_DATA_PARALLEL_GROUP_RANKS"):
        assert isinstance(getattr(ds_groups, name), dict), name
    assert "ep_size_" in names_in(ds_groups._create_expert_and_data_parallel)


def test_the_configuration_key_for_data_before_experts():
    assert constants.USE_DATA_BEFORE_EXPERT_PARALLEL == EXPERT_TOPOLOGY_KEY


def test_what_makes_a_parameter_an_experts_parameter():
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert not moe_utils.is_moe_param(parameter)
    parameter.allreduce = False
    parameter.group_name = "ep_size_2"
    assert moe_utils.is_moe_param(parameter)
    groups = [{"params": [parameter], "name": "ep_size_2", "moe": True}]
    assert moe_utils.configure_moe_param_groups(groups) is groups, "groups marked 'moe' are taken as they are"
    assert "set_deepspeed_parallelism" in vars(MoE)


def test_methods_and_fields_that_the_engine_overrides_or_reads():
    engine = ds_engine.DeepSpeedEngine
    for name in ("step", "clip_fp32_gradients", "save_checkpoint", "load_checkpoint", "save_16bit_model", "compile"):
        assert callable(getattr(engine, name)), name
        assert getattr(DMTEngine, name) is not getattr(engine, name), name
    assert "clip_fp32_gradients" in names_in(engine._take_model_step)
    assert "_global_grad_norm" in names_in(engine.get_global_grad_norm)
    assert "global_steps" in names_in(engine._take_model_step)
    assert inspect.getsource(ds_engine).count("self._backward_epilogue()") == 2, "by backward() and by the tensor's own"
    for name in ("_backward_epilogue", "_configure_fp16_optimizer", "_do_optimizer_sanity_check"):
        assert callable(getattr(engine, name)) and name in vars(DMTEngine), name
    assert "_is_compiled" in names_in(engine.is_compiled.fget)
    keeper = unfused_optimizer.FP16_UnfusedOptimizer
    assert "unscale_and_clip_grads" in names_in(keeper.step) and "fp16_groups" in names_in(keeper.step)
    assert "_global_grad_norm" in names_in(keeper.step)
    assert "_step_applied" in names_in(engine.was_step_applied)
    assert "has_moe_layers" in names_in(engine._configure_distributed_model)


def test_zero_rebuilds_adagrad_from_its_flat_partitions():
    source = inspect.getsource(stage_1_and_2.DeepSpeedZeroOptimizer)
    assert "torch.optim.Adagrad(self.single_partition_of_fp32_groups, **self.optimizer.defaults)" in source
    assert "_configure_zero_optimizer" in names_in(ds_engine.DeepSpeedEngine._configure_optimizer)


def test_where_deepspeed_looks_for_experts():
    assert "deepspeed_moe.experts.deepspeed_experts" in inspect.getsource(ds_engine)


def test_buckets_are_flushed_in_hook_order_by_size():
    source = inspect.getsource(stage_1_and_2.DeepSpeedZeroOptimizer)
    assert "bucket.elements + param.numel() > self.reduce_bucket_size" in source


def test_defaults_that_are_repeated_here():
    assert constants.GRADIENT_CLIPPING_DEFAULT == deepspeed_settings.DEFAULT_CLIPPING
    assert DeepSpeedZeroConfig().reduce_bucket_size == deepspeed_settings.DEFAULT_BUCKET
    assert DeepSpeedZeroConfig(stage=2).overlap_comm is False


OUR_ARGUMENTS = {"save_checkpoint": ("asynchronous",), "load_checkpoint": ("changes",), "save_16bit_model": ()}
"""Arguments that the engine has beside DeepSpeed's, by method: by keyword only, so that a new one of DeepSpeed does not
meet them."""


def test_signatures_of_checkpoints_are_those_of_deepspeed():
    for name in ("save_checkpoint", "load_checkpoint", "save_16bit_model"):
        ours = inspect.signature(getattr(DMTEngine, name)).parameters
        theirs = inspect.signature(getattr(ds_engine.DeepSpeedEngine, name)).parameters
        assert [key for key in ours if key not in OUR_ARGUMENTS[name]] == list(theirs), name
        for key in OUR_ARGUMENTS[name]:
            assert ours[key].kind is inspect.Parameter.KEYWORD_ONLY, (name, key)
        for key, parameter in theirs.items():
            if key != "client_state":  # theirs is one dict that all calls share
                assert ours[key].default == parameter.default, (name, key)


def test_where_optimizers_keep_parameters():
    """What ``private.optimizer_layout`` reads; that it reads it rightly is shown by runs that are resumed."""
    for kind, names in (
        (
            stage_1_and_2.DeepSpeedZeroOptimizer,
            (
                "round_robin_bit16_groups", "round_robin_bit16_offsets", "single_partition_of_fp32_groups",
                "real_dp_process_group",
            ),
        ),
        (bf16_optimizer.BF16_Optimizer, ("bf16_groups", "fp32_groups_flat_partition", "real_dp_process_group")),
        (fused_optimizer.FP16_Optimizer, ("fp16_groups", "fp32_groups_flat")),
        (unfused_optimizer.FP16_UnfusedOptimizer, ("fp16_groups", "fp32_groups")),
    ):  # fmt: skip
        source = inspect.getsource(kind)
        for name in ("optimizer", *names):
            assert f"self.{name} = " in source, (kind.__name__, name)
    for kind in (stage_1_and_2.DeepSpeedZeroOptimizer, bf16_optimizer.BF16_Optimizer):
        assert "_hp_optimizer_states_linked" in names_in(kind._lazy_init_hp_params_optimizer_state)


def test_optimizers_ask_one_place_whether_a_gradient_overflowed():
    zero = stage_1_and_2.DeepSpeedZeroOptimizer
    assert {"check_grad_overflow", "check_overflow"} <= names_in(zero.step)
    assert "_check_overflow" in names_in(zero.check_overflow) and "has_overflow" in names_in(zero._check_overflow)
    assert "averaged_gradients" in names_in(zero.has_overflow_partitioned_grads_serial)
    bf16 = bf16_optimizer.BF16_Optimizer
    assert {"overflow", "clear_hp_grads", "clear_lp_grads"} <= names_in(bf16.step)
    assert "fp32_groups_gradient_flat_partition" in inspect.getsource(bf16.step)
    for kind in (fused_optimizer.FP16_Optimizer, unfused_optimizer.FP16_UnfusedOptimizer):
        assert "overflow_checker" in names_in(kind.step), kind
    assert "has_overflow" in names_in(ds_utils.CheckOverflow.check)
    found = inspect.signature(ds_utils.CheckOverflow.has_overflow).parameters
    assert list(found) == ["self", "params", "has_moe_params"]
    assert {"overflow", "_step_applied", "skipped_steps"} <= names_in(ds_engine.DeepSpeedEngine._take_model_step)


def test_counters_of_the_engine():
    source = inspect.getsource(ds_engine.DeepSpeedEngine.__init__)
    for name in ("global_steps", "global_samples", "skipped_steps", "micro_steps"):
        assert f"self.{name} = 0" in source, name


def test_private_names_stay_in_their_file():
    folder = Path(inspect.getfile(private)).parent
    for name in (
        "_EXPERT_PARALLEL_GROUP",
        "_create_expert_and_data_parallel",
        "__compatible_ops__",
        "deepspeed_shm_comm",
        "single_partition_of_fp32_groups",
        "round_robin_bit16",
        "fp32_groups_flat",
        "_hp_optimizer_states_linked",
    ):
        users = sorted(path.name for path in folder.rglob("*.py") if name in path.read_text())
        assert users == ["private.py"], name
    users = sorted(path.name for path in folder.rglob("*.py") if "._global_grad_norm" in path.read_text())
    assert users == ["gradient_norm.py"]
