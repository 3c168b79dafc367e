"""Checks whether a layer or parameter may be replaced by one of another size: not if shared, frozen or hooked."""

from __future__ import annotations

from torch import fx

from dmt_plugin.passes.ops.axes import Unsupported


def check_resizable(gm: fx.GraphModule, node: fx.Node) -> None:
    """A layer or parameter is replaced only if nothing else depends on the object it replaces.

    Raises:
        Unsupported: it is shared, frozen, or has hooks.
    """
    target = str(node.target)
    if node.op == "get_attr":
        path = target.rpartition(".")[0]
        mine = {target}
        called = {path} if path else set()
    else:
        path = target
        module = gm.get_submodule(path)
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
            raise Unsupported(f"{target} has hooks or parametrizations, which a layer of another size would lose")
        mine = {f"{target}.{name}" for name, _ in module.named_parameters()}
        called = set()
    by_name = dict(gm.named_parameters(remove_duplicate=False))
    frozen = [name for name in sorted(mine) if not by_name[name].requires_grad]
    if frozen:
        raise Unsupported(f"{frozen[0]} is frozen, and a parameter of another size would have to be trained")
    identities = {id(by_name[name]) for name in mine}
    others = [name for name, value in by_name.items() if id(value) in identities and name not in mine]
    for other in gm.graph.nodes:
        if other.op == "call_module" and other.target in called:
            others.append(other.name)
        if other.op == "get_attr" and node.op == "call_module" and other.target in mine:
            others.append(other.name)
    if others:
        raise Unsupported(f"{target} is also used by {others[0]}; a parameter of another size cannot be shared")
