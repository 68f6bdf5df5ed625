"""The command line of published models: embed, predict, info."""
