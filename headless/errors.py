"""What the headless runner refuses with."""

from __future__ import annotations

from ..edges import UserError


class WorkflowError(UserError):
    """A workflow that cannot be read or run; the message names the node and the cure."""


class Unsupported(WorkflowError):
    """What ComfyUI can do and the headless runner cannot: it refuses the whole workflow, where
    ComfyUI's own refusal would only leave out an output."""
