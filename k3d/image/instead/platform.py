"""Replaces the module of the standard library, which takes 72 KiB and a large regular expression. For attrs."""


def python_implementation() -> str:
    return "CPython"
