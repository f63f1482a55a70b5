"""Many rows and many GPUs: a workflow over a table, and the model cards' evaluation."""
