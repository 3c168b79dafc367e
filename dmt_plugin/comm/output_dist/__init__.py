"""Output distribution: embeddings and tower outputs travel to the ranks that need them (TorchRec's ``output_dist``)."""
