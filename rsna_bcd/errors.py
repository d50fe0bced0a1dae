"""The one exception that means: the input is wrong, and this is how to mend it."""


class InputError(Exception):
    """Bad input that the user can mend.

    The message names the thing (file, row, column or configuration key) and the remedy. Stages
    print it without a traceback and exit with 1.
    """


class StorageError(InputError):
    """Results cannot be written (disk full, no permission): more work would be lost as well."""
