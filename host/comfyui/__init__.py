"""The door into the real ComfyUI."""
