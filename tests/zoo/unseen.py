"""Models written without a look at the compiler, by a user who wants to break it.

``VARIANTS`` are those of the catalogue: each has a structure that no other family has, and its own constructor.
``ALL`` has the rest too, refusals included: habits of code, ways to make ids, sequences. What a refusal must say is
tested where it is made; ``ALL`` is for whoever changes the compiler, to see which verdicts move.
"""

from tests.zoo import (
    unseen_hostile,
    unseen_inputs,
    unseen_interactions,
    unseen_sequences,
    unseen_tables,
    unseen_tasks,
)

ALL = [
    *unseen_sequences.VARIANTS,
    *unseen_interactions.VARIANTS,
    *unseen_tables.VARIANTS,
    *unseen_tasks.VARIANTS,
    *unseen_hostile.VARIANTS,
    *unseen_inputs.VARIANTS,
]

_CHOSEN = (
    "u_autoint_plus", "u_dcn_mix", "u_edcn", "u_fwfm_mask", "u_fmfm", "u_gdcn", "u_afn", "u_normed_fields",
    "u_mmoe_raw", "u_ple", "u_pepnet", "u_wukong", "u_cin_einsum", "h_no_grad",
)  # fmt: skip

VARIANTS = [variant for variant in ALL if variant.name in _CHOSEN]
