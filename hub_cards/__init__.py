"""Publishing: the model card, the demo, and the command that pushes them to the Hub."""

import processing  # noqa: F401  which makes earlier import paths work
