"""The algorithms, in plain torch: one module a system; ``parts`` is what they share."""
