"""What ``dmt plan`` shows."""
