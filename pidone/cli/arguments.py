"""Arguments that several commands share, and how a shell completes each argument."""

import argparse
from collections.abc import Callable

# Values of an argument's attribute ``complete``: file names, paths of fields, kinds.
FILES, FIELDS, KIND_NAMES = "files", "fields", "kinds"

Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_command(
    commands: "Commands[argparse.ArgumentParser]",
    name: str,
    call: Callable[[argparse.Namespace], int],
    summary: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    """Add a command. ``call`` runs it and returns the exit code."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(call=call)
    return command


def add_files(command: argparse.ArgumentParser, *, text: str, nargs: str | None = None) -> None:
    command.add_argument("file", nargs=nargs, metavar="FILE", help=text).complete = FILES  # type: ignore[attr-defined]


def add_pod(command: argparse.ArgumentParser, *, required: bool = False) -> None:
    command.add_argument(
        "--pod",
        metavar="POD",
        required=required,
        help="the pod: a manifest, or the output of kubectl get pod -o yaml (or json)",
    ).complete = FILES  # type: ignore[attr-defined]
    command.add_argument(
        "--param",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="the value of a param, as in a TaskBinding",
    )


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f'"{text}" is no port; expected 1 to 65535')
    return int(text)


def assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=VALUE')
    return name, value
