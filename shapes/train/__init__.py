"""Training of the embedded family; nothing of it is installed."""
