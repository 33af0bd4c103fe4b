"""The one exception type that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can fix: the message names the offending value and says what to do.

    The command line prints it as a single line and leaves with exit code 2; no traceback is shown.
    """
