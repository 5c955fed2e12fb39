"""The checker and the pod refuse the same variables, which make a program load other code."""

import json
from typing import Any

import pytest

from pidone.errors import Refused
from pidone.language.checking import check_text
from pidone.pid1.reaper import MARK
from tests.actions.test_exec import make

# From the manuals of the programs that read them, and sudo's list of variables that it removes.
LOADING = """
    BASH_ENV BASH_FUNC_ls BUNDLE_GEMFILE CLASSPATH COR_PROFILER_PATH CORECLR_PROFILER_PATH
    DOTNET_STARTUP_HOOKS ERL_FLAGS FPATH GCONV_PATH GEM_PATH GETCONF_DIR GIT_SSH_COMMAND GLIBC_TUNABLES
    GUILE_LOAD_PATH IFS JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS JULIA_LOAD_PATH LD_AUDIT LD_DEBUG
    LD_LIBRARY_PATH LD_PRELOAD LESSOPEN LOCPATH LUA_CPATH_5_4 LUA_INIT NLSPATH NODE_OPTIONS NODE_PATH
    OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES PERL5DB PERL5LIB PERL5OPT PERLLIB PHP_INI_SCAN_DIR PS4
    PYTHONHOME PYTHONINSPECT PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PYTHONWARNINGS RUBYLIB RUBYOPT
    R_PROFILE SHELLOPTS SSH_ASKPASS TCLLIBPATH ZDOTDIR _JAVA_OPTIONS npm_config_node_options
"""
ORDINARY = """
    APP APP_NAME DB_HOST ENV GIT_COMMIT GOMAXPROCS HOME JAVA_HOME JAVA_OPTS LANG LC_ALL MALLOC_ARENA_MAX
    NODE_ENV PATH PIDONE_REPO PYTHO SSL_CERT_FILE TMPDIR TZ http_proxy ld_preload spring.profiles.active
"""


def in_pod(name: str) -> str:
    """Why the pod refuses the variable, or ""."""
    fields: dict[str, Any] = {"command": ["/opt/pidone/a"], "env": [{"name": name, "value": "x"}]}
    try:
        make(fields, programs="/opt/pidone")
    except Refused as refused:
        return str(refused).removeprefix("x.env[0].name: ")
    return ""


def checked(name: str) -> str:
    run = {"command": ["/opt/pidone/a"], "env": [{"name": name, "value": "x"}]}
    task_set = {
        "apiVersion": "pidone.dev/v1alpha1",
        "kind": "TaskSet",
        "metadata": {"name": "x"},
        "spec": {"tasks": [{"name": "a", "exec": run}]},
    }
    return " ".join(finding.message for finding in check_text(json.dumps(task_set), "x.yaml").findings)


@pytest.mark.parametrize("name", LOADING.split())
def test_a_variable_that_loads_code_is_refused_with_a_remedy(name: str) -> None:
    assert checked(name) == in_pod(name)
    assert in_pod(name).startswith(f"{name} can make a program load code from outside")
    assert "pass an argument" in in_pod(name)


@pytest.mark.parametrize("name", ORDINARY.split())
def test_an_ordinary_variable_is_accepted(name: str) -> None:
    assert checked(name) == in_pod(name) == ""


def test_the_mark_of_a_run_is_reserved() -> None:
    assert checked(MARK) == in_pod(MARK) == "PIDONE_RUN is set by pidone itself; use another name"


def test_a_param_may_read_such_a_variable_of_a_container() -> None:
    text = """
apiVersion: pidone.dev/v1alpha1
kind: TaskSet
metadata: {name: x}
spec:
  params: [{name: home, valueFrom: {containerEnv: {name: PYTHONHOME}}}]
  tasks: [{name: a, exec: {command: [/opt/pidone/a, $(params.home)]}}]
"""
    assert check_text(text, "x.yaml").findings == ()
