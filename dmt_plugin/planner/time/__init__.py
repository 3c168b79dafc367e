"""How long a training step takes: its parts as tasks, rates of the hardware, and a schedule of the two."""
