"""The one exception that speaks to users."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one clear sentence that names the file or field, the value found there and the
    mend. `main` prints it and exits with status 1; it never reaches the user as a traceback.
    """
