"""Reading files: checkpoints, archives, the hub's folders, downloads, the catalogue."""
