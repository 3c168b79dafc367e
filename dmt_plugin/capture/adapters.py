"""Adapters: another forward, over the same parameters, for models whose own cannot be followed.

1. An adapter says which modules it is for (a class, or a predicate) and makes a module with
   the same parameters and buffers under the same names, and a forward that can be captured.
2. Before a capture every module of the model is asked for, the outermost first. Where one
   matches, a copy of the module tree, sharing all parameters, has its result in that
   place; the user's model is not touched.
3. What the adapter made is checked: parameters and buffers are the same objects; on the
   example batch, outputs are equal bit for bit and gradients agree. Otherwise DMT110.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.capture.source_lines import refusal
from dmt_plugin.core.equality import differences
from dmt_plugin.core.findings import Finding
from dmt_plugin.core.modes import left_as_it_was

_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True, eq=False)
class Adapter:
    """One entry of the registry.

    Attributes:
        matches: whether a module is one that this adapter is for.
        adapt: makes the module to capture in its place.
    """

    matches: Callable[[nn.Module], bool]
    adapt: Callable[[nn.Module], nn.Module]


_REGISTRY: list[Adapter] = []


def register_adapter(
    match: type[nn.Module] | Callable[[nn.Module], bool], adapter: Callable[[nn.Module], nn.Module]
) -> Adapter:
    """Has modules that match captured through what ``adapter`` makes of them.

    Args:
        match: a class (subclasses do not match, as they may have another forward), or a
            function from a module to ``bool``.
        adapter: a function, or the class of a module, called with the user's module. Its
            result must hold the same parameters and buffers under the same names; see
            :func:`with_forward` for the usual way to make one.

    Returns:
        The entry, for :func:`unregister_adapter`.
    """
    if isinstance(match, type):
        kind = match
        entry = Adapter(lambda module: type(module) is kind, adapter)
    else:
        entry = Adapter(match, adapter)
    _REGISTRY.append(entry)
    return entry


def unregister_adapter(entry: Adapter) -> None:
    """Takes an adapter out of the registry again.

    Raises:
        ValueError: it is not in the registry.
    """
    _REGISTRY.remove(entry)


def with_forward(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A module with all that ``module`` holds, and another forward.

    Args:
        module: the user's module; it is not changed.
        forward: called as ``forward(self, *args, **kwargs)``; ``self`` has the attributes,
            parameters, submodules and methods of ``module``.
    """
    kind = type(module)
    home = getattr(forward, "__module__", __name__)  # not torch's, whose layers are never looked into
    return _shallow(module, type(kind.__name__, (kind,), {"forward": forward, "__module__": home}))


def adapted(model: nn.Module, example: ExampleBatch) -> tuple[nn.Module, list[Finding]]:
    """The model to capture for ``model``, and warnings.

    Raises:
        CaptureError: an adapter made something else than the model (DMT110), or several match.
    """
    used: list[str] = []
    made: dict[int, nn.Module] = {}
    followed = _rebuilt(model, "", made, used) if _REGISTRY else model
    if followed is model:
        return model, []
    place = used[0]
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        reason = "an adapter is used here, and could not be compared with the model, whose weights hold no data"
        return followed, [Finding("DMT110", "warning", place, reason, "compare them once with real weights")]
    _require_same_results(model, followed, example, place)
    return followed, []


def _shallow(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    twin = kind.__new__(kind)
    twin.__dict__.update(module.__dict__)
    for table in _TABLES:
        twin.__dict__[table] = copy.copy(module.__dict__[table])
    return twin


def _rebuilt(module: nn.Module, path: str, made: dict[int, nn.Module], used: list[str]) -> nn.Module:
    """``module``, or a copy that has adapted modules in it; equal for equal modules."""
    if id(module) in made:
        return made[id(module)]
    entries = [entry for entry in _REGISTRY if entry.matches(module)]
    if len(entries) > 1:
        reason = f"{len(entries)} adapters match {type(module).__name__}"
        raise _wrong(path, reason, "register one, or narrow their match")
    if entries:
        used.append(path)
        result = entries[0].adapt(module)
        _require_same_state(module, result, path)
    else:
        children = {
            name: _rebuilt(child, f"{path}.{name}" if path else name, made, used)
            for name, child in module._modules.items()
            if child is not None
        }
        result = module
        if any(child is not module._modules[name] for name, child in children.items()):
            result = _shallow(module, type(module))
            result._modules.update(children)
    made[id(module)] = result
    return result


def _wrong(path: str, reason: str, hint: str) -> Exception:
    return refusal("DMT110", path, reason, hint)


def _require_same_state(module: nn.Module, result: Any, path: str) -> None:
    if not isinstance(result, nn.Module):
        raise _wrong(path, f"the adapter made {type(result).__name__}, not a module", "return an nn.Module")
    for what in ("named_parameters", "named_buffers"):
        mine, theirs = (dict(getattr(m, what)(remove_duplicate=False)) for m in (module, result))
        differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) is not theirs.get(name))
        if differ:
            raise _wrong(
                path,
                f"the adapter's module does not hold the model's own {what.removeprefix('named_')}: {differ[:4]}"
                + (f" and {len(differ) - 4} more" if len(differ) > 4 else ""),
                "keep every parameter and buffer under its name; dmt_plugin.with_forward(module, forward) does",
            )


def _require_same_results(model: nn.Module, followed: nn.Module, example: ExampleBatch, path: str) -> None:
    hint = "the adapter's forward must compute what the model computes"
    outputs, spec, gradients = _results(model, example)
    try:
        others, other_spec, other_gradients = _results(followed, example)
    except Exception as error:
        raise _wrong(path, f"with the adapter the model fails: {type(error).__name__}: {error}", hint) from error
    if spec != other_spec:
        raise _wrong(path, f"with the adapter the model returns {other_spec} instead of {spec}", hint)
    for i, (a, b) in enumerate(zip(outputs, others, strict=True)):
        for difference in differences(a, b):
            largest = difference.largest
            how = "has another shape or type" if largest is None else f"differs by up to {largest:.3g}"
            raise _wrong(path, f"with the adapter output {i} {how} on the example batch", hint)
    for name, gradient in gradients.items():
        other = other_gradients[name]
        if (gradient is None) != (other is None):
            raise _wrong(path, f"only one of model and adapter gives {name} a gradient on the example batch", hint)
        if gradient is None or other is None:
            continue
        a, b = (g.to_dense() if g.is_sparse else g for g in (gradient, other))
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-6):  # the same sums, perhaps in another order
            raise _wrong(path, f"with the adapter the gradient of {name} is another on the example batch", hint)


def _results(model: nn.Module, example: ExampleBatch) -> tuple[list[Any], Any, dict[str, Tensor | None]]:
    """Outputs in eval mode, how they are nested, and the gradient of each parameter; nothing of the model changes."""
    with left_as_it_was(model, training=False), torch.enable_grad():
        leaves, spec = pytree.tree_flatten(model(*example.args, **example.kwargs))
        differentiable = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients: tuple[Tensor | None, ...] = (None,) * len(named)
        if differentiable and named:
            total = torch.stack([leaf.double().square().sum() for leaf in differentiable]).sum()
            gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    plain = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return plain, spec, dict(zip(named, gradients, strict=True))
