"""Keys that look like paths, as those of etcd. They are names, and no server resolves them."""


def problem(text: str) -> str:
    """Return why nobody could find a key of this text, with the remedy; empty if it can be found."""
    if text != text.strip():
        return f'"{text}" begins or ends with a blank, which nobody sees; remove it'
    segments = text.removeprefix("/").split("/")
    if "" in segments:
        return f'"{text}" has an empty segment; write one "/" between two segments, and none at the end'
    if any(segment in {".", ".."} for segment in segments):
        return f'"{text}" has a segment "." or "..", which readers resolve; write the key without it'
    if any(character < " " or character == "\x7f" for character in text):
        return f"{text!r} has a control character; remove it"
    return ""


def part_problem(text: str) -> str:
    """Return the same for the inner part of a key, which pidone puts behind a prefix."""
    if text.startswith("/"):
        return (
            f'"{text}" begins with "/", which pidone adds where the layout has one; write {text.lstrip("/")}'
        )
    return problem(text)
