"""Every error this project raises on purpose.

One root, named leaves. Each error carries the problem (which file or value, and
what is wrong with it) and the fix (what a person can do about it).
"""

from __future__ import annotations


class AesegError(Exception):
    """Root of all errors raised on purpose by this project.

    Args:
        problem: Which file or value is wrong, and how. No trailing full stop.
        fix: What to do about it, as a sentence that starts with a verb.

    Attributes:
        problem: As given.
        fix: As given.

    Example:
        >>> str(AesegError("frame has 2 channels, the bundle wants 3", fix="Pass a BGR image."))
        'frame has 2 channels, the bundle wants 3. Pass a BGR image.'
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}. {fix}")
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with both parts, so that errors survive process boundaries."""
        return (_rebuild, (type(self), self.problem, self.fix))


def _rebuild(kind: type[AesegError], problem: str, fix: str) -> AesegError:
    return kind(problem, fix=fix)


class UsageError(AesegError):
    """An option or argument has a value that cannot be used (exit code 2)."""


class MissingDependency(AesegError):
    """An optional package is needed and not importable."""


class BundleError(AesegError):
    """A bundle is missing, damaged, unsafe or of an unknown schema."""


class CodebookError(AesegError):
    """A codebook's arrays, names or class ids do not fit together."""


class FrameError(AesegError):
    """A frame has the wrong dtype, channel count or size."""


class SourceError(AesegError):
    """A source of frames cannot be opened or read."""


class SinkError(AesegError):
    """A sink cannot be opened or written."""


class FootageError(AesegError):
    """Footage has no usable frames."""


class TrainingError(AesegError):
    """Training cannot start, or must stop (a loss that is not a number)."""


class CalibrationError(AesegError):
    """A codebook or INT8 ranges cannot be fitted from the frames given."""


class ExportError(AesegError):
    """A trained model cannot be turned into a deployable graph."""


class EvaluationError(AesegError):
    """Images, masks and classes of an evaluation do not fit together."""


class BackendError(AesegError):
    """A backend cannot open or run a graph."""


class EngineError(BackendError):
    """A TensorRT engine cannot be built, read or run."""


class EngineNotBuilt(EngineError):
    """No engine for this bundle and this device is in the cache yet."""
