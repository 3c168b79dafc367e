"""What is asked of each variant: capture, the semantic-preserving transform, tower modules, the oracle.

Every check runs the model itself beside what the compiler made of it. A check never repairs or excuses anything: a
model that cannot be compared is reported as not equal, with the reason.
"""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import TransformConfig
from dmt_plugin.core.errors import DMTError, FindingsError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.nn.towers import PreserveTower
from tests.zoo.spec import FEATURES, Batch, Variant, call_of

TOPOLOGY = "2x1"
TRACE_BATCH = 5
SIZES = (4, 9)
SEED = 7

Note = dict[str, str]


class Differs(Exception):
    """Two models that should compute the same do not."""


def example(batch: Batch) -> ExampleBatch:
    """One call of the model to capture with."""
    return ExampleBatch(*call_of(batch(TRACE_BATCH, 0)))


def notes_of(error: BaseException, stage: str) -> list[Note]:
    """An error as findings: those of the compiler with their codes, a crash with its last line."""
    if isinstance(error, FindingsError):
        return [
            {"stage": stage, "code": f.code, "severity": f.severity, "module": f.module, "reason": f.reason}
            for f in error.findings
        ]
    if isinstance(error, (DMTError, Differs)):
        code = type(error).__name__
        return [{"stage": stage, "code": code, "severity": "error", "module": "", "reason": str(error)}]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {error} ({frame.filename.rpartition('/')[2]}:{frame.lineno})"
    return [{"stage": stage, "code": "CRASH", "severity": "error", "module": "", "reason": reason}]


def build(variant: Variant, **sizes: int) -> tuple[nn.Module, Batch]:
    """The variant with the same weights every time."""
    torch.manual_seed(0)
    return variant.build(**sizes)


def run(model: nn.Module, batch: Batch, n: int, seed: int) -> list[Tensor]:
    """The tensors that the model returns; dropout draws the same numbers every time."""
    args, kwargs = call_of(batch(n, seed))
    torch.manual_seed(SEED)
    return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    """One number with a gradient for every output that has one."""
    total = sum((o.square().mean() for o in outputs if o.requires_grad), torch.zeros(()))
    assert isinstance(total, Tensor)
    return total


def require_equal(expected: Sequence[Tensor], found: Sequence[Tensor], what: str) -> None:
    """Raises unless all tensors are equal bit for bit."""
    if len(expected) != len(found):
        raise Differs(f"{what}: {len(found)} tensors instead of {len(expected)}")
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            raise Differs(f"{what}: the shape {tuple(b.shape)} instead of {tuple(a.shape)}")
        if a.is_sparse or b.is_sparse:
            a, b = a.to_dense(), b.to_dense()
        if not torch.equal(a, b):
            raise Differs(f"{what}: differ by up to {(a.double() - b.double()).abs().max().item():.3g}")


def check_capture(variant: Variant) -> None:
    """The captured graph computes what the model computes, at other batch sizes, in both modes, after pickling."""
    model, batch = build(variant)
    keys = list(model.state_dict())
    graph = capture(model, example(batch)).as_module()
    if list(model.state_dict()) != keys:
        raise Differs("the capture changed the user's model")
    copies = {"graph": graph, "deep copy": copy.deepcopy(graph), "pickled": pickle.loads(pickle.dumps(graph))}
    for training in (False, True):
        for n in SIZES:
            for what, found in copies.items():
                reference = copy.deepcopy(model).train(training)
                expected = run(reference, batch, n, 3)
                require_equal(expected, run(copy.deepcopy(found).train(training), batch, n, 3), f"{what}, batch {n}")


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_sptt(variant: Variant) -> TowerModel:
    """Pass-through towers: outputs, every gradient, and four steps of SGD in train mode are those of the flat model."""
    flat, batch = build(variant)
    other, _ = build(variant)
    config = {"dmt": {"towers": {"module": "none"}}}
    towers = transform(other, example(batch), config, TOPOLOGY)
    for training in (False, True):
        for n in SIZES:
            outputs = []
            for model in (flat, towers):
                model.train(training)
                model.zero_grad()
                found = run(model, batch, n, 3)
                loss_of(found).backward()
                outputs.append([t.detach() for t in found])
            mode = f"{'train' if training else 'eval'} mode, batch {n}"
            require_equal(*outputs, f"outputs, {mode}")
            expected, own = _gradients(flat), _gradients(towers)
            if expected.keys() != own.keys():
                raise Differs(f"gradients, {mode}: only one model has {sorted(expected.keys() ^ own.keys())}")
            for name, gradient in expected.items():
                require_equal([gradient], [own[name]], f"gradient of {name}, {mode}")
    _train(flat, towers, batch)
    return towers


def _train(flat: nn.Module, towers: nn.Module, batch: Batch) -> None:
    flat.train()
    towers.train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (flat, towers)]
    for step in range(4):
        losses = []
        for model, optimizer in zip((flat, towers), optimizers, strict=True):
            optimizer.zero_grad()
            loss = loss_of(run(model, batch, 8, 10 + step))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if not losses[0].isfinite():
            raise Differs(f"the flat model diverges in step {step}: the check says nothing")
        require_equal(losses[:1], losses[1:], f"loss of step {step}")
    expected, found = flat.state_dict(), towers.state_dict()
    if missing := sorted(found.keys() - expected.keys()):
        raise Differs(f"state that the flat model does not have: {missing}")
    if missing := sorted(expected.keys() - found.keys()):
        raise Differs(f"state of the flat model that is not there: {missing}")
    for name, value in expected.items():
        require_equal([value], [found[name]], f"{name} after four steps")


