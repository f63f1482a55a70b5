"""What no workflow, widget, wire or configuration should hold, drawn by a seed, and what comes of
it. ``python -m tests.bad_inputs --cases 20000 --seed 1`` counts."""
