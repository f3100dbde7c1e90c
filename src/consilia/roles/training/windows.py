"""Through which HU window a task sees CT."""

from __future__ import annotations

from consilia.imaging.cases import WindowHU
from consilia.protocols.task_spec import TaskSpec


def window_of(spec: TaskSpec) -> WindowHU | None:
    """The HU window that every CT slice of a task is seen through, the first of several; None leaves it to the body."""
    return WindowHU(*spec.data.windows[0]) if spec.data.windows else None
