"""The command line, and what only it does: the demo, acceptance on a text, and what speculation should be worth."""
