"""Files of trackers in a run's folder."""

TRACKERS = ("mlflow", "wandb")
NOTES = tuple(f"{name}.json" for name in TRACKERS)  # each holds the key of the run there
OF_TRACKERS = (*NOTES, "wandb")  # and the folder of W&B's own files
