"""All variants of the zoo, by name; the published package is there where it is installed."""

from __future__ import annotations

from tests.zoo import deepctr, dlrm, fields, fuxi, joint, torchrec_models, unseen
from tests.zoo.deepctr_package import VARIANTS as PACKAGED
from tests.zoo.spec import Variant


def _all() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for family in (dlrm, torchrec_models, joint, fields, deepctr, fuxi, unseen):
        for variant in family.VARIANTS:
            if variant.name in found:
                raise ValueError(f"two variants are called {variant.name}")
            found[variant.name] = variant
    return found | {variant.name: variant for variant in PACKAGED}


CATALOGUE: dict[str, Variant] = _all()
