"""A package, so that another library's `tests` does not stand in its place."""
