"""All variants of the zoo, by name; the published package is there where it is installed."""

from __future__ import annotations

from tests.zoo import (
    constructs_features,
    constructs_stacked,
    deepctr,
    dlrm,
    fields,
    fuxi,
    joint,
    torchrec_models,
    torchrec_pooled,
    torchrec_sequences,
    unseen,
)
from tests.zoo.deepctr_package import VARIANTS as PACKAGED
from tests.zoo.spec import Variant


def _all() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    torchrecs = (torchrec_models, torchrec_pooled, torchrec_sequences)
    families = (dlrm, *torchrecs, joint, fields, deepctr, fuxi, unseen, constructs_stacked, constructs_features)
    for family in families:
        for variant in family.VARIANTS:
            if variant.name in found:
                raise ValueError(f"two variants are called {variant.name}")
            found[variant.name] = variant
    return found | {variant.name: variant for variant in PACKAGED}


CATALOGUE: dict[str, Variant] = _all()
