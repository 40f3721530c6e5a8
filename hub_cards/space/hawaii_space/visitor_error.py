"""The class of errors that a visitor can correct."""


class VisitorError(ValueError):
    """
    The message is one or more full sentences for whoever uses the page. Other errors may name files of the server, so
    they are only logged.
    """
