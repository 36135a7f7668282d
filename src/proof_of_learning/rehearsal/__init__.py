"""The rehearsal: short stretches of a run, replayed from their recorded state alone while training goes on; what differs is named."""
