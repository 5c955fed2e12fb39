"""The command line of the controller."""

import argparse
import os
import platform
import stat
import sys
from pathlib import Path
from typing import Any

from pidone.http.urls import authority
from pidone.protocol import PORT
from pidone_controller import __version__

EPILOG = """\
The folders contain TaskSets and TaskBindings (*.yaml, *.yml, *.json). An object without a namespace is for the pods
of all namespaces. The inventory is the output of "kubectl get pods --all-namespaces -o yaml" (or -o json); in an
inventory written by hand, a pod needs metadata.name, metadata.labels and status.podIP.

Changes of the files reach their pods within a second. A file with a mistake changes nothing. SIGTERM and SIGINT end
the server.

  pidone-controller standalone --tasks tasks --tasks examples --inventory pods.yaml
  curl http://127.0.0.1:6060/v1/pods
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Return the exit code: 0 ended by a signal, 1 could not start, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    if "verb" in arguments:
        from pidone_controller.rollout import commands

        return commands.run(commands.Request(**vars(arguments)))

    import trio

    from pidone.errors import PidoneError
    from pidone.text import printable

    try:
        trio.run(arguments.command, arguments, strict_exception_groups=True)
    except KeyboardInterrupt:  # before the command has set its signal handlers
        return 0
    except PidoneError as error:
        print(printable(f"pidone-controller: {error}"), file=sys.stderr)
        return 1
    return 0


async def _standalone(arguments: argparse.Namespace) -> None:
    from pidone_controller.standalone import server as standalone

    host, port = arguments.listen
    await standalone.run(
        standalone.Settings(
            arguments.tasks,
            arguments.inventory,
            host,
            port,
            tls=arguments.listen_tls,
            certificate=arguments.certificate,
            key=arguments.key,
            secrets=arguments.secrets,
            people=tuple(arguments.people),
        )
    )


async def _run(arguments: argparse.Namespace) -> None:
    from pidone_controller import cluster

    await cluster.run(
        cluster.Settings(
            listen=arguments.listen,
            listen_tls=arguments.listen_tls,
            people=tuple(arguments.people),
            namespace=arguments.namespace,
            name=os.environ.get("POD_NAME") or platform.node(),
            address=os.environ.get("POD_IP") or "127.0.0.1",
            kubeconfig=arguments.kubeconfig,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pidone-controller",
        description="The repo server of pidone: selects the TaskSets of each pod and serves its plan.",
    )
    parser.add_argument("--version", action="version", version=f"pidone-controller {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "standalone",
        help="serve plans from files, without Kubernetes",
        description="Serve each pod its plan from files, without Kubernetes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--tasks", metavar="DIR", type=_folder, action="append", required=True,
        help="a folder with TaskSets and TaskBindings; may be given more than once",
    )  # fmt: skip
    command.add_argument(
        "--inventory", metavar="FILE", type=_file, required=True, help="a file with the pods, YAML or JSON"
    )
    command.add_argument(
        "--listen", metavar="ADDR:PORT", type=_address, default=("127.0.0.1", PORT),
        help=f"the address to listen on (default 127.0.0.1:{PORT}); port 0: a free port, which is logged",
    )  # fmt: skip
    command.add_argument(
        "--listen-tls", metavar="ADDR:PORT", type=_address,
        help="the address for https (default: none). Pods take programs and values of Secrets over https only",
    )  # fmt: skip
    command.add_argument(
        "--certificate", metavar="FILE", type=_file, help="the certificate for https, in PEM"
    )
    command.add_argument("--key", metavar="FILE", type=_file, help="its private key, in PEM")
    command.add_argument(
        "--secrets", metavar="DIR", type=_folder,
        help="the folder with values of Secrets: KEY of SECRET is the file SECRET/KEY, as in a mounted volume. "
        "valueFrom: {file: PATH} reads files of this folder alone (default: none are read)",
    )  # fmt: skip
    command.add_argument(
        "--people", metavar="CIDR", type=_network, action="append", default=[],
        help="the addresses of people and of Prometheus. They may read the plans of all pods (/v1/pods) and the "
        "list of targets (/v1/prometheus/targets), besides 127.0.0.1; may be given more than once",
    )  # fmt: skip
    command.set_defaults(command=_standalone)
    command = commands.add_parser(
        "run",
        help="serve plans in a Kubernetes cluster",
        description="Watch pods, TaskSets and TaskBindings, serve each pod its plan, and report results in statuses.",
    )
    command.add_argument(
        "--listen", metavar="ADDR:PORT", type=_address, default=("", PORT),
        help=f"the address for http (default :{PORT}, all addresses)",
    )  # fmt: skip
    command.add_argument(
        "--listen-tls", metavar="ADDR:PORT", type=_address, default=("", 6443),
        help="the address for https (default :6443, all addresses)",
    )  # fmt: skip
    command.add_argument(
        "--namespace", metavar="NS", default="",
        help="the namespace for the Lease and the versions of ClusterTaskSets "
        "(default: that of the service account)",
    )  # fmt: skip
    command.add_argument(
        "--kubeconfig", metavar="FILE", type=_file,
        help="how to connect to the API server (default: $KUBECONFIG, the service account, ~/.kube/config)",
    )  # fmt: skip
    command.add_argument(
        "--people", metavar="CIDR", type=_network, action="append", default=[],
        help="the addresses of the API servers. They may read what is for people, such as /v1/pods, "
        "because their Service proxy (kubectl get --raw) has checked RBAC; may be given more than once",
    )  # fmt: skip
    command.set_defaults(command=_run)
    _add_rollout(commands)
    return parser


def _add_rollout(commands: Any) -> None:
    """Add the command rollout. The names of its arguments are the fields of ``rollout.commands.Request``."""
    parser = commands.add_parser(
        "rollout",
        help="list versions of a set, restore one, wait for a rollout, resume one",
        description="Manage the versions of TaskSets and the rollouts of TaskBindings, "
        "with the credentials of the kubeconfig.",
    )
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    for verb, about in {
        "history": "list the versions of a set",
        "undo": "restore an older version of a set",
        "status": "wait until the rollout of a set or a binding is complete; exit code 1 if it is halted",
        "resume": "restart a halted rollout of a binding",
    }.items():
        command = verbs.add_parser(verb, help=about, description=f"{about[0].upper()}{about[1:]}.")
        command.add_argument(
            "target",
            metavar="KIND/NAME",
            help="such as taskset/eureka, clustertaskset/baseline, taskbinding/web",
        )
        command.add_argument(
            "-n", "--namespace", default="", help="the namespace (default: that of the kubeconfig)"
        )
        command.add_argument(
            "--kubeconfig", metavar="FILE", dest="file", default="",
            help="the kubeconfig (default: $KUBECONFIG or ~/.kube/config; in a pod, its service account)",
        )  # fmt: skip
        command.add_argument(
            "--context", default="", help="the context of the kubeconfig (default: the current one)"
        )
        command.add_argument(
            "--controller-namespace", metavar="NAMESPACE", dest="home", default="pidone-system",
            help="the namespace of the controller and of the versions of ClusterTaskSets (default pidone-system)",
        )  # fmt: skip
        if verb in {"history", "undo"}:
            command.add_argument(
                "--revision" if verb == "history" else "--to-revision",
                metavar="NUMBER", dest="revision", type=int, default=0,
                help="print this version completely" if verb == "history"
                else "the version to restore (default: the one before the current version)",
            )  # fmt: skip
        if verb == "status":
            command.add_argument(
                "--timeout", metavar="DURATION", type=_duration, default=0.0,
                help="the longest wait, such as 90s or 5m (default: no limit)",
            )  # fmt: skip


def _duration(text: str) -> float:
    from pidone.language import duration

    seconds = duration.seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f'expected a duration such as 90s or 5m, not "{text}"')
    return seconds


def _network(text: str) -> Any:
    from ipaddress import ip_network

    try:
        return ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a network, as in 10.0.0.0/24: {error}") from error


def _folder(text: str) -> Path:
    if _mode(text, "folder") != stat.S_IFDIR:
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def _file(text: str) -> Path:
    if _mode(text, "file") == stat.S_IFDIR:
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return Path(text)


def _mode(text: str, what: str) -> int:
    """Return the type of the file. Checked at the start only: a file that disappears later may come back."""
    try:
        return stat.S_IFMT(Path(text).stat().st_mode)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a {what} ({error.strerror})") from error


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise argparse.ArgumentTypeError(
            f'expected ADDR:PORT, as in 127.0.0.1:6060 or [::1]:6060, not "{text}"'
        )
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise argparse.ArgumentTypeError(f"an IPv6 address stands in brackets: {authority(host, port)}")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    sys.exit(main())
