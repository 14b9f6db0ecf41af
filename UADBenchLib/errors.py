"""The errors that a user sees: a stable code, what is wrong, and what to do about it.

Every refusal in UADBench is one of these, so that the command line, the worker and Slicer can show the same sentence.
"""

from __future__ import annotations


class UADBenchError(Exception):
    """A refusal with a stable code.

    Parameters
    ----------
    code : str
        Short upper-case name that scripts may rely on, for example ``"TRUNCATED"``.
    message : str
        What is wrong, naming the offending value; one line.
    advice : str
        What the user can do about it; one line.
    """

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(f"{code}: {message}" + (f"; {advice}" if advice else ""))
        self.code = code
        self.message = message
        self.advice = advice

    def __reduce__(self) -> tuple:
        return type(self), (self.code, self.message, self.advice)


class InputError(UADBenchError):
    """A file, array or option that cannot be used."""


class CancelledError(UADBenchError):
    """The user asked to stop; nothing half-written is left behind."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "stopped on request", "")

    def __reduce__(self) -> tuple:
        return type(self), ()
