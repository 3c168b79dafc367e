"""``tables_on_meta``: what a constructor does to its tables is their rule, or is refused where it is called."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

import dmt_plugin
from dmt_plugin.core.errors import TableInitError
from dmt_plugin.tables.layer_rules import meta_sources
from dmt_plugin.tables.recording import record, rule_of, tables_on_meta
from examples.dlrm import DLRM


def built(init, layer=nn.Embedding, rows=4000, dim=16, **options):
    with tables_on_meta():
        table = layer(rows, dim, **options)
        init(table.weight)
    return table


def rows_of(table: nn.Module, seed: int = 0) -> Tensor:
    return dmt_plugin.materialize(copy.deepcopy(table), seed=seed).weight.detach()


INITS = {
    "none": (lambda w: None, 0, 1),
    "normal": (lambda w: nn.init.normal_(w, 1.0, 0.02), 1, 0.02),
    "data": (lambda w: w.data.uniform_(-1, 1), 0, 3**-0.5),
    "xavier_uniform": (nn.init.xavier_uniform_, 0, (2 / 4016) ** 0.5),
    "kaiming_normal": (nn.init.kaiming_normal_, 0, (2 / 16) ** 0.5),
    "trunc_normal": (lambda w: nn.init.trunc_normal_(w, std=0.5, a=-1, b=1), 0, 0.5 * 0.7737**0.5),
    "constant": (lambda w: nn.init.constant_(w, 3.0), 3, 0),
    "arithmetic": (lambda w: w.data.mul_(0.5).add_(2, alpha=3).div_(torch.tensor(2.0)).clamp_(-5, 5), 3, 0.25),
    "a row": (lambda w: w.data.copy_(torch.ones(16)), 1, 0),
}


@pytest.mark.parametrize("name", sorted(INITS))
def test_a_rule_is_what_the_constructor_asked_for(name):
    init, mean, deviation = INITS[name]
    for layer in (nn.Embedding, nn.EmbeddingBag):
        table = built(init, layer)
        assert table.weight.is_meta
        rows = rows_of(table)
        assert float(rows.mean()) == pytest.approx(mean, abs=0.02 + deviation / 50)
        assert float(rows.std()) == pytest.approx(deviation, rel=0.03, abs=1e-6)


def test_parts_of_a_table():
    def init(w):
        w.data[5].fill_(7)
        w.data[10:20] = 2
        w.data[:, 3].zero_()
        w.data[30:40:2, 4:6].copy_(torch.tensor(9.0))
        w.data.t()[8].fill_(4)

    rows = rows_of(built(init, padding_idx=0))
    assert not rows[0, :3].any() and (rows[5, :3] == 7).all() and (rows[10:20, :3] == 2).all()
    assert not rows[:, 3].any() and (rows[30:40:2, 4:6] == 9).all() and (rows[:, 8] == 4).all()
    assert rows[31:41:2, 4:6].std() > 0.5


REFUSED = {
    "orthogonal_": nn.init.orthogonal_,
    "sparse_": lambda w: nn.init.sparse_(w, 0.1),
    "eye_": nn.init.eye_,
    "copy_": lambda w: w.data.copy_(torch.randn(w.shape)),
    "exponential_": lambda w: w.data.exponential_(),
    "mul_": lambda w: w.data.mul_(torch.rand(w.shape[0], 1)),
    "div_": lambda w: w.data.div_(w.norm()),
    "copy_ of values": lambda w: w.data[:, 1].copy_(torch.randn(4000)),
    "copy_ of values of": lambda w: w.data.view(-1).copy_(torch.randn(64000)),
    "mul with out=": lambda w: torch.mul(torch.ones(4000, 16, device="meta"), 2, out=w.data),
    "_foreach_mul_": lambda w: torch._foreach_mul_([w.data], 2.0),
    "index_put_": lambda w: w.data.__setitem__(torch.tensor([1, 3]), 0.0),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_recorded_is_refused_by_name(name):
    with pytest.raises(TableInitError, match=rf"{name}.*\(4000, 16\) of Embedding.*table_init"):
        built(REFUSED[name])
    assert not nn.Embedding(2, 2).weight.is_meta, "the block has left nothing behind"


def test_everything_else_is_real_and_the_demo_is_found():
    torch.manual_seed(0)
    with tables_on_meta():
        model = DLRM({"a": 2000, "b": 3000}, 4)
    assert {n for n, p in model.named_parameters() if p.is_meta} == {"tables.a.weight", "tables.b.weight"}
    assert not any(b.is_meta for b in model.buffers())
    rules = {n: str(rule_of(t.weight, t, n)) for n, t in model.tables.items()}
    assert rules == {"a": "normal(0, 0.02)", "b": "normal(0, 0.02)"}
    made = dmt_plugin.materialize(model, seed=1)
    assert float(made.tables["b"].weight.std()) == pytest.approx(0.02, rel=0.02)
    assert made(torch.randn(3, 4), torch.zeros(3, 2, dtype=torch.int64)).isfinite().all()


def test_a_weight_that_is_replaced_by_one_on_meta_is_refused():
    with pytest.raises(TableInitError, match="another tensor, computed on meta"), tables_on_meta():
        table = nn.Embedding(5, 3)
        table.weight = nn.Parameter(table.weight * 0.1)


def test_copies_and_pickles_keep_the_rule_and_ties_stay():
    table = built(lambda w: nn.init.constant_(w, 2.0))
    drawn = built(lambda w: nn.init.normal_(w, std=0.5))
    assert torch.equal(rows_of(pickle.loads(pickle.dumps(drawn))), dmt_plugin.materialize(drawn).weight)
    for twin in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert (rows_of(twin) == 2).all()
    with tables_on_meta():
        tied = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(5, 3)])
        tied[1].weight = tied[0].weight
    made = dmt_plugin.materialize(tied)
    assert made[0].weight is made[1].weight and not made[0].weight.is_meta


def test_a_table_that_is_written_to_behind_the_block_is_an_error():
    table = built(lambda w: None)
    nn.init.normal_(table.weight, std=0.1)
    with pytest.raises(TableInitError, match="after the end of tables_on_meta"):
        dmt_plugin.materialize(table)


def test_given_weights_other_threads_and_nested_blocks():
    with tables_on_meta(), tables_on_meta():
        given = nn.Embedding.from_pretrained(torch.ones(3, 2), freeze=False)
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(nn.Embedding(3, 2)))
        thread.start()
        thread.join()
        assert nn.EmbeddingBag(3, 2, device="cpu").weight.is_meta
    assert not given.weight.is_meta and not elsewhere[0].weight.is_meta and not nn.Embedding(3, 2).weight.is_meta


def whole() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Embedding(50, 8, padding_idx=3), nn.Linear(8, 2))


def test_a_model_that_is_whole_on_meta():
    _, lines = meta_sources(whole(), ["0.weight"], seed=0)
    assert len(lines) == 1 and "0.weight" in lines[0] and "normal(0, 1), constant(0) in row 3" in lines[0]
    made = dmt_plugin.materialize(whole(), seed=4)
    assert not made[0].weight[3].any() and made[1].weight.isfinite().all() and made[1].bias.isfinite().all()
    again = dmt_plugin.materialize(whole(), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    with pytest.raises(TableInitError, match=r"0\.weight.*strict"):
        dmt_plugin.materialize(whole(), strict=True)
    norm = nn.Sequential(whole(), nn.BatchNorm1d(2, device="meta"))
    with pytest.raises(TableInitError, match=r"3 buffer.*1\.running_mean"):
        dmt_plugin.materialize(norm)


def test_a_function_gets_fixed_blocks_and_must_keep_to_its_word():
    def function(name, first, shape, generator):
        return torch.randn(shape, generator=generator) + first

    (source,) = meta_sources(built(lambda w: None, rows=9000), ["weight"], seed=0, table_init=function)[0].values()
    whole = torch.empty(9000, 16)
    source.fill(range(9000), range(16), whole)
    for rows in (range(4000, 5000), range(5, 9000, 977), torch.tensor([8999, 3, 4096, 3])):
        part = torch.empty(len(rows), 5)
        source.fill(rows, range(2, 7), part)
        assert torch.equal(part, whole[torch.tensor(list(rows)), 2:7])
    for found in (torch.zeros(3), torch.zeros(4096, 16, dtype=torch.int64), None):
        with pytest.raises(TableInitError, match=r"table_init\('weight', 0, \(4096, 16\)"):
            dmt_plugin.materialize(built(lambda w: None, rows=9000), table_init=lambda *_, found=found: found)


def test_torchrec():
    import torchrec

    init = lambda w: nn.init.normal_(w, std=0.1)  # noqa: E731
    configs = [
        torchrec.EmbeddingBagConfig(name="t0", embedding_dim=8, num_embeddings=900, feature_names=["f0"]),
        torchrec.EmbeddingBagConfig(name="t1", embedding_dim=8, num_embeddings=900, feature_names=["f1"], init_fn=init),
    ]
    on_meta = torchrec.EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    with tables_on_meta():
        recorded = torchrec.EmbeddingBagCollection(tables=configs)
    for model in (on_meta, recorded):
        made = dmt_plugin.materialize(model, strict=True).state_dict()
        assert float(made["embedding_bags.t0.weight"].abs().max()) == pytest.approx(900**-0.5, rel=0.01)
        assert float(made["embedding_bags.t1.weight"].std()) == pytest.approx(0.1, rel=0.05)


def test_a_function_that_leaves_entries_without_a_value():
    with pytest.raises(TableInitError, match="init_fn of table t leaves entries"):
        record(5, 3, lambda w: w[2].fill_(1), "init_fn of table t")
