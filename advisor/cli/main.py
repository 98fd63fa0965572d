"""`ftadvise`: the group of commands, and the one place where errors become messages and exit codes.

Exit codes: 0 it fits (or the command did its work), 1 it does not fit, 2 there is no answer (bad input included).
"""

import gc
import os
import sys
from importlib import import_module
from pkgutil import iter_modules

# Both save a plain answer about a tenth of its time: pydantic would scan all installed packages for plugins, and the
# collector would walk the freshly imported modules again and again.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
gc.set_threshold(200_000, 20, 20)

import click  # noqa: E402

from advisor.cli import commands  # noqa: E402
from profiles.errors import AdviseError  # noqa: E402

DEFAULT_COMMAND = "advise"
SIMULATE = "simulate"
NO_ANSWER = 2
INTERRUPTED = 130


class LazyGroup(click.Group):
    """Finds commands in the folder `commands/` and imports one only when it is asked for.

    Options without a command are those of `advise`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted(module.name for module in iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module, or return None if there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{commands.__name__}.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `advise` in front of bare options."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name near commands where there is none of that name."""
        if args and args[0] not in self.list_commands(ctx):
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), n=2)
            listing = f"Commands: {', '.join(self.list_commands(ctx))}."
            hint = f"Did you mean {' or '.join(near)}? {listing}" if near else listing
            raise AdviseError("unknown-command", f"there is no command {args[0]!r}", hint)
        if args[:1] == [SIMULATE] and not {*args} & {*ctx.help_option_names}:
            from estimators.child import Child

            ctx.obj = ctx.with_resource(Child())  # it imports torch while this process imports the command
        return super().resolve_command(ctx, args)


EPILOG = """\b
Examples:
  ftadvise --model llama-8b --vram 24
  ftadvise --model Qwen/Qwen2.5-7B --gpu "2x a100-80g" --data train.jsonl
  ftadvise estimate --model llama-8b --gpu rtx4090 --method qlora --seq-len 4096
  ftadvise emit --model llama-8b --vram 24 --data train.jsonl -o run && ftadvise launch run

\b
Exit codes: 0 fits, 1 does not fit, 2 no answer (bad input included).
--debug shows the traceback of a mistake in ftadvise itself.
"""


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="ftadvise")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Tell how to fine-tune a language model on the hardware you have: method, memory, speed, cost.

    Options without a command are those of `ftadvise advise`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run the command line; return the exit code. Errors are reported here, tracebacks only with --debug."""
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        code = cli.main(args=argv, prog_name="ftadvise", standalone_mode=False)
    except AdviseError as error:
        return _report(error, argv)
    except click.UsageError as error:
        hint = f"See `{error.ctx.command_path} --help`." if error.ctx is not None else ""
        return _report(AdviseError("usage", error.format_message(), hint), argv)
    except click.ClickException as error:
        return _report(AdviseError("usage", error.format_message()), argv)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # `ftadvise ... | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        said = f"{type(error).__name__}: {error}"
        hint = "This is a mistake in ftadvise, not in your input. Run it again with --debug and report what it prints."
        return _report(AdviseError("internal", said, hint), argv)
    return code if isinstance(code, int) else 0


def _report(error: AdviseError, argv: list[str]) -> int:
    """The message on standard error; with --json the envelope on standard output too."""
    if "--json" in argv:
        from advisor.render.envelope import error_envelope

        command = next((word for word in argv if not word.startswith("-")), DEFAULT_COMMAND)
        click.echo(error_envelope(command, error))
    click.secho("error", fg="red", bold=True, nl=False, err=True)
    click.echo(f": {error.message}", err=True)
    if error.hint:
        click.secho("hint", fg="cyan", bold=True, nl=False, err=True)
        click.echo(f": {error.hint}", err=True)
    return NO_ANSWER
