"""``pidone completion SHELL``: what a shell needs to complete pidone's commands, made from their parser."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from pidone.cli.arguments import FIELDS, FILES, KIND_NAMES
from pidone.cli.fields import NAMES, every_field


@dataclass(frozen=True, slots=True)
class Argument:
    """An option, or where it has no flags a word by its place; ``words`` is None where files are meant."""

    flags: tuple[str, ...]
    summary: str
    takes_value: bool
    words: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Command:
    """One command as a shell sees it."""

    name: str
    summary: str
    options: tuple[Argument, ...]
    words: tuple[str, ...] | None  # what stands after it


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
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
        rest = _zsh_words(Argument((), "", takes_value=True, words=command.words))
        lines.append(f"    {command.name}) _arguments {' '.join(specs)} '*{rest}' ;;")
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
        here = f"complete -c pidone -n '__fish_seen_subcommand_from {command.name}'"
        lines += _fish_words(here, command.words)
        for option in command.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
            )
            described = f"{here} {flags} -d '{_quoted(option.summary)}'"
            lines += (
                _fish_words(f"{described} -r", option.words) or [f"{described} -r"]
                if option.takes_value
                else [described]
            )
    return "\n".join([*lines, ""])


def _fish_words(start: str, words: tuple[str, ...] | None) -> list[str]:
    if words is None:
        return [f"{start} -F"]
    return [f"{start} -a '{' '.join(words)}'"] if words else []


def _quoted(text: str) -> str:
    """A summary in single quotes and zsh's brackets."""
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",")
