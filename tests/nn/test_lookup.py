"""Both lookup backends against ``nn.EmbeddingBag`` and hand-written update rules."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.ids import FeatureIds
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.errors import DMTError
from dmt_plugin.nn.lookup import backends
from dmt_plugin.nn.lookup.backends import check_location
from dmt_plugin.nn.lookup.fbgemm import _placement
from dmt_plugin.nn.lookup.sharded import LOCATIONS, ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite
from tests._util.routing import pool

BACKENDS = ("torch", "fbgemm")
RULES = ("sgd", "adagrad", "rowwise_adagrad")
LR, EPS = 0.1, 1e-3

# b, a, a: not in table order, one table shared by two sites; weighted and unweighted together; two poolings.
SITES = (
    LookupSite("s0", "b", 1, 6, 8, "sum", True),
    LookupSite("s1", "a", 0, 5, 4, "sum", False),
    LookupSite("s2", "m", 2, 7, 4, "mean", False),
    LookupSite("s3", "a", 3, 5, 4, "sum", False),
)
SLOTS: tuple[tuple[int, int | None, bool], ...] = (
    (5, 2, False),
    (6, None, True),
    (7, None, False),
    (5, 1, False),
)


def make_weights(sites: Any = SITES, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {site.table: (site.rows, site.dim) for site in sites}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_routed(rows: int, seed: int = 1, slots: Any = SLOTS, dtype: torch.dtype = torch.int32) -> RoutedIds:
    generator = torch.Generator().manual_seed(seed)
    values, lengths, weights = [], [], []
    for table_rows, hotness, weighted in slots:
        length = None if hotness else torch.randint(0, 4, (rows,), generator=generator)
        count = rows * hotness if length is None else int(length.sum())
        values.append(torch.randint(0, table_rows, (count,), generator=generator).to(dtype))
        lengths.append(None if length is None else length.to(dtype))
        weights.append(torch.rand(count, generator=generator) if weighted else None)
    return RoutedIds(tuple(values), tuple(lengths), tuple(weights), BatchLayout(rows, ((rows,),)))


def reference(sites: Any, tables: dict[str, Tensor], routed: RoutedIds) -> Tensor:
    rows = routed.layout.rows
    columns = []
    for site in sites:
        values, lengths = routed.values[site.slot].long(), routed.lengths[site.slot]
        hotness = values.numel() // max(rows, 1) if lengths is None else None
        weights = routed.weights[site.slot] if site.weighted else None
        ids = FeatureIds(values, None if lengths is None else lengths.long(), hotness, rows, weights)
        columns.append(pool(ids, tables[site.table], site.pooling))
    return torch.cat(columns, dim=1)


def update(rule: str, weight: Tensor, gradient: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Row by row, element by element: only rows that were looked up change."""
    if rule == "sgd":
        return weight - LR * gradient, None
    assert state is not None
    if rule == "adagrad":
        state = state + gradient**2
        return weight - LR * gradient / (state.sqrt() + EPS), state
    state = state + (gradient**2).mean(dim=1)
    return weight - LR * gradient / (state.sqrt() + EPS)[:, None], state


