"""The exceptions for what a user can put right."""


class UserError(Exception):
    """A mistake in the user's input. Commands print its one message, without a traceback, and exit 2."""


class Diverged(UserError):
    """The loss or a weight is no longer finite: these settings train nothing."""


class Aborted(BaseException):
    """A signal came where there is nothing to save."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def message_of(error: UserError) -> str:
    """The message alone: a DataLoader wraps a worker's error in the text of its traceback."""
    return str(error).rsplit("UserError: ", 1)[-1].strip()
