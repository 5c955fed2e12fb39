"""Commands and their options; what a command does stands in the module of its name, imported when it is called."""

import argparse
from collections.abc import Sequence

from pidone import __version__


def run(argv: Sequence[str]) -> int:
    """The exit code: 0, 1 findings, 2 usage (argparse's own)."""
    arguments = _parser().parse_args(argv)
    match arguments.command:
        case "check":
            from pidone.cli.check import check

            return check(arguments.file)
        case _:
            from pidone.cli.run import run_file

            return run_file(arguments.file, arguments.pod, dict(arguments.param))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pidone",
        description="Process 1 of a pod. Without arguments it is just that, configured by PIDONE_REPO; "
        "with a command it helps to write what pods run.",
    )
    parser.add_argument("--version", action="version", version=f"pidone {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="find the mistakes in TaskSets and TaskBindings")
    check.add_argument("file", nargs="+", metavar="FILE", help="a file, a folder, or - for standard input")
    run_command = commands.add_parser("run", help="run the TaskSets of a file here, without a repo")
    run_command.add_argument("file", metavar="FILE", help="a file with one TaskSet or several")
    run_command.add_argument(
        "--pod", metavar="POD", help="the pod to be: a manifest, or kubectl get pod -o yaml"
    )
    run_command.add_argument(
        "--param",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="a param's value, as a TaskBinding would give it",
    )
    return parser


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=VALUE')
    return name, value
