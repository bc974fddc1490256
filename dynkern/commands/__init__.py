"""Commands of `dynkern`, one file each: options there, work in the rooms; cli.py registers them."""
