"""Steps that the planner predicts beside steps that were measured, on an emulated cluster."""
