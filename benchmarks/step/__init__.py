"""Time of one training step: this project's routes against what people would use instead."""
