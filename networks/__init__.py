"""Networks that no library has, and what makes the libraries' fast."""
