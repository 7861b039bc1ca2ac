"""The command line and what only it uses: the demo, acceptance on a text, and the expected gain of speculation."""
