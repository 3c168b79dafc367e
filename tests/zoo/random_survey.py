"""Runs random architectures through the compiler: ``python -m tests.zoo.random_survey --seeds 5000``.

For every seed: the graph and the model with pass-through towers compute what the model computes, gradients included;
tower modules (half the width, then the full width with one more output) train, and equal the architecture that the
same seed gives for as many features as there are streams; what is refused goes by decoder. What is neither taken nor
refused with a finding is a crash, what is taken and differs is wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from dmt_plugin import compiler
from dmt_plugin.core.errors import CaptureError, DMTError, TransformError
from dmt_plugin.model.logical import TowerModel
from tests.zoo.checks import TOPOLOGY, Differs, build, check_towers, example, loss_of, require_equal, run, tower_config
from tests.zoo.oracle import check_oracle
from tests.zoo.random_models import FIELDS, WIDTH, variant
from tests.zoo.spec import Variant

SMALL = {"features": 4, "width": 6}
"""Sizes of models that are only run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a seed.

    Attributes:
        seed: the seed.
        verdict: "native", "decoder", "not captured", "refused", "wrong" or "crash".
        said: why it is not native.
    """

    seed: int
    verdict: str
    said: str = ""


@contextmanager
def one_capture() -> Iterator[None]:
    """Captures a model once for all that is asked of a seed; each use copies the graph, as ``transform`` does."""
    found: dict[str, Any] = {}
    original = compiler.capture

    def capture(model: Any, batch: Any) -> Any:
        key = str({name: tuple(value.shape) for name, value in model.state_dict().items()})
        if key not in found:
            found[key] = (original(model, batch), model)
        return found[key][0]

    with mock.patch.object(compiler, "capture", capture):
        yield


def outcome(seed: int, *, quick: bool = False) -> Outcome:
    """Everything that is checked of one seed.

    Args:
        seed: of the architecture.
        quick: whether the rewritten model is only run and its gradients looked at, instead of all that the zoo asks.
    """
    drawn = variant(seed)
    ask, width = (_runs, SMALL["width"]) if quick else (check_towers, WIDTH)
    settings = ((1, 0, width // 2), (1, 1, width))
    try:
        _same_with_pass_through(drawn, quick)
    except CaptureError as error:
        return Outcome(seed, "not captured", _first(error))
    except DMTError as error:
        return Outcome(seed, "refused", _first(error))
    except Differs as error:
        return Outcome(seed, "wrong", f"SPTT: {error}")
    except Exception as error:
        return Outcome(seed, "crash", f"SPTT: {type(error).__name__}: {error}")
    said = ""
    for setting in settings:
        try:
            made = ask(drawn, tower_config(*setting))
            apart = any(f.code == "DMT306" for f in made.findings)  # the constructor knows no feature beside the towers
            if not quick and not apart and drawn.oracle is not None:
                check_oracle(drawn, (FIELDS, WIDTH, *setting))
            return Outcome(seed, "native")
        except TransformError as error:
            said = said or _first(error)
        except Differs as error:
            return Outcome(seed, "wrong", f"{setting}: {error}")
        except Exception as error:
            return Outcome(seed, "crash", f"{setting}: {type(error).__name__}: {error}")
    try:
        ask(drawn, tower_config(*settings[0], "decoder"))
    except DMTError as error:
        return Outcome(seed, "refused", _first(error))
    except Exception as error:
        return Outcome(seed, "crash", f"decoder: {type(error).__name__}: {error}")
    return Outcome(seed, "decoder", said)


def _runs(drawn: Variant, config: dict[str, Any]) -> TowerModel:
    """With tower modules it gives results of the same shape, and every parameter that had a gradient has one."""
    reference, batch = build(drawn, **SMALL)
    config["dmt"]["transform"]["verify"] = False  # what that checks was checked with pass-through towers
    towers = compiler.transform(build(drawn, **SMALL)[0], example(batch), config, TOPOLOGY)
    found = []
    for model in (reference, towers):
        outputs = run(model.train(), batch, 9, 1)
        loss_of(outputs).backward()
        found.append([tuple(o.shape) for o in outputs])
    if found[0] != found[1]:
        raise Differs(f"results of the shapes {found[1]}")
    useless = {n for n, p in reference.named_parameters() if p.grad is None}
    without = [n for n, p in towers.named_parameters() if p.grad is None and n not in useless]
    if without:
        raise Differs(f"parameters without a gradient: {without[:4]}")
    return towers


def _first(error: DMTError) -> str:
    findings = [f for f in getattr(error, "findings", ()) if f.severity == "error"]
    return f"{findings[0].code} {findings[0].reason}" if findings else str(error)


def _same_with_pass_through(drawn: Variant, quick: bool) -> None:
    sizes = SMALL if quick else {}
    flat, batch = build(drawn, **sizes)
    other, _ = build(drawn, **sizes)
    config = {"dmt": {"towers": {"module": "none"}, "transform": {"verify": not quick}}}
    towers = compiler.transform(other, example(batch), config, TOPOLOGY)
    results = []
    for model in (flat, towers):
        model.train()
        outputs = run(model, batch, 6, 3)
        loss_of(outputs).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append(([o.detach() for o in outputs], gradients))
    require_equal(results[0][0], results[1][0], "outputs")
    if results[0][1].keys() != results[1][1].keys():
        raise Differs(f"gradients: only one model has {sorted(results[0][1].keys() ^ results[1][1].keys())}")
    for name, gradient in results[0][1].items():
        require_equal([gradient], [results[1][1][name]], f"gradient of {name}")


def survey(seeds: range, *, quick: bool = False) -> list[Outcome]:
    """The outcome of every seed."""
    found = []
    for seed in seeds:
        with one_capture():
            found.append(outcome(seed, quick=quick))
    return found


def shares(found: list[Outcome]) -> dict[str, float]:
    """Share of all seeds that were captured, and of those the share of natives; counts of what must not be."""
    counts = Counter(o.verdict for o in found)
    captured = len(found) - counts["not captured"]
    return {
        "captured": captured / len(found), "native": counts["native"] / max(captured, 1),
        "wrong": counts["wrong"], "crash": counts["crash"], "refused": counts["refused"],
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Prints the counts, and every seed that is wrong, crashes or is refused; those make the exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=500, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    found = survey(range(options.first, options.first + options.seeds))
    bad = [o for o in found if o.verdict not in ("native", "decoder")]
    for each in bad:
        sys.stdout.write(f"seed {each.seed}: {each.verdict}: {each.said[:400]}\n")
    reasons = Counter(o.said[:150] for o in found if o.verdict == "decoder")
    for reason, count in reasons.most_common(20):
        sys.stdout.write(f"decoder {count}: {reason}\n")
    sys.stdout.write(f"{len(found)} architectures: {shares(found)}\n")
    return int(any(o.verdict in ("wrong", "crash", "refused") for o in found))


if __name__ == "__main__":
    sys.exit(main())
