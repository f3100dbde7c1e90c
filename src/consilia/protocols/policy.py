"""Whether a hospital takes part in a task without asking a person (step 1 of docs/protocols/training.md)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from consilia.errors import PolicyError
from consilia.protocols.task_spec import TaskSpec


class Policy(Protocol):
    """What a hospital's settings admit."""

    @property
    def applications(self) -> Collection[str]:
        """Modalities, such as CT."""

    @property
    def purposes(self) -> Collection[str]:
        """What the result may be used for."""

    @property
    def detectors(self) -> Collection[str]:
        """Models that this hospital is willing to run."""

    @property
    def privacy(self) -> Collection[str]:
        """Privacy modes."""

    @property
    def minimum_quorum(self) -> int:
        """Fewer hospitals than that would leave one alone with the server."""

    @property
    def minimum_reward_wei(self) -> int:
        """Below that it does not take part."""


def admit(spec: TaskSpec, policy: Policy) -> None:
    """Admit a task, or say all that speaks against it.

    Raises:
        PolicyError: the local policy does not admit the task.
    """
    listed: tuple[tuple[str, str, Collection[str]], ...] = (
        ("purpose.application", spec.purpose.application, policy.applications),
        ("purpose.purpose", spec.purpose.purpose, policy.purposes),
        ("model.detector", spec.model.detector, policy.detectors),
        ("training.privacy", spec.training.privacy, policy.privacy),
    )
    objections = [
        f"{key} is {value!r}, the policy admits {', '.join(sorted(admitted)) or 'nothing'}"
        for key, value, admitted in listed
        if value not in admitted
    ]
    if spec.terms.quorum < policy.minimum_quorum:
        objections.append(
            f"terms.quorum is {spec.terms.quorum}, the policy wants at least {policy.minimum_quorum}"
        )
    if spec.terms.reward_wei < policy.minimum_reward_wei:
        objections.append(
            f"terms.reward_wei is {spec.terms.reward_wei}, the policy wants {policy.minimum_reward_wei}"
        )
    if objections:
        raise PolicyError("; ".join(objections))
