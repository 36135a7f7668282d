"""One script, two modes: the user's own loop records a proof, and replays it (``docs/adr/0024-one-script-two-modes.md``)."""
