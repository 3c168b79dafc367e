"""Tools for torch.fx graphs that know nothing of towers."""
