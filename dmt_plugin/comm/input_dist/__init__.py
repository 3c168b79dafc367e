"""Input distribution: every rank's ids travel to the ranks that hold the tables (TorchRec's ``input_dist``)."""
