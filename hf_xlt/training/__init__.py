"""What every strategy stands on: configuration, losses, the base Trainer, checkpoints, phases."""
