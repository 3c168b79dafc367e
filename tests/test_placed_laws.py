"""What runs on many ranks under DeepSpeed is the single-process logical graph.

Three optimizer steps on 1x2, 2x1 and 2x2, ZeRO 0, 1, 2, with and without tower modules, and
with towers behind which the model keeps its shapes (a decoder is a dense layer as any other):
outputs, every dense, tower and table parameter. Tolerance: 2e-6 on values of order one
(fp32; sums over ranks are added in another order). Tables and dense parameters are trained by
SGD, so that an error in a gradient shows at its own size, and by Adagrad in the models whose
gradients do not cancel: Adagrad's first step is the gradient's sign, and would blow rounding up. Those keep
the dot interaction as it is written, whose gradient is added up as in the single process; the others have
the faster one.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.models import TIED, ZOO

TOLERANCE = 2e-6
STEPS = 3
LOCAL = 4

VARIANTS: dict[str, dict[str, Any]] = {
    "sptt": {"towers": {"module": "none"}},
    "tower modules": {"towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 4}},
    "flat route": {"towers": {"module": "dcn"}, "comm": {"route": "flat"}},
}

FORMS: dict[str, dict[str, Any]] = {
    "decoder": {"transform": {"on_unsupported": "decoder"}, "towers": {"overrides": {"1": {"p": 1}}}},
    "preserve": {"transform": {"on_unsupported": "preserve"}},
}
FORM_CASES = {"2x2": (("decoder", 1), ("decoder", 2), ("preserve", 0)), "2x1": (("decoder", 0),), "1x2": ()}
"""Towers that keep the shapes behind them, and ZeRO stages."""

PLACEMENTS: dict[str, dict[str, Any]] = {
    "row ranges": {"placement": {"strategy": "row_wise"}},
    "column ranges": {"placement": {"strategy": "column_wise"}, "comm": {"route": "flat"}},
    "mixed": {
        "placement": {
            "strategy": "row_wise",
            "overrides": {"bags.field_1": "column_wise", "bags.field_2": "table_wise"},
        },
        "towers": {"module": "none"},
    },
}
PLACEMENT_CASES = (
    ("multi_hot_dlrm", "mixed", 1, "fbgemm"),
    ("multi_hot_dlrm", "row ranges", 0, "torch"),
    ("dlrm", "row ranges", 2, "fbgemm"),
    ("dlrm", "column ranges", 1, "torch"),
)
"""Divided tables on 2x2, with ZeRO stages and backends."""

ONCE: dict[str, dict[str, Any]] = {
    "once": {"towers": {"module": "none"}, "comm": {"dedup": "on"}},
    "once per rank": {"towers": {"module": "dcn"}, "comm": {"dedup": "on", "route": "flat"}},
    "once and mixed": {"towers": {"module": "dlrm", "c": 1, "p": 1}, "comm": {"dedup": "on"}},
    "once, towers at samples": {"towers": {"module": "dcn"}, "comm": {"dedup_features": {"*": "on"}}},
    "once in ranges": {
        "towers": {"module": "none"}, "placement": {"strategy": "row_wise"},
        "comm": {"dedup": "on", "dedup_features": {"*1*": "off"}},
    },
    "for every id": {"towers": {"module": "none"}, "comm": {"dedup": "off"}},
}  # fmt: skip
ONCE_CASES = {
    "2x2": (
        ("dlrm", "once", 1, "fbgemm"),
        ("multi_hot_dlrm", "once in ranges", 2, "torch"),
        ("multi_hot_dlrm", "once", 0, "fbgemm"),
        ("deepctr_deepfm_sequence", "once", 2, "fbgemm"),
        ("torchrec_dlrm", "once per rank", 1, "torch"),
        ("joint_dlrm", "once in ranges", 1, "fbgemm"),
        ("dlrm_mixed_dims", "once", 2, "torch"),
        ("dlrm", "once and mixed", 1, "fbgemm"),
        ("deepfm", "once and mixed", 0, "torch"),
        ("dlrm", "once, towers at samples", 2, "fbgemm"),
    ),
    "2x1": (("dlrm", "once", 0, "fbgemm"), ("dlrm_qr_mult", "once", 2, "torch")),
    "1x2": (("multi_hot_dlrm", "once per rank", 1, "fbgemm"),),
}
"""Rows that travel once per host or rank, with ZeRO stages and backends."""

LOOKUPS = ("deepctr_deepfm_sequence", "dlrm_mixed_dims", "dlrm_qr_mult", "joint_dlrm")
LOOKUP_CASES = {"2x2": (("tower modules", 1), ("sptt", 2)), "2x1": (("tower modules", 0),), "1x2": (("sptt", 1),)}
"""A pooled sequence, projected widths, quotient and remainder tables, a joint table; with ZeRO stages."""

CONSTRUCTS = ("k_bias_row", "k_joint_and_sequence", "k_first")
CONSTRUCT_CASES: dict[str, tuple[tuple[str, str, int, str], ...]] = {
    "2x2": (("k_bias_row", "tower modules", 1, "torch"), ("k_joint_and_sequence", "once", 2, "fbgemm")),
    "2x1": (("k_bias_row", "tower modules", 2, "fbgemm"), ("k_first", "tower modules", 0, "torch")),
    "1x2": (("k_bias_row", "once per rank", 0, "torch"),),
}
"""Parameters for one feature alone, joins of several kinds, a vector read back by its place; with ZeRO stages."""

SEQUENCES = ("seq_by_position", "seq_din", "seq_hstu", "seq_list", "seq_mean", "seq_two_batch_sizes")
SEQUENCE_CASES: dict[str, tuple[tuple[str, str, int, str], ...]] = {
    "2x2": (
        ("seq_din", "once", 1, "fbgemm"), ("seq_hstu", "for every id", 2, "torch"),
        ("seq_list", "once in ranges", 0, "fbgemm"), ("seq_din", "tower modules", 2, "torch"),
        ("seq_by_position", "once in ranges", 1, "fbgemm"),
    ),
    "2x1": (("seq_two_batch_sizes", "tower modules", 1, "torch"), ("seq_hstu", "sptt", 0, "fbgemm")),
    "1x2": (("seq_mean", "once per rank", 1, "fbgemm"),),
}  # fmt: skip
"""Sequences whose rows travel by id; with ZeRO stages and backends."""

BY_ID: dict[str, dict[str, Any]] = {
    f"by id, {strategy}, {dedup}": {
        "towers": {"module": "none"}, "placement": {"strategy": strategy}, "comm": {"dedup": dedup},
    }
    for strategy in ("table_wise", "row_wise", "column_wise")
    for dedup in ("on", "off")
}  # fmt: skip
"""Ways of rows by id: wherever their tables are, once or for every id."""

POOLED_CASES: dict[str, tuple[tuple[str, str, int, str], ...]] = {
    "2x2": (("tr_regroup_module", "tower modules", 1, "fbgemm"), ("tr_permute_multi", "once", 2, "torch")),
    "2x1": (
        ("tr_regroup", "tower modules", 0, "torch"), ("tr_regroup_two_collections", "once", 1, "fbgemm"),
        ("tr_regroup_as_dict", "once", 0, "torch"), ("tr_permute_pooled", "sptt", 1, "fbgemm"),
        ("tr_merged_dicts", "tower modules", 2, "fbgemm"), ("tr_made_in_forward", "once", 1, "fbgemm"),
        ("tr_keyed_input", "tower modules", 1, "fbgemm"),
    ),
    "1x2": (("tr_split_jagged", "once per rank", 1, "torch"),),
}  # fmt: skip
"""torchrec's pooled embeddings, regrouped, merged and fed in the ways of its users; with ZeRO stages and backends."""

