"""Stops the processes of the application and lets them run again, all of them or those of named containers."""

import os
import posix
import signal
from collections.abc import Collection

from pidone.actions import Setting
from pidone.errors import TaskFailed
from pidone.pid1 import freezing, inside
from pidone.pid1.reaper import MARK, Child
from pidone.pid1.tree import Tree, pids


class Freezer:
    """The processes of the pod."""

    def __init__(self, setting: Setting, containers: Collection[str]) -> None:
        """Without names, the processes of all containers are meant."""
        self._setting = setting
        self._names = containers
        self._processes = inside.Processes()
        self.frozen = False

    def check(self) -> None:
        """Raise ``TaskFailed`` if this process may not stop the application, with the remedy."""
        if reason := freezing.refusal():
            raise TaskFailed(
                f"cannot freeze the application: {reason}; the pod needs shareProcessNamespace: true, and pidone's "
                "image as its sandbox"
            )
        own = os.geteuid()
        others = [] if inside.may_signal_all() else sorted(inside.users() - {own})
        if others:
            raise TaskFailed(
                f"cannot freeze the application: it runs as uid {others[0]}, and pidone as uid {own} without the "
                "capability KILL; give pod and containers the same runAsUser"
            )

    def look(self) -> inside.Inside:
        """Return what the runtime has started in the pod."""
        return self._processes.look()

    def stop(self) -> None:
        """Stop the application, but no commands of tasks. Raises ``PermissionError`` if nobody may be signalled."""
        self.frozen = True
        if self._names:
            self._stop_containers()
            return
        freezing.stop_all()
        for child in self._setting.reaper.started:
            for process in _tree(child).processes():
                _send(process.pid, signal.SIGCONT)

    def thaw(self) -> None:
        """Let all processes run again, if they are stopped."""
        if self.frozen:
            freezing.continue_all()
            self.frozen = False

    def _stop_containers(self) -> None:
        """Stop the processes of the named containers, until a look finds no new one."""
        known = self._setting.containers.by_name
        ids = [known[name].id.rpartition("/")[2] for name in self._names if name in known]
        stopped = {posix.getpid()}
        while True:
            cgroups = {pid: inside.cgroup(pid) for pid in pids() if pid not in stopped}
            new = [pid for pid, path in cgroups.items() if any(name and name in path for name in ids)]
            if not new:
                return
            for pid in new:
                _send(pid, signal.SIGSTOP)
            stopped.update(new)


def _tree(child: Child) -> Tree:
    return Tree(child.pid, f"{MARK}={child.mark}".encode(), lambda: child.returncode is not None)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has ended
