"""A pod freezes while there is no traffic, and every packet finds it awake: real processes, packets and signals."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.idle import world
from tests.idle.world import CLIENT, NODE, POD, PORT, World, idle, request
from tests.patience import ENDURANCE, PATIENCE_SECONDS

pytestmark = [
    pytest.mark.pidns,
    pytest.mark.skipif(world.missing() is not None, reason=str(world.missing())),
]

APPLICATION = [sys.executable, "-S", str(Path(world.__file__).with_name("application.py")), str(PORT)]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[World]:
    with world.world(tmp_path) as made:
        yield made


def test_it_freezes_without_traffic_and_wakes_for_a_request(pod: World) -> None:
    pod.until(pod.frozen)
    pod.until(lambda: pod.task()["state"] == "idle")
    assert pod.ask().isdigit()
    pod.until(lambda: pod.wakes() == 1)
    pod.until(pod.frozen)


def test_it_says_which_packet_has_woken_it(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(after=2)) as pod:
        pod.until(pod.frozen)
        pod.ask()
        pod.until(lambda: pod.task()["why"].startswith(f"a packet from {CLIENT}"))


def test_a_probe_is_answered_by_the_application_and_changes_no_state(pod: World) -> None:
    pod.until(lambda: pod.task()["state"] == "idle")
    answers = [int(pod.probe()) for _ in range(20)]
    assert sorted(answers) == answers
    pod.until(pod.frozen)
    assert pod.wakes() == 0


def test_a_client_behind_a_port_of_the_node_is_traffic(pod: World) -> None:
    """Its address is the node's."""
    pod.until(lambda: pod.task()["state"] == "idle")
    pod.ask(NODE)
    pod.until(lambda: pod.wakes() == 1)


def test_no_request_is_lost_around_the_freeze(pod: World) -> None:
    """Requests at random times, many of them when the application is just being frozen."""
    source = random.Random(1)
    for _ in range(60 * ENDURANCE):
        time.sleep(source.choice([source.random() * 0.05, 0.3 + source.random() * 0.1]))
        assert pod.ask().isdigit()
    counts = pod.task()
    assert counts["failures"] == 0
    assert counts["runs"] == 1


def test_probes_all_the_time_find_the_application_and_let_it_sleep(pod: World) -> None:
    """Some meet the freeze itself."""
    source = random.Random(2)
    pod.until(lambda: pod.task()["state"] == "idle")
    for _ in range(100 * ENDURANCE):
        time.sleep(source.random() * 0.02)
        pod.probe()
        probe = pod.connect(NODE)  # as tcpSocket
        probe.close()
    assert pod.wakes() == 0
    pod.until(pod.frozen)


def test_a_request_under_way_is_not_frozen(tmp_path: Path) -> None:
    """It takes a second; ``after`` and the time of a blink are shorter."""
    with world.world(tmp_path, idle(probeTimeout=0.2)) as pod:
        for source, agent in ((CLIENT, "curl/8"), (NODE, "kube-probe/1.36")):
            pod.until(pod.frozen)
            assert pod.ask(source, "/slow", agent).isdigit()


def test_a_connection_stays_open_while_the_application_is_frozen(pod: World) -> None:
    connection = pod.connect()
    for _ in range(3):
        request(connection, "/", "curl/8")
        pod.until(pod.frozen)
    connection.close()


def test_none_means_that_an_open_connection_keeps_it_awake(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(connections="none")) as pod:
        connection = pod.connect()
        request(connection, "/", "curl/8")
        pod.until(lambda: pod.task()["why"] == "1 connection is open")
        assert not pod.frozen()
        connection.close()
        pod.until(pod.frozen)


def test_an_ignored_network_wakes_it_and_does_not_keep_it_awake(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(ignore=["probes", f"{CLIENT}/32"])) as pod:
        pod.until(lambda: pod.task()["state"] == "idle")
        for _ in range(5):
            pod.ask()
        assert pod.wakes() == 0


def test_datagrams_wake_it(tmp_path: Path) -> None:
    server = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 8081))\n"
        "while True: data, peer = s.recvfrom(100); s.sendto(data, peer)"
    )
    both = f"import os\nif os.fork() == 0:\n  exec({server!r})\nos.execv({sys.executable!r}, {APPLICATION!r})"
    ports = [f"{PORT}/TCP", "8081/UDP"]
    command = (sys.executable, "-S", "-c", both)
    with world.world(tmp_path, idle(ports=ports), application=command) as pod:
        pod.until(pod.frozen)
        client = pod.made_in(pod.node, socket.SOCK_DGRAM)
        client.connect((POD, 8081))
        client.send(b"hello")
        assert client.recv(100) == b"hello"
        pod.until(lambda: pod.wakes() == 1)


