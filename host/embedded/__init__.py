"""The door into the embedded host, where there is no ComfyUI."""
