"""The command line: one module per command, `main` to choose among them, `compose` to build what a command runs.

What is imported at start-up decides how fast `--help` answers: engines, hosts and the machine are imported where they
are used.
"""
