"""Makes text that other programs and people have written safe to print and to log."""


def printable(text: str, width: int = 0) -> str:
    """Return the text on one line, with nothing in it that a terminal or a reader of logs obeys.

    Line ends, tabs and other blanks become spaces. Control characters (ESC, and with it CSI and OSC sequences),
    invisible and bidirectional format characters, and lone surrogates become U+FFFD. With a ``width`` the text has at
    most as many characters, of which the last three are dots if it was longer.
    """
    if width and len(text) > width:
        text = text[: width - 3] + "..."
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
