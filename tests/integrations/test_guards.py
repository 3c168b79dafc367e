"""What cannot be trained with towers is refused by name, with its value, before anything starts."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from deepspeed.moe.layer import MoE
from deepspeed.pipe import PipelineModule
from torch import nn

import dmt_plugin
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed.arguments import guards

OPTIMIZER = {"type": "Adam", "params": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "3"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "True"),
        ({"fp16": {"enabled": "auto"}}, "fp16.enabled", "'auto'"),
        ({"bf16": {"enabled": "auto"}}, "bf16.enabled", "'auto'"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states", "True"),
        (
            {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
            "bf16.bf16_master_weights_and_grads",
            "True",
        ),
        (
            {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
            "data_types.grad_accum_dtype",
            "'fp32' with bf16 and zero_optimization.stage = 0",
        ),
        ({"data_types": {"grad_accum_dtype": "fp16"}}, "data_types.grad_accum_dtype", "'fp16'"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "torch_autocast.enabled", "True"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype", "'bf16'"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer.device",
            "'cpu'",
        ),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "zero_optimization.cpu_offload", "True"),
        ({"zero_optimization": {"stage": 2, "reduce_scatter": False}}, "zero_optimization.reduce_scatter", "False"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size", "2"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size", "2"),
        ({"expert_parallel": {"enabled": True}}, "expert_parallel.enabled", "True"),
        ({"hybrid_engine": {"enabled": True}}, "hybrid_engine.enabled", "True"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile", "True"),
        ({"sparse_gradients": True}, "sparse_gradients", "True"),
        (
            {"zero_optimization": {"stage": 1, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device",
            "'nvme'",
        ),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op", "'sum'"),
        ({"optimizer": {"type": "OneBitAdam"}}, "optimizer.type", "'OneBitAdam'"),
        ({"optimizer": {"type": "Muon"}}, "optimizer.type", "'Muon'"),
    ],
)
def test_a_configuration_is_refused_by_key_and_value(config, key, value):
    with pytest.raises(ConfigError) as caught:
        guards.check_config(DeepSpeedSettings(config))
    message = str(caught.value)
    assert f"{key} = {value}" in message
    assert '"enabled": false' in message, "the way out"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"optimizer": OPTIMIZER, "gradient_clipping": 1.0, "gradient_accumulation_steps": 4},
        {"zero_optimization": True},
        {"zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "none"}}},
        {"bf16": {"enabled": True}},
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 1}},
        {"fp16": {"enabled": False}, "bf16": {"enabled": False}, "compile": {"deepcompile": False}},
    ],
)
def test_what_works_is_let_through(config):
    guards.check_config(DeepSpeedSettings(config))


@pytest.mark.parametrize(
    ("config", "stage"), [({}, 0), ({"zero_optimization": True}, 1), ({"zero_optimization": {}}, 0)]
)
def test_the_stage(config, stage):
    assert DeepSpeedSettings(config).zero_stage == stage


def test_a_scheduler_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        scheduler = {"type": "WarmupLR", "params": {}}
        guards.say_exceptions(DeepSpeedSettings({"scheduler": scheduler, "gradient_clipping": 0.0}))
        guards.say_exceptions(DeepSpeedSettings({"gradient_clipping": 0.0}), lr_scheduler=lambda optimizer: None)
        guards.say_exceptions(DeepSpeedSettings({"gradient_clipping": 0.0}), lambda optimizer: None, constant=False)
    assert sum("dmt.lookup.lr" in record.getMessage() for record in caplog.records) == 2


def test_tables_that_follow_no_optimizer():
    guards.check_schedule("follow", DeepSpeedSettings({"optimizer": OPTIMIZER}), None)
    guards.check_schedule("follow", DeepSpeedSettings({}), lambda parameters: None)
    guards.check_schedule("constant", DeepSpeedSettings({}), None)
    with pytest.raises(ConfigError, match=r'dmt.lookup.schedule = "follow" without an optimizer'):
        guards.check_schedule("follow", DeepSpeedSettings({}), None)
    with pytest.raises(ConfigError, match="without an optimizer"):  # before anything is connected
        dmt_plugin.initialize(model=nn.Linear(2, 2), config={"dmt": {"lookup": {"schedule": "follow"}}})


def test_clipping_is_a_warning_also_when_it_is_the_default(caplog):
    with caplog.at_level(logging.WARNING):
        guards.say_exceptions(DeepSpeedSettings({"gradient_clipping": 0.0}))
        assert not caplog.records
        guards.say_exceptions(DeepSpeedSettings({}))
        guards.say_exceptions(DeepSpeedSettings({"gradient_clipping": 0.5}))
    first, second = (record.getMessage() for record in caplog.records)
    assert "gradient_clipping = 1.0, DeepSpeed's default," in first
    assert "gradient_clipping = 0.5 covers" in second


def call(model=None, optimizer=None, mpu=None, mesh_param=None):
    guards.check_call(nn.Linear(2, 2) if model is None else model, optimizer, mpu, mesh_param)


def test_arguments_of_the_call():
    call()
    call(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    with pytest.raises(ConfigError, match="model must be"):
        guards.check_call(None, None, None, None)
    with pytest.raises(ConfigError, match="mpu is given"):
        call(mpu=object())
    with pytest.raises(ConfigError, match=r"mesh_param = \(2, 2\)"):
        call(mesh_param=(2, 2))


def test_an_optimizer_on_the_flat_model():
    model = nn.Linear(2, 2)
    for kind in (torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad):  # the last has a state from the start
        optimizer = kind(model.parameters(), lr=1.0)
        call(model, optimizer=optimizer)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        with pytest.raises(ConfigError, match=r"lr_scheduler is a ConstantLR on the.*callable"):
            guards.check_call(model, optimizer, None, None, scheduler)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(ConfigError, match=r"optimizer is a Adagrad that has taken steps.*callable"):
        call(model, optimizer=optimizer)


def test_models_deepspeed_has_already_changed():
    stages = PipelineModule.__new__(PipelineModule)
    nn.Module.__init__(stages)
    with pytest.raises(ConfigError, match=r"model is a pipeline module.*plain nn.Module"):
        call(stages)
    experts = MoE.__new__(MoE)
    nn.Module.__init__(experts)
    with pytest.raises(ConfigError, match=r"MoE layer \(1\)"):
        call(nn.Sequential(nn.Linear(2, 2), experts))
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0
    with pytest.raises(ConfigError, match=r"weight was partitioned by deepspeed.zero.Init"):
        call(model)


FACTS = [
    guards.RankFacts(
        rank=rank,
        host=rank // 2,
        dense="abc",
        dense_count=4,
        groups=(4, -1),
        tower_count=1,
        tower_sizes=(10,),
        trainable=50,
    )
    for rank in range(4)
]


def changed(rank, **changes):
    return [dataclasses.replace(fact, **changes) if fact.rank == rank else fact for fact in FACTS]


def test_ranks_that_fit_each_other():
    guards.check_ranks(FACTS, DeepSpeedSettings({}))
    guards.check_ranks(FACTS, DeepSpeedSettings({"zero_optimization": {"stage": 2, "reduce_bucket_size": 10}}))


def test_ranks_that_do_not():
    with pytest.raises(ConfigError, match="ranks 0 and 3 do not have the same dense parameters"):
        guards.check_ranks(changed(3, dense="abd"), DeepSpeedSettings({}))
    with pytest.raises(ConfigError, match="ranks 0 and 2 have other optimizer groups"):
        guards.check_ranks(changed(2, groups=(4, 1, -1)), DeepSpeedSettings({}))
    with pytest.raises(ConfigError, match="ranks 2 and 3 of host 1"):
        guards.check_ranks(changed(3, tower_sizes=(11,)), DeepSpeedSettings({}))


def test_a_host_without_tower_parameters():
    facts = [dataclasses.replace(f, tower_sizes=(), tower_count=0) if f.host == 1 else f for f in FACTS]
    with pytest.raises(ConfigError, match=r"hosts \[1\] have no tower-module parameters.*hosts \[0\]"):
        guards.check_ranks(facts, DeepSpeedSettings({}))
    frozen = [dataclasses.replace(f, tower_sizes=()) for f in FACTS]
    with pytest.raises(ConfigError, match="requires_grad = False"):
        guards.check_ranks(frozen, DeepSpeedSettings({}))


@pytest.mark.parametrize(
    ("zero", "refused"),
    [
        ({"stage": 0}, False),
        ({"stage": 1, "reduce_bucket_size": 59}, False),
        ({"stage": 1, "reduce_bucket_size": 59, "overlap_comm": True}, True),
        ({"stage": 2, "reduce_bucket_size": 59}, True),
        ({"stage": 2, "reduce_bucket_size": 60}, False),
        ({"stage": 2}, False),
    ],
)
def test_the_bucket_trap(zero, refused):
    facts = [dataclasses.replace(f, tower_sizes=(20,), trainable=60) if f.host == 1 else f for f in FACTS]
    if not refused:
        guards.check_ranks(facts, DeepSpeedSettings({"zero_optimization": zero}))
        return
    with pytest.raises(ConfigError, match=r"reduce_bucket_size = 59.*at least 60"):
        guards.check_ranks(facts, DeepSpeedSettings({"zero_optimization": zero}))
