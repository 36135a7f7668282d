"""Challenge and open: verification of a proof whose states and data stay with their owner (``docs/spec/opening.md``)."""
