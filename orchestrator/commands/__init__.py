"""What the `orchestrator` command can do: one file for commands that belong together, one function a command.

Each parses nothing and decides nothing: typer hands it checked arguments, it calls the package and prints. What is slow
to import (pandas, torch, ray) is imported inside the command that needs it.
"""
