"""Adapters that drive a ``pol.Run`` from inside the training loops of other libraries (``docs/adr/0027-frameworks.md``).

Each is imported by its own name, so that only who uses it needs the library: ``proof_of_learning.integrations.lightning`` …
"""
