"""AutoFT: learn the fine-tuning objective on a small out-of-distribution validation set."""

__version__ = "0.1.0"
