"""Who and when: statements, signatures and timestamps, as values that know no verifier (docs/adr/0026)."""