def test_a_breath_lets_it_run(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(breathe={"every": 0.2, "for": 0.1})) as pod:
        pod.until(lambda: pod.task()["state"] == "idle")
        ran = sum(pod.application().cpu_times()[:2])
        pod.until(lambda: sum(pod.application().cpu_times()[:2]) > ran)
        assert pod.wakes() == 0


def test_a_report_freezes_nothing_and_says_what_it_would_have_done(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(action="report")) as pod:
        pod.until(lambda: pod.task()["why"].startswith("would have slept"))
        time.sleep(0.5)  # longer than ``after``, in which nothing must happen
        assert not pod.frozen()
        pod.ask()
        pod.until(lambda: "with 1 wake-ups" in pod.task()["why"])
        assert pod.task()["state"] == "active"


def test_the_pods_end_wakes_it_for_good(pod: World) -> None:
    pod.until(pod.frozen)
    application = pod.application()
    os.kill(pod.pid, signal.SIGTERM)
    pod.process.wait(PATIENCE_SECONDS)
    # with process 1 the namespace ends, so only the journal can tell
    assert "event=stopped" in pod.log.read_text()
    assert not application.is_running()


def test_a_drain_wakes_it_while_other_tasks_still_end(tmp_path: Path) -> None:
    slow = {"name": "last", "runOn": ["pod.terminating"], "exec": {"command": ["/bin/sleep", "1"]}}
    with world.world(tmp_path, idle(), slow) as pod:
        pod.until(pod.frozen)
        connection = pod.made_in(pod.pid)
        connection.connect(("127.0.0.1", 19101))
        connection.sendall(b"GET /drain HTTP/1.1\r\nHost: x\r\n\r\n")
        pod.until(lambda: not pod.frozen())
        assert b"200" in connection.recv(1000)
        time.sleep(0.5)
        assert not pod.frozen()


def test_a_signal_that_waits_in_the_application_wakes_it(pod: World) -> None:
    """No repo tells of the pod's end here, and the runtime's TERM waits in a stopped process."""
    application = pod.application()
    pod.until(pod.frozen)
    application.send_signal(signal.SIGTERM)
    pod.until(lambda: not application.is_running())
    pod.until(lambda: pod.wakes() == 1)


def test_a_command_of_a_probe_is_answered_and_somebody_inside_keeps_it_awake(pod: World) -> None:
    ask = (
        "import socket; s = socket.create_connection(('127.0.0.1', 8080)); "
        "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(100))"
    )
    pod.until(lambda: pod.task()["state"] == "idle")
    for _ in range(5):
        with pod.inside(sys.executable, "-S", "-c", ask) as done:
            assert b"200" in done.communicate(timeout=PATIENCE_SECONDS)[0]
    assert pod.wakes() == 0
    with pod.inside("sleep", "infinity"):
        # a probe that comes before the command is there sees nobody inside
        pod.until(lambda: pod.probe() and pod.task()["why"] == "somebody is inside")
        assert not pod.frozen()
    pod.until(pod.frozen)


def test_commands_of_tasks_run_while_the_application_is_frozen(tmp_path: Path) -> None:
    flush = {"name": "flush", "runOn": ["rest.idle"], "exec": {"command": ["/bin/sleep", "0.1"]}}
    steady = {"name": "steady", "exec": {"command": ["/bin/sleep", "0.7"]}, "restartPolicy": "Always"}
    with world.world(tmp_path, idle(), flush, steady) as pod:
        pod.until(lambda: pod.status()["tasks"]["flush"]["state"] == "succeeded")
        pod.until(lambda: pod.status()["tasks"]["steady"]["runs"] >= 2)
        pod.until(pod.frozen)


def test_without_the_right_to_packets_the_accept_queue_wakes_it(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(after=0.5), without="net_raw") as pod:
        pod.until(pod.frozen)
        for number in range(1, 4):
            pod.ask()
            pod.until(lambda: pod.wakes() == number)  # noqa: B023 - it is called at once
            pod.until(lambda: pod.task()["state"] == "idle")
        pod.probe()
        pod.until(pod.frozen)
        assert pod.wakes() == 3


def test_without_it_datagrams_are_refused(tmp_path: Path) -> None:
    with world.world(tmp_path, idle(ports=["53/UDP"]), without="net_raw") as pod:
        pod.until(lambda: "NET_RAW" in pod.task()["error"])
        assert not pod.frozen()
