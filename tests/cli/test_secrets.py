"""Values of Secrets and files on a desk: given, read, tested, and never printed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pidone.cli.render import render_files
from pidone.cli.test import test as run_cases
from tests.patience import PATIENCE_SECONDS

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.2.3}
"""
SET = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: guarded}
spec:
  params:
    - {name: user, pattern: "^[a-z]+$", valueFrom: {secretKeyRef: {name: login, key: user}}}
    - {name: password, valueFrom: {secretKeyRef: {name: login, key: password}}}
    - {name: port, type: integer, valueFrom: {secretKeyRef: {name: login, key: port}}}
    - {name: path, default: /}
  tasks:
    - {name: ready, probe: {httpGet: {port: $(params.port), path: $(params.path)}}}
    - name: registration
      register:
        eureka: {url: "http://$(params.user):$(params.password)@eureka:8761/eureka", app: web, port: 8080}
      stopTimeout: 5s
"""
BINDING = """
---
apiVersion: pidone.dev/v1alpha1
kind: TaskBinding
metadata: {name: guarded, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  taskSets: [guarded]
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "pod.yaml").write_text(POD)
    (tmp_path / "set.yaml").write_text(SET)
    (tmp_path / "bound.yaml").write_text(SET + BINDING)
    return tmp_path


@pytest.mark.parametrize("file", ["set.yaml", "bound.yaml"])
@pytest.mark.parametrize("output", ["json", "yaml"])
def test_render_shows_no_value(
    files: Path, capsys: pytest.CaptureFixture[str], file: str, output: str
) -> None:
    given = {"user": "pidone", "password": "s3cret-word", "port": "8081"}
    assert render_files([str(files / file)], str(files / "pod.yaml"), given, output) == 0
    printed = capsys.readouterr()
    assert "http://***:***@eureka:8761/eureka" in printed.out
    assert not any(word in printed.out + printed.err for word in ("s3cret", "pidone:", "8081", "salt"))


def test_render_shows_what_a_cluster_would_read_without_it(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render_files([str(files / "bound.yaml")], str(files / "pod.yaml"), {}, "json") == 0
    ready, registration = json.loads(capsys.readouterr().out)["tasks"]
    assert ready["probe"]["httpGet"]["port"] == "***"
    assert registration["register"]["eureka"]["url"] == "http://***:***@eureka:8761/eureka"


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_render_names_a_file_that_the_pod_reads_and_reads_none(
    files: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    text = SET.replace("secretKeyRef: {name: login, key: password}", "file: eureka/password")
    (files / "set.yaml").write_text(text)
    given = {"user": "pidone", "port": "8081"}
    assert render_files([str(files / "set.yaml")], str(files / "pod.yaml"), given, output) == 0
    printed = capsys.readouterr()
    assert "http://***:***@eureka:8761/eureka" in printed.out
    assert "eureka/password" in printed.out
    assert "pidone-file" not in printed.out + printed.err


def test_a_digest_on_a_desk_tells_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pidone",
        "render",
        str(files / "set.yaml"),
        "--pod",
        str(files / "pod.yaml"),
    ]
    command += ["-o", "digest", "--param", "user=a", "--param", "password=b", "--param", "port=1"]
    digests = {
        subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 2


def test_a_value_that_does_not_fit_is_not_printed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"user": "pidone", "password": "word", "port": "s3cret-port"}
    assert render_files([str(files / "set.yaml")], str(files / "pod.yaml"), given, "json") == 1
    printed = capsys.readouterr().err
    assert "--param port: the value is not an integer" in printed
    assert "s3cret" not in printed


CASES = """
files: [FILE]
cases:
  - name: with values
    pod: {metadata: {namespace: shop, labels: {app: web}}}
    params: {user: pidone, password: word, port: 8081}
    plan:
      registration: {register: {eureka: {url: "http://pidone:word@eureka:8761/eureka"}}}
    steps:
      - {at: 1s, given: {ready: succeeds}}
      - {at: 5s, expect: {registration: registered}}
  - name: a value that breaks the rules
    pod: {metadata: {namespace: shop, labels: {app: web}}}
    params: {user: PIDONE, password: word, port: 8081}
    rejected: 'key "user" of Secret "login" holds a value that does not match ^[a-z]+$'
  - name: without values
    pod: {metadata: {namespace: shop, labels: {app: web}}}
    rejected: 'param "user" is not read here; give the param a value'
"""


@pytest.mark.parametrize("file", ["set.yaml", "bound.yaml"])
def test_cases_give_values(files: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    (files / "web.test.yaml").write_text(CASES.replace("FILE", file))
    assert run_cases([str(files / "web.test.yaml")]) == 0, capsys.readouterr().out


def test_run_reads_a_file_and_prints_no_value(files: Path) -> None:
    (files / "token").write_text("t0ken-of-run\n")
    (files / "set.yaml").write_text(f"""
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {{name: say}}
spec:
  params: [{{name: token, valueFrom: {{file: {files}/token}}}}]
  tasks:
    - name: say
      exec:
        command: [/bin/sh, -c, "echo got $TOKEN; echo bad $TOKEN >&2; exit 3"]
        env: [{{name: TOKEN, value: $(params.token)}}]
      restartPolicy: Never
""")
    command = [sys.executable, "-m", "pidone", "run", str(files / "set.yaml")]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if '"event": "failed"' in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert "***" in "".join(lines)
    assert "t0ken" not in "".join(lines)
