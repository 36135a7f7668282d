"""Beyond one machine: replay workers handed to ``verify(pool=…)`` (:mod:`ray`), and training with workers whom nobody trusts
(:mod:`coordinator`)."""
