"""The user's objects in a checkpoint are read; nothing that a file says is run."""

from __future__ import annotations

import argparse
import builtins
import collections
import copyreg
import datetime
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dmt_plugin.checkpoint.user_objects import UserObjects
from dmt_plugin.core.errors import CheckpointError, ConfigError


@dataclass
class Settings:
    """A class of a user's."""

    name: str = "a"
    rates: Any = field(default_factory=lambda: np.arange(3.0))


class Point(NamedTuple):
    """Another."""

    x: int
    y: Any


VALUES: dict[str, Any] = {
    "plain": {"epoch": 3, "names": ["a", "b"], "at": (1, 2.5, None, True), "many": {1, 2}, "c": 1j, "bytes": b"\xff\0"},
    "large number": 2**900,
    "no bytes": b"",
    "random states": (random.getstate(), np.random.get_state(), np.random.default_rng(0).bit_generator.state),
    "arrays": [np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype=">i4"), np.zeros((0, 3)),
               np.array(["x", "yy"]), np.array(3)],
    "numbers of numpy": (np.float64(0.5), np.bool_(True), np.int8(-3)),
    "tensors": {"t": torch.arange(4).view(2, 2), "half": torch.ones(2, dtype=torch.bfloat16)},
    "time": (datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
             datetime.timedelta(1), datetime.date(2026, 1, 2)),
    "path": Path("/data/a"),
    "arguments": argparse.Namespace(lr=0.1, at=np.arange(2)),
    "counts": collections.Counter("aab"),
    "ordered": collections.OrderedDict(b=1, a=2),
    "deque": collections.deque([1, np.arange(2), 3], maxlen=5),
    "default dict": collections.defaultdict(list, a=[1, 2]),
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    return same(vars(one), vars(other)) if isinstance(one, (argparse.Namespace, Settings)) else bool(one == other)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back(tmp_path: Path, name: str) -> None:
    objects, value = UserObjects(), VALUES[name]
    objects.check({"key": value}, "client_state")
    assert same(objects.read(saved(tmp_path / "a.pt", [value, value])), [value, value])


def test_what_torch_is_told_elsewhere_stays(tmp_path: Path) -> None:
    """The list of what a pickle may name belongs to the process, and the script's part of it holds here too."""
    torch.serialization.add_safe_globals([Settings, np.dtype])
    try:
        before = set(torch.serialization.get_safe_globals())
        assert UserObjects().read(saved(tmp_path / "a.pt", Settings(rates=1))) == Settings(rates=1)
        with pytest.raises(CheckpointError):
            UserObjects().read(saved(tmp_path / "b.pt", Point(1, 2)))
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


@pytest.mark.parametrize("value", [Settings(), [Point(1, np.arange(2))]], ids=["object", "named tuple"])
def test_a_class_is_taken_where_the_configuration_names_it(tmp_path: Path, value: Any) -> None:
    path = saved(tmp_path / "a.pt", {"x": value})
    kind = type(value[0] if isinstance(value, list) else value).__name__
    for attempt in (lambda: UserObjects().check({"best": value}, "client_state"), lambda: UserObjects().read(path)):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert f'"checkpoint": {{"classes": ["{__name__}:{kind}"]}}' in str(caught.value)
    with pytest.raises(
        CheckpointError, match=rf"client_state\['best'\] holds objects of {__name__}.{kind}; .* nothing is"
    ):
        UserObjects().check({"epoch": 1, "best": value}, "client_state")
    named = UserObjects([f"{__name__}:{kind}"])
    named.check({"best": value}, "client_state")
    assert same(named.read(path), {"x": value})


@pytest.mark.parametrize("spec", [f"{__name__}:Nothing", "no_such_module:A"])
def test_a_class_that_is_not_there_is_a_config_error(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"dmt\.checkpoint\.classes"):
        UserObjects([spec])


@pytest.mark.parametrize(
    "value", [np.array([None]), np.zeros(2, dtype=[("a", "f4")]), lambda: 1, print, torch.nn.ReLU()]
)
def test_what_no_load_takes_is_not_saved(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"client_state\['k'\]"):
        UserObjects().check({"k": value}, "client_state")


class Runs:
    """A pickle that calls a function when it is read."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class Mark:
    """Files that would be there if something had been run."""

    def __init__(self, path: Path) -> None:
        self.path = path / "ran"

    def hostile(self) -> list[Any]:
        """Objects whose reading runs code, if anything does."""
        path = str(self.path)
        text = f"__import__('os').mkdir({path!r})"
        return [
            Runs(os.mkdir, (path,)),
            Runs(eval, (text,)),
            Runs(exec, (text,)),
            Runs(getattr, (Path(path), "mkdir")),
            Runs(builtins.__import__, ("os",)),
            Runs(Path.touch, (Path(path),)),
            Runs(torch.load, (path,)),
            Runs(np.load, (path,)),
            Runs(map, (os.mkdir, [path])),
            Runs(collections.defaultdict, (os.getcwd,)),
            Runs(torch._utils._rebuild_parameter, (Runs(os.mkdir, (path,)), False, {})),
            Runs(copyreg.__newobj__, (Runs,), {"call": (os.mkdir, (path,))}),
            Runs(dict, ({"a": 1},), {"update": Runs(os.mkdir, (path,))}),
        ]


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    mark = Mark(tmp_path)
    for number, hostile in enumerate(mark.hostile()):
        for content in (hostile, {"client_state": {"a": [hostile]}}):
            path = tmp_path / "a.pt"
            torch.save(content, path)
            with pytest.raises(CheckpointError, match="nothing of it was run"):
                UserObjects().read(path)
            assert not mark.path.exists(), number


def forged(change: Callable[[bytes], bytes]) -> bytes:
    """A file of torch's whose pickle was changed."""
    source, target = io.BytesIO(), io.BytesIO()
    torch.save({"a": np.arange(3.0)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            new.writestr(entry, change(content) if entry.endswith("data.pkl") else content)
    return target.getvalue()


@pytest.mark.parametrize(
    "old, new",
    [(b"f8", b"O8"), (b"f8", b"V8"), (b"ndarray", b"matrix7"), (b"K\x03\x85", b"K\x07\x85"),
     (b"_reconstruct", b"fromstring__")],
    ids=["objects", "structure", "another class", "more than there is", "another function"],
)  # fmt: skip
def test_arrays_whose_memory_a_file_lies_about(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "a.pt"
    changed = forged(lambda text: text.replace(old, new))
    assert changed != forged(lambda text: text)
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        UserObjects().read(path)


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", pickle.dumps(object), b"text", b"PK\x03\x04"])
def test_damage_is_told(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        UserObjects().read(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        UserObjects().read(path)
