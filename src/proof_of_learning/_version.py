"""The version of the package; the format has its own (``pol/proof/v2``)."""

__version__ = "0.1.0"
