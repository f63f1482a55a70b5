"""Headless running: workflows without ComfyUI."""
