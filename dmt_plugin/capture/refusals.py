"""Models that cannot be captured, found by looking at their modules, before their forward is run.

1. A compiled or scripted module, anywhere in the model, has no forward that Python runs:
   there is nothing to record (DMT105). The same goes for a model that is already wrapped for
   distribution: its forward is the wrapper's.
2. Hooks (DMT112). A leaf keeps its hooks, as it stays the user's own module (they run on
   example values too, since they may change what the layer gives). Hooks on the
   model itself would not run when the graph does, and those for the backward pass of
   a module that is traced through have no module to fire for: errors. Forward hooks of a
   module that is traced through are recorded as they are now: a warning.
3. torchrec's managed collision remaps ids by what it has seen, and evicts rows, while forward runs (DMT115).
4. A member of the model that has a name which fx's graph modules need for themselves
   ("graph", "code", "meta") cannot be kept under it (DMT113).
5. fx writes paths of members into the Python code of a graph, between quotes and as they are: a name with a quote, a
   backslash or a line's end in it would be code, and be run (DMT118).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import fx, nn

from dmt_plugin.capture.leaves import is_leaf
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.core.findings import Finding

_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


def check_modules(model: nn.Module) -> list[Finding]:
    """Refuses what cannot be traced, as the module's docstring says.

    Returns:
        Warnings.

    Raises:
        CaptureError: with one finding per module.
    """
    findings = [*_without_python(model)]
    if not findings:
        findings += [*_named_like_ours(model), *_named_like_code(model), *_hooked(model), *_managed(model)]
    if any(finding.severity == "error" for finding in findings):
        raise CaptureError(findings)
    return findings


def _named_like_ours(model: nn.Module) -> Iterator[Finding]:
    taken = set(dir(fx.GraphModule)) - set(dir(nn.Module))
    for name in sorted(taken & {*model._modules, *model._parameters, *model._buffers}):
        yield Finding(
            "DMT113", "error", name,
            f"the model has a member called {name!r}, a name that torch.fx.GraphModule needs for itself",
            "rename the member; a state_dict saved under the old name needs its keys renamed as well",
        )  # fmt: skip


def _named_like_code(model: nn.Module) -> Iterator[Finding]:
    for path, module in model.named_modules(remove_duplicate=False):
        for name in (*module._modules, *module._parameters, *module._buffers):
            bad = sorted({c for c in name if c in "\"\\" or not c.isprintable()})
            if bad:
                yield Finding(
                    "DMT118", "error", f"{path}.{name}" if path else name,
                    f"{type(module).__name__} has a member called {name!r}; {', '.join(map(repr, bad))} in a name "
                    "would become code of the graph",
                    "rename the member, say a key of an nn.ModuleDict, by letters, digits and underscores; a "
                    "state_dict saved under the old name needs its keys renamed as well",
                )  # fmt: skip


def _managed(model: nn.Module) -> Iterator[Finding]:
    inside: list[str] = []
    for path, module in model.named_modules():
        kind = type(module)
        if not kind.__module__.startswith("torchrec.") or "ManagedCollision" not in kind.__name__:
            continue
        if any(path.startswith(f"{outer}.") or not outer for outer in inside):
            continue
        inside.append(path)
        yield Finding(
            "DMT115", "error", path,
            f"{kind.__name__} remaps ids by those it has seen and evicts rows while forward runs; every rank would "
            "remap and evict otherwise, and rows on their owners' side would not follow",
            "map ids to rows in the data pipeline (a hash, ids % num_embeddings), and look them up in the plain "
            "EmbeddingBagCollection inside",
        )  # fmt: skip


def _without_python(model: nn.Module) -> Iterator[Finding]:
    inside: list[str] = []
    for path, module in model.named_modules():
        if any(path == outer or path.startswith(f"{outer}.") or not outer for outer in inside):
            continue
        what = _form(module)
        if what is not None:
            inside.append(path)
            reason, hint = what
            yield Finding("DMT105", "error", path, reason, hint)


def _form(module: nn.Module) -> tuple[str, str] | None:
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # not imported: then nothing can be compiled
    kind = type(module).__name__
    if compiled is not None and isinstance(module, compiled.OptimizedModule):
        return f"{kind} is a compiled module (torch.compile)", "pass the eager module (._orig_mod); compile afterwards"
    if module._compiled_call_impl is not None:
        return f"{kind} was compiled in place (module.compile())", "compile after the transformation"
    if isinstance(module, torch.jit.ScriptModule):
        return f"{kind} is a scripted module (torch.jit)", "pass the eager module it was made from"
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return f"{kind} wraps the model for distribution", "pass the model inside (.module); DeepSpeed distributes it"
    return None


def _hooked(model: nn.Module) -> Iterator[Finding]:
    for path, module in model.named_modules():
        if path and is_leaf(module):
            continue
        forward = sum(len(getattr(module, table)) for table in _FORWARD_HOOKS)
        backward = sum(len(getattr(module, table)) for table in _BACKWARD_HOOKS)
        if backward or (forward and not path):
            what = "backward" if backward else "forward"
            yield Finding(
                "DMT112", "error", path,
                f"{what} hooks are registered here, which would not run with the graph",
                "remove them before the transformation and register them on the model it returns",
            )  # fmt: skip
        elif forward:
            yield Finding(
                "DMT112", "warning", path,
                f"{forward} forward hook(s) are registered here; they are recorded as they are now, and removing them "
                "later changes nothing",
                "remove them before the transformation unless they belong to the model",
            )  # fmt: skip


def hidden_tensors(path: str, kind: type) -> CaptureError:
    """The error for a part of a batch whose tensors cannot be found.

    Args:
        path: of the part, from the name of forward's argument on.
        kind: its type.
    """
    reason = f"the input {path} is a {kind.__module__}.{kind.__qualname__}, whose tensors cannot be found"
    hint = "pass tensors, lists, tuples, dicts or dataclasses of them, a KeyedJaggedTensor or a KeyedTensor"
    if kind.__module__.partition(".")[0] == "numpy":
        hint = f"pass a tensor in its place, torch.from_numpy({path})"
    return CaptureError([Finding("DMT108", "error", path, reason, hint)])
