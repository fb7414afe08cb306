"""dpeq: differentially private training of equivariant networks on medical images."""

__version__ = "0.1.0"
__all__ = ["__version__"]
