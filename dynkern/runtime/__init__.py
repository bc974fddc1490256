"""From requests to tokens: scheduler, engine, K/V cache and the executors that run a pass."""
