"""The installed command: `hcr train --arch resnext` is `python launch/train.py --arch resnext`, and so on."""

import sys
from importlib import import_module

COMMANDS = {
    "train": "train a network",
    "data": "examine a data set: unreadable files, copies, leaks, what the network will see",
    "plan": "what fits into a GPU's memory, before anything is allocated",
    "evaluate": "accuracy of trained weights on a validation split",
    "predict": "classes of pictures",
    "export": "ONNX, torch.export, or weights under a library's keys",
    "sweep": "search ranges of a run's fields, or cross-validate it",
    "shard": "make, verify and unpack tar shards of images",
    "report": "draw and compare runs",
    "bench": "measure this machine",
}


def main() -> int:
    """Run the command that the first argument names; returns its exit code, and 2 for a name that is none."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: hcr COMMAND …, and hcr COMMAND --help\n")
        print("\n".join(f"  {command:<{width}}  {what}" for command, what in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"error: hcr has no command {name}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    return import_module(f"launch.{name}").main()


if __name__ == "__main__":
    sys.exit(main())
