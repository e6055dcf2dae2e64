"""What is wrong with what someone gave, in one line."""


class ConfigError(ValueError):
    """Names the setting or the file, what it was and what it must be.

    What it quotes may hold anything; a line break or a control character in it becomes a space.
    """

    def __init__(self, text: object) -> None:
        line = "".join(c if c.isprintable() else " " for c in str(text))
        super().__init__(" ".join(line.split()))
