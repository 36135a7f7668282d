"""Recording: the header of a run, what is decided beyond it, and the recorder that turns steps into a proof."""
