"""The evaluation of the paper (Luo et al., MLSys 2024, arXiv 2403.00877) as data, and what the model says."""
