"""Constants of the time model, fitted to runs that were recorded."""