MORE_POOLED_CASES = (
    ("tr_regroup_module", "once", 2, "torch"), ("tr_regroup_dense", "tower modules", 1, "torch"),
    ("tr_permute_multi", "tower modules", 1, "torch"), ("tr_regroup_kts", "sptt", 0, "torch"),
    ("tr_merged_dicts", "once", 0, "torch"), ("tr_made_of_matrix", "tower modules", 0, "torch"),
    ("tr_joined", "once", 2, "torch"), ("tr_of_fields", "once", 0, "torch"),
)  # fmt: skip

POOLED = {name for cases in (*POOLED_CASES.values(), MORE_POOLED_CASES) for name, *_ in cases}
MODELS = {**ZOO, **TIED, **{name: CATALOGUE[name].build for name in (*LOOKUPS, *CONSTRUCTS, *SEQUENCES, *POOLED)}}


def prepared(model: nn.Module) -> nn.Module:
    """No dropout (ranks draw other numbers than one process), and embeddings of ordinary size."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.weight.data.mul_(0.3)
    return model


def labels(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)).float()


def loss_of(out: torch.Tensor, seed: int) -> torch.Tensor:
    out = out.reshape(-1)
    return nn.functional.binary_cross_entropy_with_logits(out, labels(len(out), seed))


ADAGRAD = ("dlrm", "torchrec_dlrm")
EPS = 1e-4
"""Of Adagrad. A gradient far below it moves nothing; far below 1e-8, the usual one, what rounding leaves of a sum that
cancels would be a step of its own, another one on every processor."""
DENSE_ADAGRAD: dict[str, Any] = {"type": "Adagrad", "params": {"lr": 0.01, "eps": EPS}}
DENSE_SGD: dict[str, Any] = {"type": "SGD", "params": {"lr": 0.05}}


def rule_of(name: str) -> dict[str, Any]:
    if name in ADAGRAD:
        return {"optimizer": "adagrad", "lr": 0.1, "eps": EPS}
    return {"optimizer": "sgd", "lr": 0.5}


def section(name: str, variant: dict[str, Any], topology: str, backend: str) -> dict[str, Any]:
    made = {
        **copy.deepcopy(variant),
        "topology": dataclasses.asdict(Topology.parse(topology)),
        "lookup": {**rule_of(name), "backend": backend},
    }
    if name in ADAGRAD:  # one entry of a table has a gradient of 1e-7 beside 1e-3: Adagrad makes 3e-6 of 4e-11 there
        made["transform"] = {**made.get("transform", {}), "faster_dot": False}
    return made


def batch_size(step: int, rank: int) -> int:
    """Unequal over ranks in one step, as the last batch of an epoch is."""
    return LOCAL + (rank if step == 1 else 0)


def dense_rule(parameters: list[nn.Parameter], name: str) -> torch.optim.Optimizer:
    chosen = DENSE_ADAGRAD if name in ADAGRAD else DENSE_SGD
    return getattr(torch.optim, chosen["type"])(parameters, **chosen["params"])


def table_rule(parameters: list[nn.Parameter], name: str) -> torch.optim.Optimizer:
    rule = rule_of(name)
    if rule["optimizer"] == "adagrad":
        return torch.optim.Adagrad(parameters, lr=rule["lr"], eps=rule["eps"])
    return torch.optim.SGD(parameters, lr=rule["lr"])


def single_process(name: str, dmt: dict[str, Any], topology: str, world: int) -> tuple[list[Any], dict[str, Any]]:
    from dmt_plugin.compiler import transform

    torch.manual_seed(0)
    flat, batch = MODELS[name]()
    model = transform(prepared(flat), batch(5, 0), {"dmt": dmt}, topology).train()
    tables = {t.parameter for t in model.plan.tables}
    named = dict(model.named_parameters())
    optimizers = [
        dense_rule([p for n, p in named.items() if n not in tables], name),
        table_rule([p for n, p in named.items() if n in tables], name),
    ]
    outputs = []
    for step in range(STEPS):
        model.zero_grad()
        parts = []
        for rank in range(world):
            seed = 100 * step + rank
            out = model(*batch(batch_size(step, rank), seed))
            parts.append(loss_of(out, seed))
            outputs.append(out.detach().reshape(-1))
        (sum(parts) / world).backward()
        for optimizer in optimizers:
            optimizer.step()
    return outputs, {n: p.detach().clone() for n, p in model.named_parameters()}


def train(name: str, dmt: dict[str, Any], stage: int, rank: int) -> tuple[list[Any], dict[str, Any]]:
    import dmt_plugin
    from dmt_plugin.checkpoint import gather_state

    torch.manual_seed(0 if rank == 0 else 1000 + rank)  # other ranks start from rank 0's weights
    flat, batch = MODELS[name]()
    config = {
        "train_micro_batch_size_per_gpu": LOCAL,
        "optimizer": DENSE_ADAGRAD if name in ADAGRAD else DENSE_SGD,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "dmt": dmt,
    }
    engine, *_ = dmt_plugin.initialize(
        model=prepared(flat), model_parameters=None, config=config, example_batch=batch(5, 0)
    )
    outputs = []
    for step in range(STEPS):
        seed = 100 * step + rank
        out = engine(*batch(batch_size(step, rank), seed))
        engine.backward(loss_of(out, seed))
        engine.step()
        outputs.append(out.detach().reshape(-1))
    state = gather_state(engine.dmt.placed, engine.dmt.groups)
    engine.destroy()
    return outputs, state


def compare(rank: int, world: int, topology: str, cases: list[Case]) -> list[str]:
    """Trains every case on all ranks; rank 0 also trains the single process and lists what differs."""
    wrong = []
    for name, variant, stage, backend in cases:
        dmt = section(name, {**VARIANTS, **FORMS, **PLACEMENTS, **ONCE, **BY_ID}[variant], topology, backend)
        outputs, state = train(name, dmt, stage, rank)
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, outputs)
        if rank > 0:
            continue
        expected_outputs, expected = single_process(name, dmt, topology, world)
        case = f"{topology} {name} {variant} ZeRO {stage} {backend}"
        for step, source in itertools.product(range(STEPS), range(world)):
            worst = float((everyone[source][step] - expected_outputs[step * world + source]).abs().max())
            if not worst <= TOLERANCE:
                wrong.append(f"{case}: output of step {step} on rank {source} differs by {worst:.2e}")
        for key, value in expected.items():
            worst = float((state[key] - value).abs().max())
            if not worst <= TOLERANCE:
                wrong.append(f"{case}: {key} differs by {worst:.2e}")
    return wrong


def launcher_env(topology: str, rank: int) -> dict[str, str]:
    machines = Topology.parse(topology).by_machine
    hosts, lanes = machines.hosts, machines.ranks_per_host
    return {
        "RANK": str(rank), "WORLD_SIZE": str(hosts * lanes), "LOCAL_RANK": str(rank % lanes),
        "LOCAL_SIZE": str(lanes), "CROSS_RANK": str(rank // lanes), "CROSS_SIZE": str(hosts),
        "DS_ACCELERATOR": "cpu",
    }  # fmt: skip


TOPOLOGIES = ("1x2", "2x1", "2x2")


Case = tuple[str, str, int, str]
"""Model, variant, ZeRO stage, backend of the lookups."""


def backend_of(stage: int, turn: int = 1) -> str:
    return "torch" if (stage + turn) % 3 == 0 else "fbgemm"


def products(names: list[str], topology: str) -> list[Case]:
    """Every model at every stage and in every variant: on each topology a third that has all pairs; together all."""
    turn = TOPOLOGIES.index(topology)
    factors = itertools.product(enumerate(names), (0, 1, 2), enumerate(VARIANTS))
    return [
        (name, variant, stage, backend_of(stage, turn))
        for (n, name), stage, (i, variant) in factors
        if (n + stage + i) % 3 == turn
    ]


def shown_in_every_run(names: list[str], topology: str) -> list[Case]:
    """Of those, two of a model on 2x2 and one on each of the others: it is shown at each stage and in each variant."""
    stages = {"2x2": (1, 2), "2x1": (0,), "1x2": (1,)}[topology]
    return [case for case in products(names, topology) if (case[2] - names.index(case[0])) % 3 in stages]


def lookups(topology: str) -> list[Case]:
    return [
        (name, variant, stage, backend_of(stage, 2))
        for name, (variant, stage) in itertools.product(LOOKUPS, LOOKUP_CASES[topology])
    ]


def cases_for(topology: str) -> list[Case]:
    """What every run of the tests shows on this topology."""
    of_lookups = lookups(topology)
    if topology == "2x2":  # every other lookup in the one way and in the other
        of_lookups = of_lookups[::4] + of_lookups[3::4]
    return [
        *shown_in_every_run(sorted(ZOO), topology),
        *(PLACEMENT_CASES if topology == "2x2" else ()),
        *ONCE_CASES[topology],
        *CONSTRUCT_CASES[topology],
        *SEQUENCE_CASES[topology],
        *POOLED_CASES[topology],
        *(
            (name, form, stage, backend_of(stage, 2))
            for name, (form, stage) in itertools.product(sorted(TIED), FORM_CASES[topology])
        ),
        *of_lookups,
    ]


def test_each_model_is_shown_at_each_stage_and_in_each_variant() -> None:
    names = sorted(ZOO)
    shown = {t: shown_in_every_run(names, t) for t in TOPOLOGIES}
    everywhere = list(itertools.chain.from_iterable(shown.values()))
    assert {(name, stage) for name, _, stage, _ in everywhere} == set(itertools.product(names, (0, 1, 2)))
    assert {(name, variant) for name, variant, *_ in everywhere} == set(itertools.product(names, VARIANTS))
    for cases in shown.values():
        assert {name for name, *_ in cases} == set(names)
        assert {variant for _, variant, *_ in cases} == set(VARIANTS) and {case[2] for case in cases} == {0, 1, 2}
    everything = [case[:3] for topology in TOPOLOGIES for case in products(names, topology)]
    assert sorted(everything) == sorted(itertools.product(names, VARIANTS, (0, 1, 2)))
    of_every_run = {name for topology in TOPOLOGIES for name, *_ in cases_for(topology)}
    assert of_every_run | {name for name, *_ in MORE_POOLED_CASES} == set(MODELS)


def run_on(topology: str, cases: list[Case], timeout: int) -> None:
    env = partial(launcher_env, topology)
    wrong, *_ = run_ranks(Topology.parse(topology).world_size, compare, topology, cases, timeout=timeout, env=env)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.processes
@pytest.mark.parametrize("topology", reversed(TOPOLOGIES))
def test_ranks_compute_what_one_process_computes(topology: str) -> None:
    run_on(topology, cases_for(topology), 480)


@pytest.mark.campaign
@pytest.mark.processes
@pytest.mark.parametrize("topology", reversed(TOPOLOGIES))
def test_all_models_at_all_stages_in_all_variants(topology: str) -> None:
    every = [*products(sorted(ZOO), topology), *lookups(topology)]
    run_on(topology, [case for case in every if case not in cases_for(topology)], 480)


@pytest.mark.campaign
@pytest.mark.processes
def test_more_of_torchrec_on_ranks() -> None:
    run_on("2x1", list(MORE_POOLED_CASES), 240)


@pytest.mark.campaign
@pytest.mark.processes
@pytest.mark.parametrize("name", ["seq_din", "seq_hstu", "seq_by_position", "seq_two_batch_sizes"])
def test_sequences_at_all_stages_and_placements(name: str) -> None:
    ways = itertools.product(BY_ID, (0, 1, 2))
    run_on("2x2", [(name, way, stage, backend_of(stage, i)) for i, (way, stage) in enumerate(ways)], 480)
