"""``pidone completion SHELL``: generates a shell's completion script from the parser of the commands."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from pidone.cli.arguments import FIELDS, FILES, KIND_NAMES
from pidone.cli.fields import NAMES, every_field


@dataclass(frozen=True, slots=True)
class Argument:
    """An option, or a positional argument, which has no flags."""

    flags: tuple[str, ...]
    summary: str
    takes_value: bool
    words: tuple[str, ...] | None = ()  # the possible values; None: file names


@dataclass(frozen=True, slots=True)
class Command:
    """One command."""

    name: str
    summary: str
    options: tuple[Argument, ...]
    words: tuple[str, ...] | None  # the possible values of its positional arguments; None: file names


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the completion script for ``bash``, ``zsh`` or ``fish``."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](list(_commands(parser)))


def _commands(parser: argparse.ArgumentParser) -> Iterator[Command]:
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    summaries = {choice.dest: choice.help or "" for choice in subparsers._choices_actions}
    for name, command in subparsers.choices.items():
        arguments = [_argument(action) for action in command._actions]
        positional = [argument for argument in arguments if not argument.flags]
        options = tuple(argument for argument in arguments if argument.flags)
        yield Command(name, summaries[name], options, positional[0].words if positional else ())


def _argument(action: argparse.Action) -> Argument:
    complete = getattr(action, "complete", "")
    words: tuple[str, ...] | None = tuple(str(choice) for choice in action.choices or ())
    if complete == FILES:
        words = None
    elif complete == FIELDS:
        words = tuple(path for path, _ in every_field())
    elif complete == KIND_NAMES:
        words = NAMES
    return Argument(tuple(action.option_strings), action.help or "", action.nargs != 0, words)


def _bash(commands: list[Command]) -> str:
    cases, values = [], []
    for command in commands:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        cases.append(f"    {command.name}) words='{flags}'; {_bash_words(command.words)} ;;")
        values += [
            f"    {command.name}:{flag}) {_bash_words(option.words)} return ;;"
            for option in command.options
            if option.takes_value
            for flag in option.flags
        ]
    names = " ".join(command.name for command in commands)
    return "\n".join(
        [
            "# bash completion of pidone: source <(pidone completion bash)",
            "_pidone() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            "  COMPREPLY=()",
            '  if [ "$COMP_CWORD" -eq 1 ]; then _pidone_words \'--help --version ' + names + "'; return; fi",
            '  case "${COMP_WORDS[1]}:$before" in',
            *values,
            "  esac",
            '  case "${COMP_WORDS[1]}" in',
            *cases,
            "  esac",
            '  if [[ "$current" == -* ]]; then COMPREPLY=(); _pidone_words "$words"; fi',
            "}",
            '_pidone_words() { COMPREPLY+=($(compgen -W "$1" -- "$current")); }',
            '_pidone_files() { compopt -o filenames; COMPREPLY+=($(compgen -f -- "$current")); }',
            "complete -F _pidone pidone",
            "",
        ]
    )


def _bash_words(words: tuple[str, ...] | None) -> str:
    return "_pidone_files;" if words is None else f"_pidone_words '{' '.join(words)}';"


def _zsh(commands: list[Command]) -> str:
    lines = [
        "#compdef pidone",
        "# zsh completion of pidone: source <(pidone completion zsh)",
        "_pidone() {",
        "  if (( CURRENT == 2 )); then",
        "    local -a commands=(",
        *(f"      '{command.name}:{_quoted(command.summary)}'" for command in commands),
        "    )",
        "    _describe command commands",
        "    return",
        "  fi",
        "  local command=$words[2]",
        "  shift words; (( CURRENT-- ))",
        "  case $command in",
    ]
    for command in commands:
        specs = [
            f"'{flag}[{_quoted(option.summary)}]{_zsh_words(option) if option.takes_value else ''}'"
            for option in command.options
            for flag in option.flags
        ]
        positional = _zsh_words(Argument((), "", takes_value=True, words=command.words))
        lines.append(f"    {command.name}) _arguments {' '.join(specs)} '*{positional}' ;;")
    return "\n".join([*lines, "  esac", "}", "compdef _pidone pidone", ""])


def _zsh_words(argument: Argument) -> str:
    if argument.words is None:
        return ":file:_files"
    return f":word:({' '.join(argument.words)})" if argument.words else ":word: "


def _fish(commands: list[Command]) -> str:
    lines = ["# fish completion of pidone: pidone completion fish | source", "complete -c pidone -f"]
    for command in commands:
        lines.append(
            f"complete -c pidone -n __fish_use_subcommand -a {command.name} -d '{_quoted(command.summary)}'"
        )
        start = f"complete -c pidone -n '__fish_seen_subcommand_from {command.name}'"
        lines += _fish_words(start, command.words)
        for option in command.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
            )
            line = f"{start} {flags} -d '{_quoted(option.summary)}'"
            if option.takes_value:
                lines += _fish_words(f"{line} -r", option.words) or [f"{line} -r"]
            else:
                lines.append(line)
    return "\n".join([*lines, ""])


def _fish_words(start: str, words: tuple[str, ...] | None) -> list[str]:
    if words is None:
        return [f"{start} -F"]
    return [f"{start} -a '{' '.join(words)}'"] if words else []


def _quoted(text: str) -> str:
    """Return the text without characters that end a single-quoted string or a specification of zsh."""
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",")
