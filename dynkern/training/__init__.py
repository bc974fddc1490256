"""Training: fine-tuning under routes, and skip controllers (arXiv 2410.20022)."""
