"""Training on a user's own pictures; the embedded family's training is in ``shapes``."""