def make(backend: str, rule: str = "sgd", sites: Any = SITES, **options: Any) -> ShardedLookup:
    weights = options.pop("weights", None) or make_weights(sites)
    return ShardedLookup(sites, weights, backend=backend, optimizer=rule, lr=LR, eps=EPS, **options)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_three_steps_equal_the_rule(backend: str, rule: str, dtype: torch.dtype) -> None:
    lookup = make(backend, rule)
    tables = make_weights()
    states: dict[str, Tensor | None] = {
        name: torch.zeros(len(w)) if rule == "rowwise_adagrad" else torch.zeros_like(w) for name, w in tables.items()
    }
    for step in range(3):
        routed = make_routed(6, seed=step, dtype=dtype)
        leaves = {name: w.clone().requires_grad_() for name, w in tables.items()}
        expected = reference(SITES, leaves, routed)
        out = lookup(routed)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(step))
        (out * cotangent).sum().backward()
        (expected * cotangent).sum().backward()
        lookup.step()
        lookup.zero_grad()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            tables[name], states[name] = update(rule, leaf.detach(), leaf.grad, states[name])
            torch.testing.assert_close(lookup.table_weight(name), tables[name], rtol=1e-5, atol=1e-6)
            own = lookup.optimizer_state(name)
            assert set(own) == (set() if rule == "sgd" else {"sum"})
            if own:
                torch.testing.assert_close(own["sum"], states[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_backends_agree(rule: str) -> None:
    lookups = [make(backend, rule) for backend in BACKENDS]
    for step in range(4):
        for lookup in lookups:
            (lookup(make_routed(9, seed=step)) ** 2).sum().backward()
            lookup.step()
            lookup.zero_grad()
    for name in lookups[0].tables:
        torch.testing.assert_close(*(lk.table_weight(name) for lk in lookups), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_scale(backend: str) -> None:
    lookup, routed = make(backend), make_routed(6)
    lookup.grad_scale = 0.25
    before = {name: lookup.table_weight(name).clone() for name in lookup.tables}
    out = lookup(routed)
    torch.testing.assert_close(out, reference(SITES, before, routed), rtol=1e-6, atol=1e-6)
    out.sum().backward()
    lookup.step()
    leaves = {name: w.requires_grad_() for name, w in before.items()}
    reference(SITES, leaves, routed).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        expected = leaf.detach() - LR * 0.25 * leaf.grad
        torch.testing.assert_close(lookup.table_weight(name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_are_hidden_from_engines(backend: str) -> None:
    lookup = make(backend)
    assert not list(lookup.parameters()) and not list(lookup.buffers()) and not lookup.state_dict()
    assert [name for name, _ in lookup.named_modules()] == ["", "cut_rows", "distinct"]
    lookup.bfloat16().eval()
    assert lookup.table_weight("a").dtype == lookup(make_routed(3)).dtype == torch.float32
    assert lookup.backend_of("a") == backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_weights_are_copied(backend: str) -> None:
    weights = make_weights()
    kept = weights["a"].clone()
    lookup = make(backend, weights=weights)
    lookup(make_routed(6)).sum().backward()
    lookup.step()
    assert torch.equal(weights["a"], kept) and not torch.equal(lookup.table_weight("a"), kept)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_state_moves_to_the_other_backend(backend: str, rule: str) -> None:
    source = make(backend, rule)
    target = make(BACKENDS[1 - BACKENDS.index(backend)], rule, weights=make_weights(seed=9))

    def train(lookup: ShardedLookup, seed: int) -> None:
        lookup(make_routed(6, seed=seed)).square().sum().backward()
        lookup.step()
        lookup.zero_grad()

    train(source, 1)
    for name in source.tables:
        target.load_table(name, source.table_weight(name).clone())
        target.load_optimizer_state(name, {k: v.clone() for k, v in source.optimizer_state(name).items()})
    for lookup in (source, target):
        lookup.set_lr(0.05)
        train(lookup, 2)
    for name in source.tables:
        torch.testing.assert_close(source.table_weight(name), target.table_weight(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_set_lr_matters(backend: str) -> None:
    lookup = make(backend)
    before = lookup.table_weight("a").clone()
    lookup.set_lr(0.0)
    lookup(make_routed(6)).sum().backward()
    lookup.step()
    assert torch.equal(lookup.table_weight("a"), before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_empty_bags(backend: str, rule: str, rows: int) -> None:
    lookup = make(backend, rule)
    before = {name: lookup.table_weight(name).clone() for name in lookup.tables}
    none = torch.zeros(0, dtype=torch.int32)
    lengths = torch.zeros(rows, dtype=torch.int32)
    routed = RoutedIds((none,) * 4, (lengths,) * 4, (None, none.float(), None, None), BatchLayout(rows, ((rows,),)))
    out = lookup(routed)
    assert out.shape == (rows, 20) and out.requires_grad and not out.any()
    out.sum().backward()
    lookup.step()
    fixed = lookup(make_routed(0))
    assert fixed.shape == (0, 20)
    fixed.sum().backward()
    lookup.step()
    assert all(torch.equal(lookup.table_weight(name), w) for name, w in before.items())


def test_a_rank_without_tables() -> None:
    for backend in ("auto", *BACKENDS):
        lookup = ShardedLookup((), {}, backend=backend)
        out = lookup(make_routed(6))
        assert out.shape == (6, 0) and lookup.tables == ()
        lookup.step()
        lookup.zero_grad()
        lookup.set_lr(1)


def test_gradients_of_several_backward_passes_add_up_in_torch() -> None:
    one, two = make("torch", "adagrad"), make("torch", "adagrad")
    one(make_routed(6)).sum().backward()
    two(make_routed(6)).sum().mul(0.5).backward()
    two(make_routed(6)).sum().mul(0.5).backward()
    for lookup in (one, two):
        lookup.step()
    torch.testing.assert_close(one.table_weight("b"), two.table_weight("b"))


def test_auto_serves_the_rest_on_torch(caplog: pytest.LogCaptureFixture) -> None:
    sites = (
        LookupSite("odd", "odd", 0, 5, 3, "sum", False),
        LookupSite("even", "even", 0, 5, 4, "sum", False),
        LookupSite("both0", "both", 3, 5, 4, "sum", False),
        LookupSite("both1", "both", 0, 5, 4, "mean", False),
    )
    with caplog.at_level(logging.INFO):
        auto = make("auto", "rowwise_adagrad", sites)
    assert [auto.backend_of(t) for t in ("odd", "even", "both")] == ["torch", "fbgemm", "torch"]
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("dmt_plugin")]
    assert "'odd'" in message and "'both'" in message and "'even'" not in message
    plain = make("torch", "rowwise_adagrad", sites)
    for lookup in (auto, plain):
        for step in range(2):
            lookup(make_routed(6, seed=step)).square().sum().backward()
            lookup.step()
            lookup.zero_grad()
    for name in plain.tables:
        torch.testing.assert_close(auto.table_weight(name), plain.table_weight(name), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="table 'odd' exactly: its dim 3 is no multiple of 4"):
        make("fbgemm", "rowwise_adagrad", sites)
    with pytest.raises(ValueError, match="table 'both' exactly: it is pooled with both"):
        make("fbgemm", "sgd", sites)


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
@pytest.mark.parametrize("dims", [(3,), (1, 4, 5), (4, 6)])
def test_padded_dims_are_exact(rule: str, dims: tuple[int, ...]) -> None:
    sites = tuple(LookupSite(f"s{i}", f"t{i}", 0, 5, dim, "sum", False) for i, dim in enumerate(dims))
    lookups = [make(backend, rule, sites) for backend in BACKENDS]
    outputs = []
    for lookup in lookups:
        for step in range(2):
            out = lookup(make_routed(6, seed=step))
            (out * torch.linspace(-1, 1, sum(dims))).sum().backward()
            lookup.step()
            lookup.zero_grad()
        outputs.append(lookup(make_routed(4)))
    assert outputs[0].shape == (4, sum(dims))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    if rule == "adagrad":
        states = [lookup.optimizer_state("t0")["sum"] for lookup in lookups]
        torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


def test_auto_without_fbgemm(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        lookup = make("auto")
    assert {lookup.backend_of(t) for t in lookup.tables} == {"torch"} and "not installed" in caplog.text


def test_a_bad_id_that_slipped_through_is_not_served() -> None:
    for backend in BACKENDS:
        routed = make_routed(6)
        routed.values[0][0] = 5
        with pytest.raises((RuntimeError, IndexError)):
            make(backend)(routed)


def test_one_tbe_per_pooling() -> None:
    """Four sites of three tables: one group sums, one takes means; a mean over row ranges joins those that sum."""
    assert [len(group.tables) for group in make("fbgemm")._backends] == [2, 1]
    ranged = tuple(
        dataclasses.replace(site, name=f"{site.name} again", table="r", slot=2, rows=3, first_row=2)
        for site in SITES
        if site.pooling == "mean"
    )
    assert [len(group.tables) for group in make("fbgemm", sites=SITES + ranged)._backends] == [3, 1]


def test_where_tables_live() -> None:
    for location in ("auto", "host", "device"):
        assert make("fbgemm", location=location).backend_of("a") == "fbgemm"
    for location in ("managed", "managed_caching"):
        for backend in BACKENDS:
            with pytest.raises(ValueError, match=rf"dmt\.lookup\.location '{location}' .* run on the CPU.*\"auto\""):
                make(backend, location=location)
    on_torch = make("torch")._backends
    accelerator = torch.device("cuda")
    check_location("device", accelerator, on_torch)
    for location in ("host", "managed", "managed_caching"):
        check_location(location, accelerator, make("fbgemm")._backends)
        with pytest.raises(ValueError, match=r"served by FBGEMM only, and 3 table\(s\) such as 'b'"):
            check_location(location, accelerator, on_torch)
    found = {location: _placement(accelerator, location)[0].name for location in LOCATIONS}
    assert found == {
        "auto": "DEVICE", "device": "DEVICE", "host": "MANAGED_CACHING", "managed": "MANAGED",
        "managed_caching": "MANAGED_CACHING",
    }  # fmt: skip


def test_misuse_is_named() -> None:
    site = SITES[1]
    weights = make_weights((site,))
    with pytest.raises(ValueError, match=r"dmt\.lookup\.optimizer: 'adamax' found"):
        ShardedLookup((site,), weights, optimizer="adamax")
    with pytest.raises(ValueError, match=r"dmt\.lookup\.backend"):
        ShardedLookup((site,), weights, backend="tbe")
    with pytest.raises(ValueError, match="two lookups"):
        ShardedLookup((site, site), weights)
    with pytest.raises(ValueError, match="pooling 'median'"):
        ShardedLookup((LookupSite("s", "a", 0, 5, 4, "median", False),), weights)
    with pytest.raises(ValueError, match="'sum' only"):
        ShardedLookup((LookupSite("s", "a", 0, 5, 4, "mean", True),), weights)
    with pytest.raises(ValueError, match="no weights given"):
        ShardedLookup((site,), {})
    with pytest.raises(ValueError, match=r"\(6, 4\) expected"):
        ShardedLookup((LookupSite("s", "a", 0, 6, 4, "sum", False),), weights)
    lookup = ShardedLookup((LookupSite("s", "a", 0, 5, 4, "sum", True),), weights, backend="torch")
    with pytest.raises(ValueError, match="without weights"):
        lookup(make_routed(3))
    with pytest.raises(KeyError, match="no table 'z'"):
        lookup.table_weight("z")
    with pytest.raises(ValueError, match="has shape"):
        lookup.load_table("a", torch.zeros(4, 4))
    with pytest.raises(ValueError, match="optimiser state"):
        lookup.load_optimizer_state("a", {})


@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
def test_rows_cut_by_the_lookup_have_the_scaled_gradient_of_all(backend: str) -> None:
    """Three blocks, the second of which nobody uses, against the gradient of the rows in one piece; twice."""
    site = LookupSite("a", "a", 0, 6, 4, "sum", False)
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    sizes = BatchLayout(7, ((7,),))
    routed = RoutedIds((torch.arange(7) % 6,), (None,), (None,), sizes)
    results = []
    for cut in (False, True):
        lookup = ShardedLookup([site], {"a": weight}, backend=backend, optimizer="sgd", lr=1.0)
        lookup.grad_scale = 0.25
        for step in range(2):
            rows = lookup(routed, scaled=not cut)
            parts = lookup.cut_rows(rows, sizes, 3) if cut else rows.split([3, 2, 2])
            ((parts[0] * (step + 1)).sum() + parts[2].square().sum()).backward()
            lookup.step()
            lookup.zero_grad()
        results.append(lookup.table_weight("a").clone())
    assert not torch.equal(results[0], weight)
    torch.testing.assert_close(results[1], results[0])


def held_sites() -> tuple[LookupSite, ...]:
    """Beside ``SITES``: a range of rows, and a padded dim."""
    in_range = LookupSite("r", "r", 2, 4, 8, "mean", False, first_row=2)
    return (*SITES, in_range, LookupSite("p", "p", 0, 5, 6, "sum", False))


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_micro_batches_of_a_step_are_one_update(backend: str, rule: str) -> None:
    """Three micro-batches of other sizes, one of them empty, against the sum of their gradients; twice."""
    sites, sizes = held_sites(), (5, 0, 3)
    lookup = make(backend, rule, sites)
    lookup.grad_scale = 0.25
    tables = {name: lookup.table_weight(name).clone() for name in lookup.tables}
    states: dict[str, Any] = {name: None if rule == "sgd" else torch.zeros_like(w) for name, w in tables.items()}
    for step in range(2):
        batches = [make_routed(rows, seed=10 * step + i) for i, rows in enumerate(sizes)]
        pulls = [torch.randn(rows, sum(site.dim for site in sites)) for rows in sizes]
        before = {name: lookup.table_weight(name).clone() for name in tables}
        for batch, pull in zip(batches, pulls, strict=True):
            lookup.hold_gradients(True)
            (lookup(batch) * pull).sum().backward()
            assert all(torch.equal(lookup.table_weight(name), w) for name, w in before.items())
        assert lookup.holds
        lookup.step()
        lookup.zero_grad()
        assert not lookup.holds
        leaves = {name: w.requires_grad_() for name, w in tables.items()}
        for batch, pull in zip(batches, pulls, strict=True):
            (one_table_rows(sites, leaves, batch) * pull * 0.25).sum().backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            tables[name], states[name] = update(rule, leaf.detach(), leaf.grad, states[name])
            torch.testing.assert_close(lookup.table_weight(name), tables[name], rtol=1e-5, atol=1e-6)


def one_table_rows(sites: Any, tables: dict[str, Tensor], routed: RoutedIds) -> Tensor:
    """``reference`` for sites of which one holds rows 2 to 5 of its table."""
    whole = [dataclasses.replace(site, first_row=None) for site in sites]
    wide = {name: torch.nn.functional.pad(t, (0, 0, 2, 1)) if name == "r" else t for name, t in tables.items()}
    return reference(whole, wide, routed)


def test_what_is_held_back_can_be_dropped() -> None:
    lookup = make("fbgemm")
    before = lookup.table_weight("a").clone()
    lookup.hold_gradients(True)
    lookup(make_routed(6)).sum().backward()
    lookup.zero_grad()
    lookup.step()
    assert torch.equal(lookup.table_weight("a"), before)


def test_two_updates_in_a_step_are_an_error() -> None:
    lookup = make("fbgemm")
    lookup.hold_gradients(False)
    for _ in range(2):
        lookup(make_routed(6)).sum().backward()
        lookup.zero_grad()
    lookup(make_routed(6)).sum().backward()
    with pytest.raises(DMTError, match="updated twice in one step"):
        lookup(make_routed(6)).sum().backward()
    lookup.zero_grad()
    lookup.hold_gradients(False, once=False)
    for _ in range(2):
        lookup(make_routed(6)).sum().backward()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_in_another_dtype_have_gradients_that_are_rounded_once(backend: str, cut: bool) -> None:
    site = LookupSite("a", "a", 0, 7, 4, "sum", False)
    weight = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    layout = BatchLayout(7, ((7,),))
    lookup = ShardedLookup([site], {"a": weight}, backend=backend, optimizer="sgd", lr=1.0)
    lookup.grad_scale, lookup.row_dtype = 1 / 3, torch.bfloat16
    rows = lookup(RoutedIds((torch.arange(7),), (None,), (None,), layout), scaled=not cut)
    parts = lookup.cut_rows(rows, layout, 2) if cut else (rows,)
    assert all(part.dtype == torch.bfloat16 for part in parts)
    found = torch.cat(parts)
    assert torch.equal(found, weight.bfloat16())
    pull = torch.randn(7, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    (found * pull).sum().backward()
    lookup.step()
    assert lookup.table_weight("a").dtype == torch.float32
    torch.testing.assert_close(lookup.table_weight("a"), weight - pull.float() / 3, rtol=1e-6, atol=1e-6)
