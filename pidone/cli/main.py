"""Defines the commands and their options. The module of a command's name has its code, and is imported when it runs."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence

from pidone import __version__
from pidone.cli.arguments import FIELDS, KIND_NAMES, Commands, add_command, add_files, add_pod, port_number

EXAMPLES = """\
examples:
  pidone check tasks                                  report every mistake in a folder, with its remedy
  pidone explain TaskSet.spec.tasks.probe             describe a field and the fields below it
  pidone render tasks/eureka.yaml --pod pod.yaml      print the plan of this pod
  pidone graph tasks/eureka.yaml                      draw the tasks and their dependencies
  pidone test tasks                                   run the test cases of the sets on a fake clock
  pidone run tasks/metrics.yaml                       run the tasks on this machine, without a repo
  pidone status                                       show the state of each task of this pod
  source <(pidone completion bash)                    enable completion in bash
"""
INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell has them: 128 and the number of the signal


def run(argv: Sequence[str]) -> int:
    """Run a command. Exit code 0, 1 for findings or failures, 2 for wrong usage or a file that cannot be read."""
    try:
        arguments = _parse(argv)
        command: Callable[[argparse.Namespace], int] = arguments.call
        code = command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        _discard_output()
        name = f"{error.filename}: " if error.filename else ""
        print(f"pidone: {name}{error.strerror or error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - a traceback helps nobody but us, and is in the line
        from pidone.cli.output import complain
        from pidone.errors import last_words

        words = last_words(error).replace("\n", " ")
        complain(
            f"pidone {__version__} failed, and should not have: {words}. "
            "Please report this line, with the command and its files, where you have pidone from."
        )
        return 1
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    try:
        return parser().parse_args(argv)
    except SystemExit:
        if argv and shutil.which(argv[0]):
            print(
                f"pidone: to run it as the command of a container: pidone -- {shlex.join(argv)}",
                file=sys.stderr,
            )
        raise


def _discard_output() -> None:
    """Discard output that is not written yet; otherwise the interpreter would write it at its end, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. An argument's attribute ``complete`` tells what a shell completes it with."""
    whole = argparse.ArgumentParser(
        prog="pidone",
        description="Without arguments: process 1 of a pod, configured by its environment (PIDONE_REPO). "
        "`pidone -- COMMAND`: process 1 of one container. The commands below help to write TaskSets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"pidone {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _writing(commands)
    _trying(commands)
    completion = add_command(commands, "completion", _completion, "print the completion script of a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")
    return whole


def _writing(commands: "Commands[argparse.ArgumentParser]") -> None:
    check = add_command(
        commands,
        "check",
        _check,
        "report the mistakes in TaskSets and TaskBindings",
        "All files are checked against each other: bindings against their sets, and sets against those they extend.\n"
        "What is not checked, such as documents of other kinds, is listed on the standard error.\n"
        "exit code: 0 no findings, 1 findings, 2 a file cannot be read, 3 only warnings (with --strict)\n",
    )
    add_files(check, nargs="+", text="a file, a folder, or - for standard input")
    check.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="text for people (the default), json, github for annotations in GitHub Actions, sarif 2.1.0",
    )
    check.add_argument("--strict", action="store_true", help="exit with 3 if there are only warnings")

    explain = add_command(
        commands,
        "explain",
        _explain,
        "describe a field",
        "examples:\n  pidone explain TaskSet\n  pidone explain TaskSet.spec.tasks.probe\n"
        "  pidone explain TaskBinding --recursive\n",
    )
    path = explain.add_argument(
        "path", metavar="PATH", help="a kind, and the path of a field in it, such as TaskSet.spec.tasks"
    )
    path.complete = FIELDS  # type: ignore[attr-defined]
    explain.add_argument(
        "--recursive", action="store_true", help="print names and types of all fields below it"
    )

    schema = add_command(commands, "schema", _schema, "print the JSON Schema of a kind, for editors")
    kind = schema.add_argument(
        "kind",
        nargs="?",
        default="TaskSet",
        metavar="KIND",
        help="TaskSet (the default), TaskBinding, ClusterTaskSet, ClusterTaskBinding, or Test for case files",
    )
    kind.complete = KIND_NAMES  # type: ignore[attr-defined]


def _trying(commands: "Commands[argparse.ArgumentParser]") -> None:
    graph = add_command(commands, "graph", _graph, "draw the dependencies of tasks")
    add_files(graph, nargs="+", text="files and folders with TaskSets")
    graph.add_argument(
        "--format",
        choices=["text", "dot", "mermaid"],
        default="text",
        help="the output format (default text)",
    )

    what = (
        "files and folders with TaskSets. If they contain TaskBindings, the labels of the pod select the sets"
    )
    render = add_command(commands, "render", _render, "print the plan of a pod")
    add_files(render, nargs="+", text=what)
    add_pod(render, required=True)
    render.add_argument(
        "-o",
        "--output",
        choices=["json", "yaml", "digest"],
        default="json",
        help="the output format (default json)",
    )

    test = add_command(
        commands,
        "test",
        _test,
        "run the test cases of TaskSets, each in a new pod, on a fake clock",
    )
    add_files(test, nargs="+", text="case files such as eureka.test.yaml, or folders that contain them")

    status = add_command(
        commands,
        "status",
        _status,
        "show the state of each task of this pod, and why a task does not run",
        "It connects to the loopback interface, so it works only inside the pod. If the image has no pidone:\n"
        "  kubectl exec POD -- wget -qO- 127.0.0.1:19101/status\n",
    )
    status.add_argument(
        "--port",
        type=port_number,
        metavar="N",
        help="the port of /status; default: PIDONE_STATUS_PORT, or 19101",
    )
    status.add_argument("--json", action="store_true", help="print the whole answer as JSON")

    run_command = add_command(commands, "run", _run, "run TaskSets on this machine, without a repo")
    add_files(run_command, nargs="+", text=what)
    add_pod(run_command)


# One function for each command, so that a command imports only its own modules.


def _check(arguments: argparse.Namespace) -> int:
    from pidone.cli.check import check

    return check(arguments.file, form=arguments.format, strict=arguments.strict)


def _explain(arguments: argparse.Namespace) -> int:
    from pidone.cli.explain import explain

    return explain(arguments.path, recursive=arguments.recursive)


def _schema(arguments: argparse.Namespace) -> int:
    from pidone.cli.schema import print_schema

    return print_schema(arguments.kind)


def _run(arguments: argparse.Namespace) -> int:
    from pidone.cli.run import run_files

    return run_files(arguments.file, arguments.pod, dict(arguments.param))


def _status(arguments: argparse.Namespace) -> int:
    from pidone.cli.status import status

    return status(arguments.port, as_json=arguments.json)


def _render(arguments: argparse.Namespace) -> int:
    from pidone.cli.render import render_files

    return render_files(arguments.file, arguments.pod, dict(arguments.param), arguments.output)


def _graph(arguments: argparse.Namespace) -> int:
    from pidone.cli.graph import print_graph

    return print_graph(arguments.file, arguments.format)


def _test(arguments: argparse.Namespace) -> int:
    from pidone.cli.test import test

    return test(arguments.file)


def _completion(arguments: argparse.Namespace) -> int:
    from pidone.cli.completion import script

    print(script(arguments.shell, parser()), end="")
    return 0
