"""The command groups of the command line: like ``cli.py`` thin and lazy, one module a group."""
