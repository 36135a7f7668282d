"""Replay workers on other machines. Handed to ``verify(pool=…)``, which knows nothing of where they are."""
