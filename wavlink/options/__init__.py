"""The options of every command but `train`: each function adds those of the command of its name.

Nothing heavy is imported, so that `--help` answers at once.
"""
