"""`wavespace VERB …`: verbs are modules, imported only when called."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

from wavespace.errors import UserError

VERBS = {
    "train": "train a configuration, or many with -m; a finished run returns at once, a killed one resumes",
    "evaluate": "score a checkpoint on its own data, or on other data",
    "transcribe": "audio files to MIDI with a checkpoint",
    "check": "check a configuration, and show its parts, sizes, parameters and cost; nothing is trained",
    "prepare": "check a dataset and build its store",
    "pods": "launches on rented GPUs: status, attach, stop, reap, cost",
    "report": "runs, a launch or a W&B sweep as a page: table, fits, figures; of one run, what it did",
    "export": "a run's checkpoint as a file to hand on, with a model card; ONNX where it can be",
    "video": "the features of a recording, with a cursor that moves with the sound",
}

OWN_CODE = {"train", "check", "prepare", "worker"}
"""Verbs over one's own configuration; the others may open a stranger's folder, whose modules are not imported."""

HELP = f"""\
usage: wavespace VERB …          wavespace VERB --help describes a verb

{chr(10).join(f"  {verb:<12}{text}" for verb, text in VERBS.items())}
  completion  print the tab completion of a shell: eval "$(wavespace completion bash)", or zsh

Three ways in:

  wavespace train experiment=demo
      Train on rendered scores, see and hear the result in runs/demo/…/report.html.

  wavespace train -m model=harmonic,unet optim.lr=1e-3,3e-3 trainer.max_time=00:00:10:00
      Four runs; interrupt them and repeat the command: finished ones are kept, the rest resumes.

  wavespace transcribe recording.wav --checkpoint runs/demo/…/checkpoints/best.ckpt
      Notes with onset, offset and velocity, to recording.mid.

Configurations are composed with Hydra: group=choice picks a part, part.key=value sets what it says.
`wavespace check` shows what would run; `wavespace train --cfg job` prints it; --config-dir adds your own.
"""

COMPLETION = """\
_wavespace() {
  local verb="${COMP_WORDS[1]}"
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "%s completion" -- "${COMP_WORDS[1]}")); return; fi
  case "$verb" in
    train|check|prepare)
      local line="wavespace ${COMP_LINE#*"$verb" }"
      COMPREPLY=($(COMP_LINE="$line" COMP_POINT=${#line} wavespace train -sc query=bash 2>/dev/null)) ;;
    *) COMPREPLY=() ;;  # the shell's own, which quotes blanks
  esac
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _wavespace wavespace
"""


def main() -> None:
    """Entry of the `wavespace` command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # whose traceback a quick Ctrl-C would give
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        from wavespace import terminal  # noqa: F401

        signal.signal(signal.SIGINT, signal.default_int_handler)
    from wavespace.signals import raise_on_stop
    from wavespace.terminal import guarded, show_warnings_as_sentences
    from wavespace.text import nearest, printable

    for stream in (sys.stdout, sys.stderr):  # names on a disk are bytes, which need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    show_warnings_as_sentences()
    verb, *arguments = sys.argv[1:] or ["--help"]
    folder = guarded(_current_folder)
    if verb in OWN_CODE or any(word.partition("=")[0] == "--trust" for word in arguments):
        sys.path.append(folder)  # a `_target_` may name a package that lies where the command runs
    if verb in VERBS and verb != "pods":  # which has its own ways to end what costs money
        raise_on_stop()
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
    elif verb == "--version":
        print(import_module("wavespace").__version__)
    elif verb == "completion":
        _completion(arguments)
    elif verb in ("pod-entry", "worker"):  # started on pods
        guarded(lambda: import_module(f"wavespace_launcher.{verb.replace('-', '_')}").main(arguments))
    elif verb in VERBS:
        guarded(lambda: import_module(f"wavespace.commands.{verb}").main(arguments))
    else:
        known = f"{nearest(verb, VERBS)}; verbs: {', '.join([*VERBS, 'completion'])}"
        print(f"wavespace: there is no verb '{printable(verb)}'{known}", file=sys.stderr)
        sys.exit(2)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder has been deleted; change to one that exists") from None


def _completion(arguments: list[str]) -> None:
    script = COMPLETION % " ".join(VERBS)
    if arguments == ["zsh"]:
        script = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + script
    elif arguments != ["bash"]:
        print("wavespace: completion is for bash and zsh: wavespace completion bash", file=sys.stderr)
        sys.exit(2)
    print(script, end="")


if __name__ == "__main__":
    main()
