"""Commands and their options; what a command does stands in the module of its name, imported when it is called."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from pidone import __version__
from pidone.cli.arguments import FIELDS, KIND_NAMES, Commands, add_command, add_files, add_pod, port_number

EXAMPLES = """\
examples:
  pidone check tasks                                  every mistake in a folder, with its place and remedy
  pidone explain TaskSet.spec.tasks.probe             what can stand there, and what it means
  pidone render tasks/eureka.yaml --pod pod.yaml      the plan that this pod would get
  pidone graph tasks/eureka.yaml                      the tasks, and what waits for what
  pidone test tasks                                   run the cases beside the sets on a fake clock
  pidone run tasks/metrics.yaml                       run the tasks here, without a repo
  pidone status                                       what process 1 of this pod does, and why
  source <(pidone completion bash)                    complete all of this
"""
INTERRUPTED, BROKEN_PIPE = 130, 141  # as a shell has them: 128 and the number of the signal


def run(argv: Sequence[str]) -> int:
    """The exit code: 0, 1 findings or failures, 2 usage (argparse's own) or a file that cannot be read."""
    try:
        arguments = parser().parse_args(argv)
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
        print(f"pidone: {error.strerror or error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - a traceback helps nobody but us, and is in the line
        from pidone.errors import last_words

        print(
            f"pidone {__version__} failed, and should not have: {last_words(error)}. "
            "Please report this line, with the command and its files, where you have pidone from.",
            file=sys.stderr,
        )
        return 1
    return code


def _discard_output() -> None:
    """What is still unwritten goes nowhere, quietly: the interpreter would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """All commands; an argument's attribute ``complete`` says what a shell completes it with."""
    whole = argparse.ArgumentParser(
        prog="pidone",
        description="Process 1 of a pod. Without arguments it is just that, configured by PIDONE_REPO; "
        "`pidone -- COMMAND` is process 1 of one container; with a command it helps to write what pods run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"pidone {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _writing(commands)
    _trying(commands)
    completion = add_command(commands, "completion", _completion, "print the completion script of a shell")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell it is for")
    return whole


def _writing(commands: "Commands[argparse.ArgumentParser]") -> None:
    check = add_command(
        commands,
        "check",
        _check,
        "find the mistakes in TaskSets and TaskBindings",
        "Documents of other kinds are passed over.\n"
        "exit code: 0 no findings, 1 there are some, 2 a file cannot be read, 3 only warnings with --strict\n",
    )
    add_files(check, nargs="+", text="a file, a folder, or - for standard input")
    check.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="text for people (the default), json, github for annotations in GitHub Actions, sarif 2.1.0",
    )
    check.add_argument("--strict", action="store_true", help="exit with 3 where there are only warnings")

    explain = add_command(
        commands,
        "explain",
        _explain,
        "say what a field is for",
        "examples:\n  pidone explain TaskSet\n  pidone explain TaskSet.spec.tasks.probe\n"
        "  pidone explain TaskBinding --recursive\n",
    )
    path = explain.add_argument(
        "path", metavar="PATH", help="a kind and the fields below it, as TaskSet.spec.tasks"
    )
    path.complete = FIELDS  # type: ignore[attr-defined]
    explain.add_argument("--recursive", action="store_true", help="names and types of all fields below")

    schema = add_command(commands, "schema", _schema, "print the JSON Schema of a kind, for editors")
    kind = schema.add_argument(
        "kind",
        nargs="?",
        default="TaskSet",
        metavar="KIND",
        help="TaskSet (unless told otherwise), TaskBinding, a Cluster one of them, or Test for case files",
    )
    kind.complete = KIND_NAMES  # type: ignore[attr-defined]


def _trying(commands: "Commands[argparse.ArgumentParser]") -> None:
    graph = add_command(commands, "graph", _graph, "draw which task waits for which")
    add_files(graph, nargs="+", text="files and folders with TaskSets")
    graph.add_argument(
        "--format", choices=["text", "dot", "mermaid"], default="text", help="text unless told otherwise"
    )

    what = "files and folders with TaskSets; where TaskBindings are among them, the pod's labels decide"
    render = add_command(commands, "render", _render, "print the plan that a pod would get")
    add_files(render, nargs="+", text=what)
    add_pod(render, required=True)
    render.add_argument(
        "-o",
        "--output",
        choices=["json", "yaml", "digest"],
        default="json",
        help="json unless told otherwise",
    )

    test = add_command(
        commands,
        "test",
        _test,
        "run the cases beside the TaskSets, each in a pod of its own, on a fake clock",
    )
    add_files(test, nargs="+", text="case files (eureka.test.yaml), or folders with some")

    status = add_command(
        commands,
        "status",
        _status,
        "say what process 1 of this pod does, and why",
        "It asks on the loopback interface, so it is for those who are in the pod:\n"
        "  kubectl exec POD -- wget -qO- 127.0.0.1:19101/status   where the image has no pidone\n",
    )
    status.add_argument(
        "--port", type=port_number, metavar="N", help="where it listens; that of PIDONE_STATUS_PORT, or 19101"
    )
    status.add_argument("--json", action="store_true", help="all of it, as it was answered")

    run_command = add_command(commands, "run", _run, "run the TaskSets of a file here, without a repo")
    add_files(run_command, nargs="+", text=what)
    add_pod(run_command)


# One function a command: the imports of a command are no others' time.


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
