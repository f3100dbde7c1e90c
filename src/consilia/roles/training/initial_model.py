"""Where w_0 comes from: drawn by the spec's seed, a whole model, or pretrained weights that the spec names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import SpecError
from consilia.federation.tensors import TensorFile, local_tensors
from consilia.protocols.task_spec import TaskSpec
from consilia.roles.artifacts import file_digest
from consilia.roles.progress import Report, silent
from consilia.values import Digest

InitialModel = Callable[[TaskSpec, Path], None]
"""Writes w_0 of a spec into a file; the same bytes each time."""


def with_initial_model(spec: TaskSpec, folder: Path, write: InitialModel) -> TaskSpec:
    """Write w_0 into `folder`, unless it is there, and return the spec with its digest.

    Raises:
        SpecError: the file is not the one that the spec names, or its local tensors do not fit the spec.
        WeightsError: no hospital could read it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "round-000.safetensors"
    if not first.exists():
        partial = first.with_suffix(".partial")
        write(spec, partial)
        with TensorFile(partial) as file:  # what no hospital could read is refused here
            if bool(local_tensors(file)) != spec.training.local_norm:
                raise SpecError(
                    "training.local_norm: expected an initial model that names its local tensors where this is "
                    "true, and none elsewhere; let the server write the initial model"
                )
        partial.replace(first)
    digest = str(file_digest(first))
    if spec.model.initial_digest not in ("", digest):
        raise SpecError(
            f"model.initial_digest: expected {digest}, the initial model's, or none; got {spec.model.initial_digest}"
        )
    return spec.model_copy(update={"model": spec.model.model_copy(update={"initial_digest": digest})})


@dataclass(frozen=True)
class InitialModelFiles:
    """The files that a server was given; nothing is ever fetched from anywhere."""

    whole: Path | None = None
    """A model of the task's detector with all its tensors."""
    pretrained: Path | None = None
    report: Report = silent

    def write(self, spec: TaskSpec, path: Path) -> None:
        """Write w_0 of a spec; the same bytes each time.

        Raises:
            SpecError: pretrained weights are asked for and not given, given and not asked for, or are others.
            WeightsError: a file is not of this detector.
        """
        pretrained = self._pretrained(spec)
        if self.whole is not None and not spec.training.local_norm:
            path.write_bytes(self.whole.read_bytes())
            return
        from consilia.roles.training.local_training import write_initial_model

        write_initial_model(spec, path, self.whole, pretrained, self.report)

    def _pretrained(self, spec: TaskSpec) -> bytes | None:
        """What is hashed is what is taken: the file is read once."""
        asked = spec.model.pretrained_digest
        if asked and self.whole is not None:
            raise SpecError(
                "model.pretrained_digest: expected its file alone (--pretrained), got a whole initial model "
                "(--initial-model), of which nobody could tell where it began"
            )
        if self.pretrained is None:
            if asked:
                raise SpecError(
                    f"model.pretrained_digest: expected the file with SHA-256 {asked}, got none; "
                    "give it with --pretrained, nothing is downloaded"
                )
            return None
        data = self.pretrained.read_bytes()
        came = str(Digest.of(data))
        if came != asked:
            raise SpecError(
                f"model.pretrained_digest: expected {asked or 'the digest of the weights in --pretrained'}, got a file "
                f"with {came}; pretrained weights are taken only if the TaskSpec names them"
            )
        return data
