"""One script, two modes: the user's own loop records a proof, and replays it (``docs/adr/0025-one-script-two-modes.md``)."""
