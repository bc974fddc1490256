"""What several tests share: tiny models, op samples, the tolerance table."""
