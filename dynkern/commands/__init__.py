"""Commands of `dynkern`, one file each; cli.py registers those that have their options there."""
