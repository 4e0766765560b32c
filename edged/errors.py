"""Errors that cross a boundary of the daemon. A user's error says what is wrong, where, and what to do.

Does not log and does not decide: whoever catches an error decides, the edge logs.
"""


class EdgedError(Exception):
    """An error with a message for a person and, where there is one, a hint that says what to do.

    ``code`` is a stable, lower-case word for machines: it goes into results, events and exit messages.
    """

    code = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(EdgedError):
    """The configuration cannot be used."""

    code = "config"


class BundleError(EdgedError):
    """A model bundle is damaged, unsafe or not one of ours. Nothing was changed."""

    code = "bundle"


class NotOpen(EdgedError):
    """A pipeline that is starting or stopping takes no frames; it may a moment later."""

    code = "not-open"


class FrameRejected(EdgedError):
    """A frame can never be inferred: unreadable, of the wrong shape or type, not finite. Retrying does not help."""

    code = "rejected"


class EngineError(EdgedError):
    """An engine could not load a model or run it; the engine itself still stands."""

    code = "engine"


class EngineRefused(EngineError):
    """The engine can never run this model: a node that it does not have, a size that it does not take."""

    code = "engine-refused"


class EngineLost(EngineError):
    """The engine's worker crashed, hung past its deadline, or spoke nonsense; its frames may be tried once more."""

    code = "engine-lost"


class EngineAway(EngineLost):
    """No worker was there to see the call: it says nothing about its frames, which may go anywhere else."""


class EngineCrashed(EngineLost):
    """The worker was lost by its own doing, or its model's: a fault, a hang, nonsense; nobody else ended it."""


class StoreError(EdgedError):
    """The buffer cannot store or read; ``code`` names the cause (full, io, corrupt)."""

    code = "buffer"
