"""The command line: one file per verb, each one call of the package; jsonargparse reads options and settings.

A verb is a module with ``add_arguments(parser)`` and ``run(options)``. The first paragraph of its docstring is its
help.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import ssdd

from ..config import (
    VERSION,
    InputError,
    Settings,
    current_name,
    extract_settings,
    fields,
    new_parser,
    readable,
    unknown_setting,
)
from .options import Options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

VERBS = {
    "demo": "demo",
    "teacher": "teacher",
    "distill": "distill",
    "pretrain": "pretrain",
    "evaluate": "evaluate",
    "train-classifier": "train_classifier",
    "kd": "kd",
    "embed": "embed",
    "study": "study",
    "report": "report",
    "show": "show",
    "info": "info",
    "settings": "settings",
    "export": "export",
    "import": "import_",
    "push": "push",
    "completion": "completion",
}
"""Verb -> its module."""

DESCRIPTION = (
    "Self-supervised dataset distillation: a few images, each with a representation to learn from, that a network can "
    "be pre-trained on in place of a whole unlabelled set. Start with `ssdd demo`."
)


class UsageError(InputError):
    """The command line has a mistake."""


def parsers(verbs: Sequence[str]) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Return the program's parser, and the parser of each verb. Only those of ``verbs`` get their options."""
    program = new_parser(prog="ssdd", version=VERSION, description=DESCRIPTION)
    subcommands = program.add_subcommands(required=False, metavar="VERB", title="verbs", description="`ssdd VERB -h`")
    by_verb = {}
    for verb, name in VERBS.items():
        module = import_module(f".{name}", __name__)
        text = inspect.getdoc(module) or ""
        by_verb[verb] = new_parser(description=text, usage=f"ssdd {verb} {_positionals(module)}[options]")
        if verb in verbs:
            module.add_arguments(by_verb[verb])
        subcommands.add_subcommand(verb, by_verb[verb], help=text.split("\n\n")[0])
    return program, by_verb


def _positionals(module: object) -> str:
    return "".join(f"{name} " for name in getattr(module, "POSITIONALS", ()))


def run(arguments: Sequence[str]) -> None:
    """Run one command. Raises :class:`InputError` and the errors of its verb; ``--help`` exits."""
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    program, by_verb = parsers([verb] if verb else [])
    if not arguments:
        program.print_help()
        return
    words = _settings_as_flags(arguments)
    if verb is not None:
        _refuse_unknown_settings(words, by_verb[verb], verb)
    try:
        namespace = program.parse_args(words, defaults=False)
    except argparse.ArgumentError as error:
        raise UsageError(_explain(error, program, by_verb.get(verb or ""), verb)) from None
    if verb is None:
        raise UsageError(f"expected a verb: {', '.join(VERBS)}")
    parsed = namespace[verb]
    defaults = by_verb[verb].get_defaults().as_dict()
    typed = {key: value for key, value in parsed.as_dict().items() if key != "fields"}
    defaults.pop("fields", None)
    options = Options(**{**defaults, **typed})
    options.words = arguments
    options.typed, options.settings = frozenset(typed), extract_settings(parsed)
    import_module(f".{VERBS[verb]}", __name__).run(options)


def _settings_as_flags(arguments: Sequence[str]) -> list[str]:
    """Return the words with `--set STAGE.FIELD=VALUE`, which version 0.1 had, as `--STAGE.FIELD=VALUE`."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        value = next(rest, "") if word == "--set" else word.removeprefix("--set=") if word[:6] == "--set=" else None
        if value is None:
            words.append(word)
            continue
        key, equals, text = value.partition("=")
        if not equals:
            raise UsageError(f"--set: expected STAGE.FIELD=VALUE, got {value!r}")
        flag = f"--{current_name(key)}={text}"
        _print_error(f"--set is deprecated and goes in version 0.3: write {flag}")
        words.append(flag)
    return words


def _explain(
    error: argparse.ArgumentError, program: ArgumentParser, parser: ArgumentParser | None, verb: str | None
) -> str:
    """Return the parser's error, with advice on what to type instead."""
    text = readable(error, parser or program, prefix=f"{verb}." if verb else "")
    unknown = [word.partition("=")[0] for word in text.split() if word.startswith("--")]
    if "invalid choice" in text and parser is None:
        word = text.split("invalid choice: ")[1].split(" (")[0].strip("'")
        near = difflib.get_close_matches(word, VERBS, 1)
        advice = f"; did you mean {near[0]}?" if near else ""
        return f"expected a verb, one of {', '.join(VERBS)}, got {word!r}{advice}"
    if text.startswith("unrecognized arguments") and unknown and parser is not None:
        return _explain_unknown(unknown[0], _options(parser), str(verb))
    return f"{text} (`ssdd {verb} --help`)" if verb else text


def _options(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _refuse_unknown_settings(words: Sequence[str], parser: ArgumentParser, verb: str) -> None:
    """Raise :class:`UsageError` for --STAGE.FIELD that is no option. jsonargparse would take --teacher.epoch 3, a
    mistyped --teacher.epochs, for --teacher 3."""
    known = _options(parser)
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and "." in name and name not in known:
            raise UsageError(_explain_unknown(name, known, verb))


def _explain_unknown(word: str, known: Sequence[str], verb: str) -> str:
    """Return the error for an option that is none of the options ``known`` of a verb, with the one that may be
    meant."""
    name, own = word.removeprefix("--"), verb.removeprefix("train-")
    settings = {key: kind for key, kind, _ in fields(Settings("default"))}
    help_ = f"(`ssdd {verb} --help`)"
    if name in settings:
        stage, _, field = name.rpartition(".")
        short = f"--{field.replace('_', '-')}"
        advice = f"write {short}" if stage == own and short in known else f"nothing in `ssdd {verb}` uses this setting"
        return f"{word}: no option of this verb; {advice} {help_}"
    if "." in name:
        return f"--{unknown_setting(name, settings)} {help_}"
    same = [option for option in known if "." in option and option.rpartition(".")[2] == name.replace("-", "_")]
    meant = [option for option in same if option == f"--{own}.{name.replace('-', '_')}"] or same
    meant = list(dict.fromkeys((*meant, *difflib.get_close_matches(word, known, 1))))
    advice = f"; did you mean {' or '.join(meant)}?" if meant else ""
    return f"{word}: no such option{advice} {help_}"


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn a user's errors into one message and exit status 1 (2: usage). Other errors keep their traceback."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, InputError | OSError):
            _print_error(f"error: {error}")
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
        if isinstance(error, KeyboardInterrupt):
            _print_error(str(error) or "stopped")
            raise SystemExit(130) from None
        from .. import Diverged, ProcessLost, Stopped

        if isinstance(error, Stopped):
            _print_error(str(error) or "stopped")
            raise SystemExit(130) from None
        if isinstance(error, Diverged | ProcessLost):
            _print_error(f"error: {error}")
            raise SystemExit(1) from None
        raise


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)


def _one_process() -> bool:
    """Return True unless ``torchrun`` started several processes. A plain run does not load torch to find out."""
    return os.environ.get("WORLD_SIZE", "").strip() in ("", "1") or ssdd.world_size() == 1


def main() -> None:
    """Run the program ``ssdd``."""
    with readable_errors():
        if _one_process():
            run(sys.argv[1:])
            return
    # One of several processes: gloo's threads may still release Python objects. If one of them takes the lock of an
    # interpreter that is shutting down, Python ends that thread, and C++ then calls abort(). Everything is on disk, so
    # exit without a shutdown.
    code = 1
    try:
        with readable_errors():
            run(sys.argv[1:])
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
