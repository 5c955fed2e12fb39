"""In the image instead of the standard library's, which is 72 KiB and a large regular expression: attrs asks this."""


def python_implementation() -> str:
    return "CPython"
