"""What a wrong setting raises."""


class ConfigError(ValueError):
    """A wrong setting, in one line: what, where, and what it must be."""
