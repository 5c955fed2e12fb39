"""Environment variables that make a program load or run other code than its own.

Tasks run programs of one folder (``PIDONE_PROGRAMS``) only. With one of these variables, the dynamic loader or an
interpreter would run code from elsewhere. A plan that sets one is refused. The checker and the pod share this list.
It contains what ld.so(8) ignores in privileged programs and what sudo removes (``initial_badenv_table`` in its
env.c), and the options of common runtimes.

``PATH``, ``HOME`` and variables that only a program's own start script reads, as JAVA_OPTS, are not in it.
"""

_OWN = "PIDONE_RUN"  # ``pidone.pid1.reaper.MARK``, which pidone sets in each command

_PREFIXES = (
    "BASH_FUNC_",  # functions of bash
    "CORECLR_",  # profilers of .NET
    "COR_",
    "DYLD_",
    "GUILE_",
    "JULIA_",
    "LD_",
    "LUA_",
    "NPM_CONFIG_",
    "PERL",
    "PYTHON",
    "RUBY",
    "_RLD",
    "npm_config_",
)

_GROUPS = {
    "the C library": "GCONV_PATH GETCONF_DIR GLIBC_TUNABLES LOCPATH NLSPATH",
    "shells": """
        BASHOPTS BASH_ENV CDPATH FPATH GLOBIGNORE IFS NULLCMD PROMPT_COMMAND PS4 READNULLCMD SHELLOPTS
        ZDOTDIR
    """,
    "Java": """
        CLASSPATH IBM_JAVA_OPTIONS JAVA_TOOL_OPTIONS JDK_JAVAC_OPTIONS JDK_JAVA_OPTIONS
        OPENJ9_JAVA_OPTIONS _JAVA_OPTIONS
    """,
    "JavaScript": "BUN_OPTIONS NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE",
    ".NET": "DOTNET_ADDITIONAL_DEPS DOTNET_ROOT DOTNET_SHARED_STORE DOTNET_STARTUP_HOOKS",
    "other languages": """
        AWKLIBPATH AWKPATH BUNDLE_GEMFILE BUNDLE_PATH CAML_LD_LIBRARY_PATH ELIXIR_ERL_OPTIONS ERL_AFLAGS
        ERL_FLAGS ERL_LIBS ERL_ZFLAGS GEM_HOME GEM_PATH GOFLAGS PHPRC PHP_INI_SCAN_DIR R_ENVIRON
        R_ENVIRON_USER R_LIBS R_LIBS_USER R_PROFILE R_PROFILE_USER TCLLIBPATH TCL_LIBRARY
    """,
    "libraries with plug-ins": """
        GIO_EXTRA_MODULES GIO_MODULE_DIR GTK_MODULES GTK_PATH KRB5_CONFIG LIBGL_DRIVERS_PATH
        MAGICK_CODER_MODULE_PATH ODBCINSTINI ODBCSYSINI OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES
        QT_PLUGIN_PATH SASL_CONF_PATH SASL_PATH
    """,
    "programs that start others": """
        BROWSER EDITOR GIT_ASKPASS GIT_CONFIG GIT_CONFIG_COUNT GIT_CONFIG_GLOBAL GIT_CONFIG_PARAMETERS
        GIT_CONFIG_SYSTEM GIT_EDITOR GIT_EXEC_PATH GIT_EXTERNAL_DIFF GIT_PAGER GIT_PROXY_COMMAND GIT_SSH
        GIT_SSH_COMMAND GIT_TEMPLATE_DIR LESSCLOSE LESSOPEN MAKEFILES MAKEFLAGS PAGER SSH_ASKPASS
        SUDO_ASKPASS VISUAL
    """,
}
_NAMES = frozenset(name for names in _GROUPS.values() for name in names.split())


def objection(name: str) -> str:
    """Return why a plan must not set this variable, with the remedy; "" if it may."""
    if name == _OWN:
        return f"{name} is set by pidone itself; use another name"
    if name in _NAMES or name.startswith(_PREFIXES):
        return (
            f"{name} can make a program load code from outside of the folder of programs; set it in the program "
            "itself, as in a script that starts the real one, or pass an argument"
        )
    return ""
