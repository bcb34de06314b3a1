"""The one exception a person is meant to read."""


class UserError(ValueError):
    """Bad input or an unmet precondition, said in one sentence: what, which value, what instead.

    The command line prints it as one line and exits 2; the app shows it as text. Anything else
    that escapes is a bug and keeps its traceback.
    """
