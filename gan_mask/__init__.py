"""gan_mask: adversarial faced masks to measure and harden face recognition with mask detection."""

__version__ = "0.1.0"
