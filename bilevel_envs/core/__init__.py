"""What every kind of world speaks: decision problems, batches, followers, environments, noise."""
