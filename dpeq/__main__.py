"""``python -m dpeq``, the same as the command ``dpeq``."""

from dpeq.cli import main

main()
