"""What is known about torch's operations: what each does to changed dimensions, and whether it keeps samples apart."""
