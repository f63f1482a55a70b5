"""The embedded family: its data set, training, weights and score."""
