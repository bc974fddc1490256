"""What the commands of `dynkern` do, one file a command; cli.py has their options."""
