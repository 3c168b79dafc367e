"""Functions that users name by path: found, run once, and every failure said with its place."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.user_code import call_factory, load_factory


@pytest.fixture(autouse=True)
def fresh_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of one test are not in the way of the next."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


COUNTED = """
from pathlib import Path
log = Path(__file__).with_suffix(".log")
log.write_text(log.read_text() + "run\\n" if log.exists() else "run\\n")

class Net: ...

def build(): return Net()
def again(): return Net()
"""


def test_a_file_runs_once_whatever_names_it(tmp_path: Path) -> None:
    (tmp_path / "net_once.py").write_text(COUNTED)
    (tmp_path / "batch_once.py").write_text("from net_once import Net\ndef batch(): return Net\n")
    relative = load_factory("net_once.py:build", "--model")
    absolute = load_factory(f"{tmp_path}/net_once.py:again", "--batch")
    dotted = load_factory("net_once:build", "--model")
    assert (tmp_path / "net_once.log").read_text() == "run\n"
    assert relative is dotted and type(relative()) is type(absolute())
    assert load_factory("batch_once.py:batch", "--batch")() is type(relative())
    assert (tmp_path / "net_once.log").read_text() == "run\n"
    assert type(pickle.loads(pickle.dumps(relative()))) is type(relative())


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text(f"class Net: ...\ndef build(): return {folder!r}, Net()\n")
    first, second = (load_factory(f"{f}/same_name.py:build", "--model") for f in ("one", "two"))
    assert first()[0] == "one" and second()[0] == "two"
    for factory in (first, second):
        assert type(pickle.loads(pickle.dumps(factory()[1]))) is type(factory()[1])


def test_a_file_named_like_a_library_module_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("def build(): return 'mine'\n")
    import queue

    assert load_factory("queue.py:build", "--model")() == "mine"
    assert sys.modules["queue"] is queue


@pytest.mark.parametrize(
    ("spec", "text", "said"),
    [
        ("net", "", "expected package.module:function"),
        ("net:", "", "expected package.module:function"),
        ("gone.py:build", "", "no such file: gone.py (looked in"),
        ("net.py:biuld", "def build(): ...\n", "net.py has no function 'biuld'. It defines build."),
        ("net.py:SIZE", "SIZE = 3\n", "It defines none."),
        ("net.py:build", "import torch\n\nraise OSError('no table sizes')\n", "OSError: no table sizes ({net}:3)"),
        ("net.py:build", "def build(:\n", "SyntaxError"),
        ("net.py:build", "import absent_package\n", "No module named 'absent_package' ({net}:1)"),
        ("absent.module:build", "", "no module 'absent.module' can be imported from"),
    ],
)
def test_what_fails_is_said(tmp_path: Path, spec: str, text: str, said: str) -> None:
    net = tmp_path / "net.py"
    net.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_factory(spec, "--model")
    assert str(error.value).startswith(f"--model {spec}")
    assert said.format(net=net) in str(error.value)
    assert not [n for n, m in sys.modules.items() if getattr(m, "__file__", None) == str(net) and "OSError" in said]


def test_a_key_of_the_config_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^dmt\.transform\.example_batch = 'gone\.py:f': no such file"):
        load_factory("gone.py:f", "dmt.transform.example_batch")


def test_a_factory_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("def build(rows):\n    return 1\n\ndef broken():\n    return {}['rows']\n")
    for name, said in (
        ("build", "build() raised TypeError: build() missing 1 required positional argument"),
        ("broken", f"broken() raised KeyError: 'rows' ({tmp_path}/raises.py:5). It is called without arguments."),
    ):
        spec = f"raises.py:{name}"
        with pytest.raises(ConfigError) as error:
            call_factory(load_factory(spec, "--model"), spec, "--model")
        assert said in str(error.value), error.value