def tower_config(c: int, p: int, dim: int, on_unsupported: str = "error") -> dict[str, Any]:
    """A DeepSpeed configuration with DLRM tower modules."""
    towers = {"module": "dlrm", "c": c, "p": p, "dim": dim}
    return {"dmt": {"towers": towers, "transform": {"on_unsupported": on_unsupported}}}


def fallbacks() -> list[str]:
    """The ways out that the configuration knows, best first."""
    known = get_args(TransformConfig.model_fields["on_unsupported"].annotation)
    return [name for name in ("decoder", "transport") if name in known]


def tower_paths(model: nn.Module) -> dict[str, list[str]]:
    """The tower modules of each group, and their decoders, in order."""
    found: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        if name.startswith("dmt_towers.") and name.count(".") == 2:
            found.setdefault(name.split(".")[1], []).append(name)
    return found


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Makes preserving towers, and towers with their decoders, hand on what goes in."""
    read: dict[str, Tensor] = {}
    handles = []

    def watch(path: str, keeps: bool) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor | None:
            read[path] = args[0].flatten(1)
            return read[path] if keeps else None

        return hook

    def give(path: str) -> Callable[..., Tensor]:
        return lambda module, args, result: read[path]

    for path in (path for paths in tower_paths(model).values() for path in paths):
        module = model.get_submodule(path)
        group, _, name = path.rpartition(".")
        tower = f"{group}.{name.replace('decoder', 'tower')}"
        hook = watch(path, isinstance(module, PreserveTower)) if path == tower else give(tower)
        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_kept(reference: nn.Module, model: TowerModel, batch: Batch) -> None:
    """Behind towers that keep its shapes nothing of the flat model changes: undo the towers, and it is the flat model.

    Says nothing of a model with native groups: its layers are others.
    """
    if not has_towers(model) or any(g.kind == "tower" and g.form == "native" for g in model.plan.groups):
        return
    before = reference.state_dict()
    changed = [n for n, v in model.state_dict().items() if n in before and not torch.equal(v, before[n])]
    if changed or {r.target for r in model.repairs} != {p for p in _paths(model) if ".decoder" in p}:
        raise Differs(f"more than the decoders is new: {changed[:4] or [r.target for r in model.repairs]}")
    for training in (False, True):
        mode = f"towers undone, {'train' if training else 'eval'} mode"
        found = []
        for each in (reference, model):
            each.train(training)
            each.zero_grad()
            with undone(each):
                outputs = run(each, batch, 9, 3)
            loss_of(outputs).backward()
            found.append([t.detach() for t in outputs])
        require_equal(*found, mode)
        expected, own = _gradients(reference), _gradients(model)
        for name, gradient in expected.items():
            if name not in own:
                raise Differs(f"{mode}: no gradient of {name}")
            require_equal([gradient], [own[name]], f"{mode}: gradient of {name}")
    reference.zero_grad()
    model.zero_grad()


def _paths(model: nn.Module) -> list[str]:
    return [path for paths in tower_paths(model).values() for path in paths]


def check_towers(variant: Variant, config: dict[str, Any], **sizes: int) -> TowerModel:
    """Transforms with tower modules, then trains a step; what came out must be a model of the same kind."""
    flat, batch = build(variant, **sizes)
    model = transform(flat, example(batch), config, TOPOLOGY)
    reference = build(variant, **sizes)[0]
    check_kept(reference, model, batch)
    reference.train()
    model.train()
    for n in SIZES:
        expected, found = run(reference, batch, n, 1), run(model, batch, n, 1)
        if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
            raise Differs(f"batch {n}: results of the shapes {[tuple(t.shape) for t in found]}")
    loss_of(expected).backward()
    loss_of(found).backward()
    useless = {n for n, p in reference.named_parameters() if p.grad is None}
    without = [n for n, p in model.named_parameters() if p.grad is None and n not in useless]
    if without:
        raise Differs(f"parameters without a gradient: {without[:4]}")
    model.eval()
    before = run(model, batch, 9, 2)
    for path in _paths(model):
        handle = model.get_submodule(path).register_forward_hook(lambda module, args, result: result.flip(1))
        after = run(model, batch, 9, 2)
        handle.remove()
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise Differs(f"the order of the outputs of {path} does not matter: some of them are not used")
    return model


def covered(model: TowerModel) -> str:
    """How many of the model's features go through towers; those that the compiler overlooked count as well."""
    inside = sum(len(g.features) for g in model.plan.groups if g.kind == "tower")
    outside = sum(len(g.features) for g in model.plan.groups if g.kind != "tower" and g.width != 1)
    return f"{inside}/{max(inside + outside, FEATURES)}"


def has_towers(model: TowerModel) -> bool:
    """Whether any group goes through tower modules."""
    return any(g.kind == "tower" for g in model.plan.groups)
