"""The one exception that users of SCAP see."""


class ScapError(ValueError):
    """A mistake that the user can mend: the message names the key, file or layer and the way out."""
