"""Public models of the zoo can be measured and partitioned: tables of all kinds, several widths, bags and sequences."""

from __future__ import annotations

import pytest

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.partitioner import make_partition
from dmt_plugin.partitioning.feature_rows import FeatureRows
from dmt_plugin.partitioning.partition_model import measure_affinity
from tests.zoo.survey import CATALOGUE

NAMES = (
    "dlrm_mixed_dims", "dlrm_qr_mult", "dlrm_weighted_learned", "torchrec_dlrm", "joint_deepfm", "joint_ffm",
    "shared_tables", "fuxi_deepfm_sequence",
)  # fmt: skip


def call(batch: object) -> ExampleBatch:
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], dict):
        return ExampleBatch(*batch)
    return ExampleBatch(batch if isinstance(batch, tuple) else (batch,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["cosine", "mutual_information"])
def test_measured_and_partitioned(name: str, kind: str) -> None:
    model, batch = CATALOGUE[name].build()
    batches = [call(batch(n, seed)) for seed, n in enumerate((16, 9, 16))]
    rows = FeatureRows(model, batches[0])
    affinity = measure_affinity(rows, batches, kind, missing="zero")  # type: ignore[arg-type]
    assert affinity.samples == 41 and set(affinity.features) == {f.name for f in rows.features}
    config = PartitionConfig(strategy="learned", balance="cost", bound=10.0)
    found = make_partition(rows.features, rows.tables, 2, config, affinity=affinity, model=rows.fingerprint)
    assert sorted(n for t in found.towers for n in t) == sorted(affinity.features)
